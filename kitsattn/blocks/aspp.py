"""Atrous spatial pyramid pooling: parameters and running statistics around `kernels.aspp`."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, distributed, nn

from kitsattn.kernels.aspp import BatchNormParameters, BatchStatistics, aspp


class ASPP(nn.Module):
    """A 1 x 1 convolution, atrous 3 x 3 convolutions and image pooling, concatenated and projected.

    Args:
        in_channels: Channels of the input.
        channels: Channels of each branch and of the output.
        rates: Dilation of each 3 x 3 convolution.
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int]) -> None:
        """Build one convolution a branch and one batch normalisation behind each."""
        super().__init__()
        kernel_sizes = [1] + [3] * len(rates)
        self.rates = (1, *rates)
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, channels, size, padding=rate * (size // 2), dilation=rate, bias=False)
            for size, rate in zip(kernel_sizes, self.rates, strict=True)
        )
        self.pool = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.project = nn.Conv2d(channels * (len(self.rates) + 1), channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(len(self.rates) + 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, channels, height, width).

        Raises:
            ValueError: In training with a single image, or if only some normalisations are frozen (`norms.eval()`).
        """
        norms = [cast("nn.BatchNorm2d", norm) for norm in self.norms]
        training = norms[0].training
        if any(norm.training != training for norm in norms):
            msg = "some of the ASPP's normalisations are frozen and others are not: freeze `norms` as a whole, or none"
            raise ValueError(msg)
        output, statistics = aspp(
            x,
            [cast("nn.Conv2d", branch).weight for branch in self.branches],
            self.pool.weight,
            self.project.weight,
            [_parameters(norm) for norm in norms],
            rates=self.rates,
            training=training,
            group=_group(norms[0]) if training else None,
        )
        if training:
            for norm, seen in zip(norms, statistics, strict=True):
                _update_running(norm, seen)
        return output


def _group(norm: nn.Module) -> "distributed.ProcessGroup | None":
    """Return the processes that normalise together, where `nn.SyncBatchNorm.convert_sync_batchnorm` was applied."""
    if not isinstance(norm, nn.SyncBatchNorm) or not distributed.is_available() or not distributed.is_initialized():
        return None
    group = norm.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


def _parameters(norm: nn.BatchNorm2d) -> BatchNormParameters:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return BatchNormParameters(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


@torch.no_grad()
def _update_running(norm: nn.BatchNorm2d, seen: BatchStatistics) -> None:
    """Move the running statistics towards the batch's, with the unbiased variance, as PyTorch does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(seen.mean.to(norm.running_mean.dtype), momentum)
    unbiased = seen.var * (seen.values / (seen.values - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
