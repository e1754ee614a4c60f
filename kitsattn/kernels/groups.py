"""Sums over the processes that train together, with gradients."""

from typing import Any

import torch
from torch import Tensor, distributed


def sum_over_group(values: Tensor, group: "distributed.ProcessGroup | None") -> Tensor:
    """Return the sum of a tensor over a group of processes; every process that uses it gives its gradient to all.

    Args:
        values: Of the same shape and dtype in all of them.
        group: The processes; None is this one alone, and the tensor comes back as it is.
    """
    if group is None:
        return values
    total: Tensor = _Sum.apply(values, group)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: "distributed.ProcessGroup") -> Tensor:
        ctx.group = group
        total = values.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        distributed.all_reduce(total, group=ctx.group)
        return total, None
