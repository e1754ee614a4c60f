"""The normalisation network: a low-capacity U-Net that maps a slab to a normalised slab.

Fig. 2 of the paper, after Drozdzal et al., Learning normalized inputs for iterative estimation in medical image
segmentation, Med. Image Anal. 44, 2018: contraction alternates convolution and max-pooling, expansion alternates
convolution and repetition, and the contraction's maps are concatenated to restore what pooling lost.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d


class Normalizer(nn.Module):
    """A U-Net with one convolution a level.

    Args:
        slices: Channels of the input and of the output.
        channels: Channels of each level, from full resolution down; n levels pool n - 1 times.
    """

    def __init__(self, slices: int, channels: Sequence[int]) -> None:
        """Build the convolutions of both paths."""
        super().__init__()
        inputs = [slices, *channels[:-1]]
        self.contraction = nn.ModuleList(_convolution(i, o) for i, o in zip(inputs, channels, strict=True))
        upper, lower = list(channels[:-1]), list(channels[1:])
        self.expansion = nn.ModuleList(_convolution(up + low, up) for up, low in zip(upper, lower, strict=True))
        self.output = nn.Conv2d(channels[0], slices, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch of slabs.

        Args:
            x: (batch, slices, height, width); any height and width.

        Returns:
            The same shape.
        """
        skipped = []
        for level, convolution in enumerate(self.contraction):
            x = convolution(x if level == 0 else _pool(x))
            skipped.append(x)
        for level in reversed(range(len(self.expansion))):
            x = self.expansion[level](_join(skipped[level], x))
        output: Tensor = self.output(x)
        return output


def _pool(x: Tensor) -> Tensor:
    """Return the maxima of 2 x 2 positions."""
    even = x.shape[-2] % 2 == x.shape[-1] % 2 == 0
    if not (_only_predicts(x) and even):
        return max_pool2d(x, 2, ceil_mode=True)
    rows = torch.maximum(x[..., 0::2, :], x[..., 1::2, :])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _join(skip: Tensor, x: Tensor) -> Tensor:
    """Concatenate a map with one of half its size, repeated."""
    channels, height, width = skip.shape[1:]
    if not _only_predicts(x):
        repeated = interpolate(x, scale_factor=2, mode="nearest")[..., :height, :width]
        return torch.cat([skip, repeated], dim=1)
    last = skip.is_contiguous(memory_format=torch.channels_last)
    shape = (len(skip), channels + x.shape[1], height, width)
    joined = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
    joined[:, :channels] = skip
    for row, column in product((0, 1), repeat=2):
        joined[:, channels:, row::2, column::2] = x[..., : (height - row + 1) // 2, : (width - column + 1) // 2]
    return joined


def _only_predicts(x: Tensor) -> bool:
    """Tell whether no gradient is wanted on a CPU: PyTorch's pooling and repetition there keep more than is needed.

    A graph that is exported has PyTorch's own, which know sizes of any kind.
    """
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
