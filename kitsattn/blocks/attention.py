"""Self-attention after the ASPP, of several kinds: projections and gates around `kernels.attention`.

The kinds here average over all positions with softmax weights; they differ in how queries and keys are made, whether
the scores are scaled, and how the average joins the input. The kinds that weigh fewer positions, or by predicted
weights, have files of their own: `criss_cross`, `interlaced`, `pointwise`.
"""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from kitsattn.blocks.criss_cross import CrissCrossAttention
from kitsattn.blocks.interlaced import InterlacedAttention
from kitsattn.blocks.pointwise import PointwiseAttention
from kitsattn.kernels.attention import attention

if TYPE_CHECKING:
    from collections.abc import Callable

AttentionKind = Literal["full", "pam", "ocnet", "criss-cross", "interlaced", "psa", "none"]
POOLED_KINDS: tuple[AttentionKind, ...] = ("full", "pam", "ocnet", "none")
"""Kinds whose keys and values may be the maxima of 2 x 2 positions; `none` has no keys."""


class SelfAttention(nn.Module):
    """Every position receives the softmax-weighted average of all positions, added through a learnt gate.

        out[i] = x[i] + gate * sum_j softmax_j(scale * <q[i], k[j]>) v[j]        q, k, v = three 1 x 1 convolutions of x

    The kind `full`: the embedded Gaussian of Wang et al., Non-local Neural Networks, CVPR 2018, with scores scaled by
    the root of the key dimension and a gate that is zero at the start, so that a fresh block passes its input on. With
    the scale 1 and an eighth of the channels in queries and keys the kind `pam`: the position attention module of Fu et
    al., Dual Attention Network for Scene Segmentation, CVPR 2019.

    Args:
        channels: Channels of the input and of the output.
        key_channels: Channels of queries and keys.
        scale: Factor on the scores; None takes one over the root of `key_channels`.
        pooled: Whether keys and values are the maxima of 2 x 2 positions, the subsampling of the first paper's section
            3.3: a quarter of the products.
    """

    def __init__(self, channels: int, key_channels: int, *, scale: float | None = None, pooled: bool = False) -> None:
        """Build one 1 x 1 convolution that yields queries, keys and values."""
        super().__init__()
        self.sizes = (key_channels, key_channels, channels)
        self.scale = key_channels**-0.5 if scale is None else scale
        self.pooled = pooled
        self.projection = nn.Conv2d(channels, sum(self.sizes), kernel_size=1)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        q, k, v = _split(self.projection(x), self.sizes, pooled=self.pooled)
        attended = attention(q, k, v, scale=self.scale, residual=_tokens(x), gate=self.gate)
        return _map(attended, x)


class ObjectContext(nn.Module):
    """Every position receives the average of all positions beside its own features, and a convolution joins the two.

        q, k = relu(bn(1 x 1 convolutions of x))        v = a 1 x 1 convolution of x
        context[i] = w(sum_j softmax_j(<q[i], k[j]> / root of the key dimension) v[j])
        out = relu(bn(a 1 x 1 convolution of concat(context, x)))

    The kind `ocnet`: Base-OC of Yuan et al., OCNet: Object Context for Semantic Segmentation, IJCV 2021. Keys and
    values have half of the channels, as theirs; queries and keys have weights of their own, as in the authors' later
    code; w, a 1 x 1 convolution, is zero at the start. Their dropout is left out.

    Args:
        channels: Channels of the input and of the output, even.
        pooled: As in `SelfAttention`.
    """

    CHAINS = (("join", "join_norm"),)

    def __init__(self, channels: int, *, pooled: bool = False) -> None:
        """Build one convolution that yields queries, keys and values, and the two behind the average."""
        super().__init__()
        half = channels // 2
        self.sizes = (half, half, half)
        self.scale = half**-0.5
        self.pooled = pooled
        self.norm = nn.BatchNorm2d(2 * half)  # of two thirds of the projection's channels
        self.projection = nn.Conv2d(channels, sum(self.sizes), kernel_size=1)
        self.context = nn.Conv2d(half, channels, kernel_size=1)
        nn.init.zeros_(self.context.weight)
        nn.init.zeros_(self.context.bias)  # type: ignore[arg-type]  # it has one
        self.join = nn.Conv2d(2 * channels, channels, kernel_size=1, bias=False)
        self.join_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        query_key, value = self.projection(x).split([2 * self.sizes[0], self.sizes[2]], dim=1)
        projected = torch.cat([relu(self.norm(query_key)), value], dim=1)
        q, k, v = _split(projected, self.sizes, pooled=self.pooled)
        average = attention(q, k, v, scale=self.scale)
        context = self.context(_map(average, x))
        joined: Tensor = self.join_norm(self.join(torch.cat([context, x], dim=1)))
        return relu(joined)


def build_attention(
    kind: AttentionKind,
    channels: int,
    key_channels: int,
    *,
    pooled: bool = False,
    recurrence: int = 2,
    block: int = 8,
    reach: int = 31,
) -> nn.Module:
    """Return the attention block of a kind; `none` passes its input on.

    Args:
        kind: One of `AttentionKind`.
        channels: Channels of the input and of the output.
        key_channels: Channels of queries and keys of `full` and `interlaced`; the other kinds have their papers'.
        pooled: Whether keys and values are the maxima of 2 x 2 positions; for `POOLED_KINDS`.
        recurrence: How often `criss-cross` is applied.
        block: Side of the blocks of `interlaced`.
        reach: Greatest offset of `psa`.

    Raises:
        ValueError: If the kind is another, or its keys cannot be pooled.
    """
    build: dict[AttentionKind, Callable[[], nn.Module]] = {
        "full": lambda: SelfAttention(channels, key_channels, pooled=pooled),
        "pam": lambda: SelfAttention(channels, max(channels // 8, 1), scale=1.0, pooled=pooled),
        "ocnet": lambda: ObjectContext(channels, pooled=pooled),
        "criss-cross": lambda: CrissCrossAttention(channels, recurrence=recurrence),
        "interlaced": lambda: InterlacedAttention(channels, key_channels, block=block),
        "psa": lambda: PointwiseAttention(channels, reach=reach),
        "none": nn.Identity,
    }
    if kind not in build:
        msg = f"there is no attention of the kind {kind!r}: choose {', '.join(build)}"
        raise ValueError(msg)
    if pooled and kind not in POOLED_KINDS:
        msg = f"the keys of attention {kind!r} cannot be pooled: set pooled_keys to false"
        raise ValueError(msg)
    return build[kind]()


def _split(projected: Tensor, sizes: tuple[int, int, int], *, pooled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens of queries, keys and values from a map that holds all three."""
    if not pooled:
        q, k, v = _tokens(projected).split(sizes, dim=2)
        return q, k, v
    query, key_value = projected.split([sizes[0], sizes[1] + sizes[2]], dim=1)
    k, v = _tokens(max_pool2d(key_value, 2, ceil_mode=True)).split(sizes[1:], dim=2)
    return _tokens(query), k, v


def _tokens(x: Tensor) -> Tensor:
    """View (batch, channels, height, width) as (batch, tokens, channels)."""
    return x.flatten(2).transpose(1, 2)


def _map(tokens: Tensor, like: Tensor) -> Tensor:
    """View (batch, tokens, channels) as a map of the height and width of another."""
    height, width = like.shape[-2:]
    return tokens.transpose(1, 2).reshape(*tokens.shape[::2], height, width)
