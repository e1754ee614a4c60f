"""How the atrous branches are cut into tiles, and which taps of each tile are inside the map; needs no Triton.

An atrous 3 x 3 convolution of rate r reads its outer taps r voxels away. At output stride 16 a map is 32 wide and r is
up to 18: most outer taps of most pixels are in the padding, and their products are zeros. A tile of pixels skips every
tap that is outside for all of them. Tiles span the images of the batch, so that each covers a small part of the map:
16 images x 2 x 4 pixels execute 61 % of the dense products at 32 x 32 with rates 6, 12 and 18, where 128 pixels in rows
execute 79 % and no tile could do with less than 59 %. In channels-last order the shape of a tile costs nothing.

Visible taps of a tile form a rectangle: offsets dy of consecutive values times offsets dx of consecutive values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

_MOST_IMAGES = 16
_INT32 = 1 << 32


@dataclass(frozen=True)
class Tile:
    """What one program of a matrix product works on at a time.

    Attributes:
        rows: Rows of the product; for the branches pixels.
        columns: Columns of the product, channels.
        depth: Summed at a time.
        warps: Warps of the program.
        stages: How many steps of the sum are on their way at a time.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 8
    stages: int = 3

    def fit(self, columns: int) -> "Tile":
        """Return the tile with as many columns as divide the product's."""
        width = self.columns
        while columns % width:
            width //= 2
        return replace(self, columns=width)


INTERPRETER_TILE = Tile(rows=32, columns=64, depth=64)
"""A small one, so that small inputs have several."""


def choose_tile(capability: tuple[int, int]) -> Tile:
    """Return the tile for a GPU of compute capability 8.0 or above."""
    if capability[0] == 9:  # noqa: PLR2004 - Hopper
        return Tile(128, 256, 64)
    if capability[0] == 10:  # noqa: PLR2004 - Blackwell of the data centre
        return Tile(128, 128, 64)
    return Tile(128, 128, 32, stages=4)


class Patch(NamedTuple):
    """A tile of pixels: images x height x width, each a power of two."""

    images: int
    height: int
    width: int


class Branch(NamedTuple):
    """A branch of the ASPP.

    Attributes:
        size: Of its kernel, 1 or 3.
        rate: Dilation.
        first: Index of its first tap among the taps of all branches.
    """

    size: int
    rate: int
    first: int


def make_branches(sizes: Sequence[int], rates: Sequence[int]) -> list[Branch]:
    """Return the branches of these kernel sizes and rates."""
    branches = []
    first = 0
    for size, rate in zip(sizes, rates, strict=True):
        branches.append(Branch(size, rate, first))
        first += size * size
    return branches


def visible(start: int, extent: int, length: int, branch: Branch) -> range:
    """Return the offsets, -1 to 1, whose tap is inside the map for some pixel.

    Args:
        start: First pixel of a tile along an axis.
        extent: How many it has.
        length: Of the map along the axis.
        branch: Which taps.
    """
    if branch.size == 1:
        return range(1)
    last = min(start + extent, length) - 1
    inside = [step for step in (-1, 0, 1) if last + step * branch.rate >= 0 and start + step * branch.rate < length]
    return range(inside[0], inside[-1] + 1)


class BranchTile(NamedTuple):
    """A tile of one branch, as the program reads it; pixels count from the map's first.

    Attributes:
        branch: Which branch.
        image: First image.
        y: First row of pixels.
        x: First column of pixels.
        rate: Dilation.
        dy: First visible offset along y.
        dx: First visible offset along x.
        columns: How many offsets are visible along x.
        taps: How many taps are visible.
        weight: Index of the weights of tap (-1, -1), were there one.
        slot: Number of the tile among those of its branch, in the map's order.
    """

    branch: int
    image: int
    y: int
    x: int
    rate: int
    dy: int
    dx: int
    columns: int
    taps: int
    weight: int
    slot: int


def branch_tiles(batch: int, height: int, width: int, branches: Sequence[Branch], patch: Patch) -> list[BranchTile]:
    """Return all tiles of the forward pass, those of most taps first, so that the last to end are short."""
    tiles = []
    for number, branch in enumerate(branches):
        centre = branch.size * branch.size // 2
        for slot, (image, y, x) in enumerate(_corners(batch, height, width, patch)):
            dys = visible(y, patch.height, height, branch)
            dxs = visible(x, patch.width, width, branch)
            taps = len(dys) * len(dxs)
            weight = branch.first + centre - 4
            tiles.append(BranchTile(number, image, y, x, branch.rate, dys[0], dxs[0], len(dxs), taps, weight, slot))
    return sorted(tiles, key=lambda tile: -tile.taps)


@cache
def _best_patch(batch: int, height: int, width: int, branches: tuple[Branch, ...], rows: int) -> Patch:
    def taps(patch: Patch) -> int:
        return sum(tile.taps for tile in branch_tiles(batch, height, width, branches, patch))

    images = [1 << power for power in range(rows.bit_length()) if 1 << power <= _MOST_IMAGES]
    return min((_squarest(number, rows) for number in images), key=lambda patch: (taps(patch), -patch.images))


def choose_patch(batch: int, height: int, width: int, branches: Sequence[Branch], rows: int) -> Patch:
    """Return the patch of so many pixels with which the fewest taps are executed, of up to 16 images.

    More images make a patch smaller, and it skips more; but where they do not divide the batch, the last patches are
    partly empty.
    """
    return _best_patch(batch, height, width, tuple(branches), rows)


def _squarest(images: int, rows: int) -> Patch:
    """Return the patch of so many images whose height and width differ least, the width being the larger."""
    height = 1
    while height * height * 4 <= rows // images:
        height *= 2
    return Patch(images, height, rows // images // height)


def input_tiles(batch: int, height: int, width: int, branches: Sequence[Branch], patch: Patch) -> list[list[int]]:
    """Return all tiles of the gradient of the input, those of most taps first.

    A row is image, y and x, and for each branch rate, dy, dx, columns, taps and weight as in `BranchTile`. The offsets
    are where gradients are read; the weights that belong to one are those of the opposite tap.
    """
    rows = []
    for image, y, x in _corners(batch, height, width, patch):
        row = [image, y, x]
        total = 0
        for branch in branches:
            dys = visible(y, patch.height, height, branch)
            dxs = visible(x, patch.width, width, branch)
            taps = len(dys) * len(dxs)
            centre = branch.size * branch.size // 2
            row += [branch.rate, dys[0], dxs[0], len(dxs), taps, branch.first + centre - 4]
            total += taps
        rows.append((total, row))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


class Tap(NamedTuple):
    """A tap that some pixel sees, as the program of the weights' gradient reads it.

    Attributes:
        branch: Which branch.
        dy: Offset along y in pixels.
        dx: Offset along x in pixels.
        y: First row of the rectangle of pixels that see it.
        x: First column.
        height: Of the rectangle.
        width: Of the rectangle.
        weight: Index of its weights.
        by_width: Multiplier that divides a pixel's number by `width`.
        by_area: Multiplier that divides a pixel's number by `height * width`.
    """

    branch: int
    dy: int
    dx: int
    y: int
    x: int
    height: int
    width: int
    weight: int
    by_width: int
    by_area: int


def visible_taps(batch: int, height: int, width: int, branches: Sequence[Branch]) -> tuple[list[Tap], bool]:
    """Return the taps that some pixel sees, those seen by most pixels first, and whether the multipliers are exact.

    A division by an unknown width in the innermost loop costs more than the products: floor(p / d) is taken as the
    upper half of p * ceil(2^32 / d), which is exact for d > 1 as long as p times the rounding of the quotient stays
    below 2^32 (Granlund and Montgomery, Division by invariant integers using multiplication, 1994).
    """
    taps = []
    exact = True
    for number, branch in enumerate(branches):
        reach = range(-1, 2) if branch.size > 1 else range(1)
        for index, (sy, sx) in enumerate((sy, sx) for sy in reach for sx in reach):
            dy, dx = sy * branch.rate, sx * branch.rate
            rows, columns = height - abs(dy), width - abs(dx)
            if rows <= 0 or columns <= 0:
                continue
            (by_width, one), (by_area, other) = (
                _multiplier(divisor, batch * height * width) for divisor in (columns, rows * columns)
            )
            exact = exact and one and other
            taps.append(
                Tap(number, dy, dx, max(0, -dy), max(0, -dx), rows, columns, branch.first + index, by_width, by_area)
            )
    return sorted(taps, key=lambda tap: -tap.height * tap.width), exact


def executed_share(batch: int, height: int, width: int, branches: Sequence[Branch], patch: Patch) -> float:
    """Return how many products the tiles execute, pixels that are not there included, per product of dense branches."""
    taps = sum(tile.taps for tile in branch_tiles(batch, height, width, branches, patch))
    dense = sum(branch.size**2 for branch in branches) * batch * height * width
    return taps * math.prod(patch) / dense


@cache  # a captured CUDA graph reads a table wherever it was then
def branch_table(
    shape: tuple[int, int, int], branches: tuple[Branch, ...], patch: Patch, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the tiles of the forward pass, (tiles, 11), int32, and the pixels of each slot, fp32."""
    batch, height, width = shape
    rows = branch_tiles(batch, height, width, branches, patch)
    counts = [
        (min(image + patch.images, batch) - image)
        * (min(y + patch.height, height) - y)
        * (min(x + patch.width, width) - x)
        for image, y, x in _corners(batch, height, width, patch)
    ]
    return _on(rows, device), torch.tensor(counts, dtype=torch.float32).to(device)


@cache  # a captured CUDA graph reads a table wherever it was then
def input_table(
    shape: tuple[int, int, int], branches: tuple[Branch, ...], patch: Patch, device: torch.device
) -> Tensor:
    """Return the tiles of the gradient of the input, (tiles, 3 + 6 branches), int32, on a device."""
    return _on(input_tiles(*shape, branches, patch), device)


@cache  # a captured CUDA graph reads a table wherever it was then
def tap_table(shape: tuple[int, int, int], branches: tuple[Branch, ...], device: torch.device) -> tuple[Tensor, bool]:
    """Return the visible taps, (taps, 10), int32, on a device, and whether their multipliers are exact."""
    taps, exact = visible_taps(*shape, branches)
    return _on(taps, device), exact


@cache
def block_table(pixels: int, rows: int, device: torch.device) -> Tensor:
    """Return how many pixels each block of so many rows has, fp32, on a device."""
    counts = [min(rows, pixels - start) for start in range(0, pixels, rows)]
    return torch.tensor(counts, dtype=torch.float32).to(device)


def _corners(batch: int, height: int, width: int, patch: Patch) -> list[tuple[int, int, int]]:
    return [
        (image, y, x)
        for image in range(0, batch, patch.images)
        for y in range(0, height, patch.height)
        for x in range(0, width, patch.width)
    ]


def _multiplier(divisor: int, highest: int) -> tuple[int, bool]:
    """Return ceil(2^32 / divisor) as a signed 32-bit number, and whether it divides all numbers up to `highest`."""
    multiplier = -(-_INT32 // divisor)
    exact = divisor > 1 and (multiplier * divisor - _INT32) * highest < _INT32
    signed = multiplier - _INT32 if multiplier >= _INT32 // 2 else multiplier
    return (signed, True) if exact else (0, False)


def _on(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([list(row) for row in rows], dtype=torch.int32).to(device)
