"""Point-wise spatial attention: every position predicts how it weighs the positions around it, and they it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class PointwiseAttention(nn.Module):
    """Information is collected from all positions, and distributed to them, by weights that each position predicts.

        collected[i]   = sum_j softmax_j(a[i][j - i]) f[j]        a, f: convolutions of x
        distributed[i] = sum_j softmax_j(b[j][i - j]) g[j]        b, g: convolutions of x
        out = relu(bn(a 1 x 1 convolution of concat(w(concat(collected, distributed)), x)))

    Zhao et al., PSANet: Point-wise Spatial Attention Network for Scene Parsing, ECCV 2018. a and b are over-complete
    maps: a channel for each offset in rows and columns, (2 reach + 1)^2 of them. For a map of H x W with a reach of
    max(H, W) - 1 this is the authors' form, which is built for one size; on larger maps positions further apart than
    the reach do not see each other, on smaller ones the outer offsets are not used, so that any size is exact. The
    softmax is that of the authors' code. w, a 1 x 1 convolution, is zero at the start.

    It stores four maps of (H W)^2 weights and two of H W (2 reach + 1)^2 channels: at 32 x 32 with a reach of 31, 16
    MB each in fp32 for the weights and for the channels of one sample; at 64 x 64, 268 MB.

    Args:
        channels: Channels of the input and of the output, even.
        reach: Greatest offset in rows and in columns.
    """

    CHAINS = (("join", "join_norm"),)

    def __init__(self, channels: int, *, reach: int = 31) -> None:
        """Build the reductions, the over-complete maps, and what joins them with the input."""
        super().__init__()
        half = channels // 2
        self.reach = reach
        self.collect = _Branch(channels, half, reach)
        self.distribute = _Branch(channels, half, reach)
        self.context = nn.Conv2d(2 * half, channels, kernel_size=1)
        nn.init.zeros_(self.context.weight)
        nn.init.zeros_(self.context.bias)  # type: ignore[arg-type]  # it has one
        self.join = nn.Conv2d(2 * channels, channels, kernel_size=1, bias=False)
        self.join_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        height, width = x.shape[2:]
        channel, within = offset_channels(height, width, self.reach, x.device)
        parts = []
        for branch, backwards in ((self.collect, False), (self.distribute, True)):
            features, logits = branch(x)
            # [b, i, j]: the weight of j for i, predicted at i, or at j.
            chosen = logits.flatten(2).transpose(1, 2).gather(2, channel.expand(x.shape[0], -1, -1))
            scores = chosen.transpose(1, 2) if backwards else chosen
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~within, float("-inf"))
            average = scores.softmax(dim=2).to(features.dtype) @ features.flatten(2).transpose(1, 2)
            parts.append(average.transpose(1, 2).unflatten(2, (height, width)))
        context = self.context(torch.cat(parts, dim=1))
        joined: Tensor = self.join_norm(self.join(torch.cat([context, x], dim=1)))
        return relu(joined)


class _Branch(nn.Module):
    """The features that travel in one direction, and the over-complete map of their weights."""

    def __init__(self, channels: int, half: int, reach: int) -> None:
        super().__init__()
        self.reduce = _convolution(channels, half)
        self.hidden = _convolution(half, half)
        self.weights = nn.Conv2d(half, (2 * reach + 1) ** 2, kernel_size=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.reduce(x)
        return features, self.weights(self.hidden(features))


def _convolution(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def offset_channels(height: int, width: int, reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which channel of an over-complete map holds the weight between two positions, and whether one does.

    Args:
        height: Of the map.
        width: Of the map.
        reach: Greatest offset in rows and in columns.
        device: Of the result.

    Returns:
        For positions i and j in rows and columns of a matrix, (height x width, height x width): the channel of the
        offset j - i, int64, and whether it is within reach, bool.
    """
    rows = torch.arange(height, device=device)[:, None].expand(-1, width).flatten()
    columns = torch.arange(width, device=device)[None].expand(height, -1).flatten()
    down, right = rows[None] - rows[:, None], columns[None] - columns[:, None]
    within = (down.abs() <= reach) & (right.abs() <= reach)
    side = 2 * reach + 1
    channel = (down.clamp(-reach, reach) + reach) * side + right.clamp(-reach, reach) + reach
    return channel, within
