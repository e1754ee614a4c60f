"""Atrous spatial pyramid pooling: parameters and running statistics around `kernels.aspp`."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from kitsattn.blocks.normalization import group_of, update_running
from kitsattn.kernels.aspp import BatchNormParameters, aspp


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
            group=group_of(norms[0]) if training else None,
        )
        if training:
            for norm, seen in zip(norms, statistics, strict=True):
                update_running(norm, seen)
        return output


def _parameters(norm: nn.BatchNorm2d) -> BatchNormParameters:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return BatchNormParameters(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
