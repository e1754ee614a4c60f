"""What batch normalisation needs: its parameters, its statistics, and their union over the processes of a group."""

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from kitsattn.ranks import sum_over_group


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
    total = sum_over_group(torch.cat([seen.mean * count, count]), group)
    values = total[-1:].detach()
    mean = total[:-1] / values
    spread = sum_over_group(count * (seen.var + (seen.mean - mean) ** 2), group)
    return BatchStatistics(mean, spread / values, values)
