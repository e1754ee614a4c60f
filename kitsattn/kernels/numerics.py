"""What all Triton programs share. Importing this module needs Triton.

Every product accumulates in fp32. `UPCAST` is set where the programs run in Triton's interpreter: it keeps bf16 as bit
patterns, which its arithmetic takes for integers, so operands become fp32 first. On a GPU it is not set.
"""

from typing import Any

import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether programs run in the interpreter: TRITON_INTERPRET=1 when Triton was first imported."""

OPTIONS: dict[str, Any] = {} if INTERPRETED else {"enable_fp_fusion": True}
"""For every launch: products and sums may be one instruction, whatever the release of Triton takes for granted."""


@triton.jit
def dot(a, b, accumulator, UPCAST: tl.constexpr):
    """Return `a @ b + accumulator`."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")
