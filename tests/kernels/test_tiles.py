"""How the branches are cut into tiles: what is skipped is nothing but padding, and as much as is said."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kitsattn.kernels.aspp.tiles import (
    Patch,
    Tile,
    branch_tiles,
    choose_patch,
    executed_share,
    input_tiles,
    make_branches,
    visible_taps,
)

RATES = [1, 6, 12, 18]
SIZES = [1, 3, 3, 3]


@given(
    batch=st.integers(1, 40),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    rate=st.integers(1, 25),
    rows=st.sampled_from([16, 32, 128]),
)
def test_every_tap_that_a_pixel_sees_is_in_its_tile(batch: int, height: int, width: int, rate: int, rows: int) -> None:
    """And every pixel of every image is in exactly one tile of each branch."""
    branches = make_branches([1, 3], [1, rate])
    patch = choose_patch(batch, height, width, branches, rows)
    assert patch.images * patch.height * patch.width == rows
    seen = torch.zeros(2, batch, height, width, dtype=torch.int64)
    for tile in branch_tiles(batch, height, width, branches, patch):
        images = range(tile.image, min(tile.image + patch.images, batch))
        lines = range(tile.y, min(tile.y + patch.height, height))
        columns = range(tile.x, min(tile.x + patch.width, width))
        seen[tile.branch, images.start : images.stop, lines.start : lines.stop, columns.start : columns.stop] += 1
        dys = range(tile.dy, tile.dy + tile.taps // tile.columns)
        dxs = range(tile.dx, tile.dx + tile.columns)
        if tile.branch == 0:
            assert (list(dys), list(dxs), tile.weight + 4) == ([0], [0], 0)
            continue
        assert tile.weight == 1
        for step in (-1, 0, 1):
            assert (step in dys) >= any(0 <= y + step * rate < height for y in lines)
            assert (step in dxs) >= any(0 <= x + step * rate < width for x in columns)
        # Visible offsets are skipped only at the ends, and none is executed beyond them.
        for steps, places, length in ((dys, lines, height), (dxs, columns, width)):
            for end in (steps[0], steps[-1]):
                assert end == 0 or any(0 <= place + end * rate < length for place in places)
    assert (seen == 1).all()


@given(batch=st.integers(1, 6), height=st.integers(1, 12), width=st.integers(1, 12), rate=st.integers(1, 14))
def test_rectangles_of_the_weights_gradient_are_exact(batch: int, height: int, width: int, rate: int) -> None:
    """Each tap's rectangle holds the pixels that see it, and no other; the multipliers divide as // does."""
    taps, exact = visible_taps(batch, height, width, make_branches([1, 3], [1, rate]))
    assert taps == sorted(taps, key=lambda tap: -tap.height * tap.width)
    assert len({(tap.branch, tap.weight) for tap in taps}) == len(taps)
    inside = {
        (branch, dy, dx): [
            (y, x)
            for y in range(height)
            for x in range(width)
            if 0 <= y + dy * rate < height and 0 <= x + dx * rate < width
        ]
        for branch, steps in ((0, [0]), (1, [-1, 0, 1]))
        for dy in steps
        for dx in steps
    }
    assert len(taps) == sum(bool(pixels) for pixels in inside.values())
    for tap in taps:
        pixels = inside[tap.branch, tap.dy // rate, tap.dx // rate]
        assert pixels == [(y, x) for y in range(tap.y, tap.y + tap.height) for x in range(tap.x, tap.x + tap.width)]
        for divisor, multiplier in ((tap.width, tap.by_width), (tap.width * tap.height, tap.by_area)):
            if exact:
                numbers = range(batch * height * width)
                assert [n * (multiplier % 2**32) >> 32 for n in numbers] == [n // divisor for n in numbers]
    assert exact == all(tap.width > 1 for tap in taps)


def test_tiles_of_most_taps_come_first() -> None:
    """So that the last ones to end are short."""
    branches = make_branches(SIZES, RATES)
    taps = [tile.taps for tile in branch_tiles(16, 32, 32, branches, Patch(16, 2, 4))]
    assert taps == sorted(taps, reverse=True)
    totals = [sum(row[7::6]) for row in input_tiles(16, 32, 32, branches, Patch(16, 2, 4))]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize(
    ("size", "rates", "patch", "share"),
    [
        (32, [1, 6, 12, 18], Patch(16, 2, 4), 0.608),
        (32, [1, 6, 12, 18], Patch(1, 4, 32), 0.786),
        (64, [1, 6, 12, 18], Patch(16, 2, 4), 0.788),
        (64, [1, 12, 24, 36], Patch(16, 2, 4), 0.588),
        (16, [1, 6, 12, 18], Patch(16, 2, 4), 0.353),
    ],
)
def test_skipping_saves_what_is_said(size: int, rates: list[int], patch: Patch, share: float) -> None:
    """The share of the dense products that is executed, at the sizes of the network; by arithmetic."""
    assert executed_share(16, size, size, make_branches(SIZES, rates), patch) == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize(
    ("batch", "patch", "share"),
    [
        (1, (1, 8, 16), 0.768),
        (2, (2, 8, 8), 0.723),
        (5, (1, 8, 16), 0.768),
        (12, (4, 4, 8), 0.674),
        (16, (16, 2, 4), 0.608),
        (17, (2, 8, 8), 0.766),
        (96, (16, 2, 4), 0.608),
    ],
)
def test_patches_span_the_batch(batch: int, patch: tuple[int, int, int], share: float) -> None:
    """Up to 16 images, and fewer where patches would be partly empty."""
    branches = make_branches(SIZES, RATES)
    chosen = choose_patch(batch, 32, 32, branches, 128)
    assert chosen == patch
    assert executed_share(batch, 32, 32, branches, chosen) == pytest.approx(share, abs=6e-4)


def test_empty_places_of_a_patch_count() -> None:
    """Of 16 images in a patch one is there: sixteen times the products."""
    branches = make_branches([1], [1])
    assert executed_share(1, 4, 4, branches, Patch(16, 2, 4)) == 16


def test_columns_of_a_tile_divide_the_channels() -> None:
    """256 columns become 64 where there are 192 channels."""
    assert [Tile(128, 256, 64).fit(channels).columns for channels in (64, 128, 192, 512)] == [64, 128, 64, 256]
