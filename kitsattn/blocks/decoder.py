"""The DeepLabv3+ decoder: context at the output stride joined with the encoder's features at stride 4.

Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation, ECCV 2018, section 3.1.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class Decoder(nn.Module):
    """Reduce the low-level features, concatenate the upsampled context, refine twice, classify.

    Args:
        low_level_channels: Channels of the encoder's features at stride 4.
        reduced_channels: Channels they are reduced to.
        context_channels: Channels of the context.
        channels: Channels of the two refining 3 x 3 convolutions.
        classes: Channels of the output.
        separable: Whether these are depthwise separable.
    """

    def __init__(
        self,
        *,
        low_level_channels: int,
        reduced_channels: int,
        context_channels: int,
        channels: int,
        classes: int,
        separable: bool,
    ) -> None:
        """Build the reduction, the two refining convolutions and the classifier."""
        super().__init__()
        refine = _separable_convolution if separable else _dense_convolution
        self.reduce = nn.Sequential(
            nn.Conv2d(low_level_channels, reduced_channels, 1, bias=False),
            nn.BatchNorm2d(reduced_channels),
            nn.ReLU(inplace=True),
        )
        self.refine = nn.Sequential(refine(reduced_channels + context_channels, channels), refine(channels, channels))
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, low_level: Tensor, context: Tensor) -> Tensor:
        """Return logits at stride 4.

        Args:
            low_level: (batch, low_level_channels, height / 4, width / 4).
            context: (batch, context_channels, height / output stride, width / output stride).

        Returns:
            (batch, classes, height / 4, width / 4).
        """
        context = interpolate(context, size=low_level.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.classify(self.refine(torch.cat([self.reduce(low_level), context], dim=1)))
        # On a CPU so few channels are enlarged faster plane by plane: 2.0 instead of 3.6 ms for two of 512 x 512.
        return logits if self.training or logits.is_cuda else logits.contiguous()


def _dense_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _separable_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
