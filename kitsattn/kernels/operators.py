"""What all operators share."""

from typing import Any, NoReturn

import torch
from torch import Tensor

TAGS = (torch.Tag.cudagraph_unsafe,)
"""The tables of tiles are made at the first call with a shape, and kept: not while a CUDA graph is recorded."""


def refuse_second_gradient(ctx: Any, *grads: Tensor) -> NoReturn:  # noqa: ANN401 - PyTorch's context is untyped
    """Stand for the gradient of a gradient, which the kernels do not have.

    Raises:
        RuntimeError: Always.
    """
    del ctx, grads
    msg = "the gradient of a kernel has no gradient of its own: set KITSATTN_KERNELS=reference to take second gradients"
    raise RuntimeError(msg)
