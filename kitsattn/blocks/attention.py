"""Self-attention after the ASPP: projections and gate around `kernels.attention`."""

from typing import Literal

import torch
from torch import Tensor, nn

from kitsattn.kernels.attention import attention

AttentionKind = Literal["full", "none"]


class SelfAttention(nn.Module):
    """Every position receives the softmax-weighted average of all positions, added through a learnt gate.

    The embedded Gaussian of Wang et al., Non-local Neural Networks, CVPR 2018, with scores scaled by the root of
    the key dimension and a gate that is zero at the start, so that a fresh block passes its input on.

    Args:
        channels: Channels of the input and of the output.
        key_channels: Channels of queries and keys.
    """

    def __init__(self, channels: int, key_channels: int) -> None:
        """Build one 1 x 1 convolution that yields queries, keys and values."""
        super().__init__()
        self.sizes = (key_channels, key_channels, channels)
        self.scale = key_channels**-0.5
        self.projection = nn.Conv2d(channels, sum(self.sizes), kernel_size=1)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.projection(x).flatten(2).transpose(1, 2).split(self.sizes, dim=2)
        attended = attention(q, k, v, scale=self.scale, residual=tokens, gate=self.gate)
        return attended.transpose(1, 2).reshape(x.shape)


def build_attention(kind: AttentionKind, channels: int, key_channels: int) -> nn.Module:
    """Return the attention block of a kind: `full`, or `none` for a network without one."""
    return SelfAttention(channels, key_channels) if kind == "full" else nn.Identity()
