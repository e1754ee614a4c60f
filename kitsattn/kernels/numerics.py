"""What all Triton programs share. Importing this module needs Triton.

Every product accumulates in fp32. `UPCAST` is set where the programs run in Triton's interpreter: it keeps bf16 as bit
patterns, which its arithmetic takes for integers, so operands become fp32 first. On a GPU it is not set.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import triton
import triton.language as tl

from kitsattn.kernels.shapes import MOST_ELEMENTS

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether programs run in the interpreter: TRITON_INTERPRET=1 when Triton was first imported."""

OPTIONS: dict[str, Any] = {} if INTERPRETED else {"enable_fp_fusion": True}
"""For every launch: products and sums may be one instruction, whatever the release of Triton takes for granted."""


def on_its_device(launch: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function launch on the device of its first argument: Triton takes the current one."""

    @wraps(launch)
    def launched(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with torch.cuda.device_of(arguments[0]):
            return launch(*arguments, **options)

    return launched


def refuse_large(*tensors: torch.Tensor) -> None:
    """Refuse tensors whose elements the programs cannot count.

    Raises:
        ValueError: If one has 2^31 elements or more.
    """
    for tensor in tensors:
        if tensor.numel() > MOST_ELEMENTS:
            msg = f"the shape {tuple(tensor.shape)} has 2^31 elements or more: use smaller batches"
            raise ValueError(msg)


@triton.jit
def dot(a, b, accumulator, UPCAST: tl.constexpr):
    """Return `a @ b + accumulator`."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")
