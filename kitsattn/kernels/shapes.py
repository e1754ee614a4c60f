"""The sizes that decide whether a kernel can run, and whether it has been measured to be faster."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch

MOST_ELEMENTS = 2**31 - 1
"""Kernels count elements in 32 bits."""

OperationName = Literal["aspp", "attention"]

_DIMS = (16, 32, 64, 128, 256)
_CHANNELS_MULTIPLE = 64
_ROWS = 128
_MOST_IMAGES = 65_535
"""Programs along the second axis of a CUDA grid."""


@dataclass(frozen=True)
class AttentionShape:
    """One call of `kernels.attention`.

    Attributes:
        batch: Images.
        queries: Tokens of an image that ask.
        keys: Tokens of an image that are asked.
        dim: Of queries and keys.
        value_dim: Of values.
    """

    operation: ClassVar[OperationName] = "attention"
    batch: int
    queries: int
    keys: int
    dim: int
    value_dim: int

    def obstacle(self) -> str | None:
        """Return why the kernel cannot run, or None."""
        for name, dim in (("dim", self.dim), ("value_dim", self.value_dim)):
            if dim not in _DIMS:
                return f"{name} is {dim}, and the kernel has {', '.join(map(str, _DIMS))}"
        if _more(self.batch, _MOST_IMAGES):
            return f"{self.batch} images, and the kernel takes {_MOST_IMAGES}"
        if _more(self.batch * max(self.queries, self.keys) * (2 * self.dim + self.value_dim), MOST_ELEMENTS):
            return "more than 2^31 elements"
        return None

    def measures(self) -> tuple[float, ...]:
        """Return the numbers by which two calls are alike: their ratios count."""
        return (self.batch, self.queries, self.keys, self.dim, self.value_dim)


@dataclass(frozen=True)
class AsppShape:
    """One call of `kernels.aspp`.

    Attributes:
        batch: Images.
        height: Of the map.
        width: Of the map.
        in_channels: Of the input.
        channels: Of each branch.
        out_channels: Of the output.
        sizes: Kernel size of each branch.
        rates: Dilation of each branch.
    """

    operation: ClassVar[OperationName] = "aspp"
    batch: int
    height: int
    width: int
    in_channels: int
    channels: int
    out_channels: int
    sizes: tuple[int, ...]
    rates: tuple[int, ...]

    def obstacle(self) -> str | None:
        """Return why the kernels cannot run, or None."""
        for name in ("in_channels", "channels", "out_channels"):
            if getattr(self, name) % _CHANNELS_MULTIPLE:
                return f"{name} is {getattr(self, name)}, and the kernels take multiples of {_CHANNELS_MULTIPLE}"
        if not set(self.sizes) <= {1, 3}:
            return f"a kernel size is {max(self.sizes)}, and the kernels have 1 and 3"
        widest = max(self.in_channels, self.channels * len(self.sizes), self.out_channels)
        if _more(self.batch * self.height * self.width * widest, MOST_ELEMENTS):
            return "more than 2^31 elements"
        return None

    def measures(self) -> tuple[float, ...]:
        """Return the numbers by which two calls are alike: their ratios count."""
        share = _share(self.batch, self.height, self.width, self.sizes, self.rates)
        pixels = self.batch * self.height * self.width
        return (pixels, self.in_channels, self.channels, self.out_channels, len(self.sizes), share)


def _more(number: int, most: int) -> bool:
    # An exported network has no batch yet; the launch of a kernel refuses one that is too large.
    return not torch.compiler.is_exporting() and number > most


@lru_cache
def _share(batch: int, height: int, width: int, sizes: tuple[int, ...], rates: tuple[int, ...]) -> float:
    from kitsattn.kernels.aspp.tiles import (  # noqa: PLC0415 - importing its package needs this module
        choose_patch,
        executed_share,
        make_branches,
    )

    branches = make_branches(sizes, rates)
    return executed_share(batch, height, width, branches, choose_patch(batch, height, width, branches, _ROWS))
