"""Draws the picture of docs/kernels.md from the tiles that the kernels work on.

`python docs/generate_kernel_figures.py` writes docs/images/kernels-taps.webp.
"""

import io
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from scipy.ndimage import find_objects, label

from kitsattn.kernels.aspp.tiles import Patch, branch_tiles, choose_patch, executed_share, make_branches

BATCH, SIZE, RATES = 16, 32, (6, 12, 18)
PICTURE = Path(__file__).with_name("images") / "kernels-taps.webp"

_COLOURS = ["#e8f1f8", "#bdd9ec", "#8fbfdf", "#5aa2cf", "#2b83ba", "#12619a"]
_COUNTS = (1, 2, 3, 4, 6, 9)
"""How many taps may be visible: the products of 1, 2 or 3 along each axis."""


def taps_of_pixels(rate: int) -> np.ndarray:
    """Return how many of its nine taps each pixel sees."""
    places = np.arange(SIZE)
    along = sum(((places + step * rate >= 0) & (places + step * rate < SIZE)).astype(int) for step in (-1, 0, 1))
    return np.outer(along, along)


def taps_of_tiles(rate: int, patch: Patch) -> np.ndarray:
    """Return how many taps are executed for each pixel, by its tile."""
    taps = np.zeros((SIZE, SIZE), int)
    for tile in branch_tiles(BATCH, SIZE, SIZE, make_branches([3], [rate]), patch):
        taps[tile.y : tile.y + patch.height, tile.x : tile.x + patch.width] = tile.taps
    return taps


def main() -> None:
    """Draw seen and executed taps of the three branches."""
    wide = Patch(1, 4, 32)
    branches = make_branches([1, 3, 3, 3], [1, *RATES])
    chosen = choose_patch(BATCH, SIZE, SIZE, branches, 128)
    rows = {
        "seen by the pixel": [taps_of_pixels(rate) for rate in RATES],
        f"executed, tiles of {chosen.images} x {chosen.height} x {chosen.width}": [
            taps_of_tiles(rate, chosen) for rate in RATES
        ],
        f"executed, tiles of {wide.images} x {wide.height} x {wide.width}": [
            taps_of_tiles(rate, wide) for rate in RATES
        ],
    }
    figure = Figure(figsize=(7.6, 8.2), layout="constrained")
    grid = figure.subplots(len(rows), len(RATES))
    for axes, (name, maps) in zip(grid, rows.items(), strict=True):
        for ax, rate, taps in zip(axes, RATES, maps, strict=True):
            levels = np.searchsorted(_COUNTS, taps)
            ax.imshow(levels, cmap=ListedColormap(_COLOURS), vmin=0, vmax=len(_COLOURS) - 1)
            for level, count in enumerate(_COUNTS):
                colour = "black" if level < len(_COUNTS) // 2 else "white"
                rectangles, _ = label(levels == level)
                for ys, xs in find_objects(rectangles):
                    middle = ((xs.start + xs.stop - 1) / 2, (ys.start + ys.stop - 1) / 2)
                    ax.text(*middle, str(count), ha="center", va="center", color=colour, fontsize=9)
            ax.set_title(f"rate {rate}: {taps.mean():.2f} of 9", fontsize=10)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.add_patch(Rectangle((-0.5, -0.5), SIZE, SIZE, fill=False, color="#777777"))
        axes[0].set_ylabel(name, fontsize=10)
    shares = [executed_share(BATCH, SIZE, SIZE, branches, patch) for patch in (chosen, wide)]
    figure.suptitle(
        f"Taps of a {SIZE} x {SIZE} map. With the 1 x 1 branch {shares[0]:.0%} of the dense products are executed,\n"
        f"and {shares[1]:.0%} in tiles that lie in one image",
        fontsize=11,
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    PICTURE.parent.mkdir(exist_ok=True)
    Image.open(drawn).convert("RGB").save(PICTURE, lossless=True)


if __name__ == "__main__":
    main()
