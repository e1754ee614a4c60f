"""What batch normalisation needs: its parameters, its statistics, and their union over the processes of a group."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed


class BatchNormParameters(NamedTuple):
    """One batch normalisation: affine parameters and running statistics, each (channels,), fp32.

    Attributes:
        weight: Scale.
        bias: Shift.
        running_mean: What is subtracted outside training.
        running_var: What is divided by, under the root, outside training.
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float


class BatchStatistics(NamedTuple):
    """What one batch normalisation saw in training; the block updates its running statistics with it.

    Attributes:
        mean: Mean of each channel, (channels,), fp32.
        var: Biased variance of each channel, (channels,), fp32.
        values: Number of values behind each; a tensor of one where processes have put theirs together.
    """

    mean: Tensor
    var: Tensor
    values: int | Tensor

    def detached(self) -> "BatchStatistics":
        """Return them without gradients."""
        return BatchStatistics(self.mean.detach(), self.var.detach(), self.values)


def unite(seen: BatchStatistics, group: "distributed.ProcessGroup | None") -> BatchStatistics:
    """Return the statistics of all values that the processes of a group have seen; with gradients.

    Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    if group is None:
        return seen
    count = seen.mean.new_tensor([float(seen.values)])
    total: Tensor = _Sum.apply(torch.cat([seen.mean * count, count]), group)  # type: ignore[no-untyped-call]
    values = total[-1:].detach()
    mean = total[:-1] / values
    spread: Tensor = _Sum.apply(count * (seen.var + (seen.mean - mean) ** 2), group)  # type: ignore[no-untyped-call]
    return BatchStatistics(mean, spread / values, values)


class _Sum(torch.autograd.Function):
    """The sum over a group of processes; every process that uses it gives its gradient to all."""

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
