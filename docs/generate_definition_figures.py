"""Draws the picture of docs/surface-distances.md: one pair of regions in each definition of a surface.

`python docs/generate_definition_figures.py` writes docs/images/surface-definitions.webp. All numbers in it are computed
here.
"""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

from kitsattn.evaluate.definition import Definition
from kitsattn.evaluate.surface import (
    Surface,
    SurfaceDistances,
    average_distance,
    find_distances,
    find_surface,
    hausdorff_95,
    surface_dice,
)
from kitsattn.volume.geometry import Triple

PICTURE = Path(__file__).with_name("images") / "surface-definitions.webp"
SPACING_MM: Triple = (3.0, 2.0, 1.0)
TOLERANCE_MM = 1.0
ORANGE, BLUE, GREY = "#f26b1d", "#0072b2", "#777777"
DOT = 26
"""Area of the dot of an element of 1 mm2, in square points."""


def make_regions() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return a prediction and a reference that is moved by a column and has a bump, alike in three slices."""
    prediction, reference = np.zeros((2, 3, 6, 8), bool)
    prediction[:, 1:4, 1:6] = True
    reference[:, 1:4, 2:7] = True
    reference[:, 4, 3] = True
    return prediction, reference


def measure(definition: Definition) -> SurfaceDistances:
    """Return the distances of the two regions."""
    prediction, reference = (find_surface(mask, SPACING_MM, definition=definition) for mask in make_regions())
    return find_distances(prediction, reference, SPACING_MM)


def dots_of(surface: Surface) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where a surface has elements in the middle slice, (elements, 2) in mm along y and x, and their weights.

    Elements between voxels are those between the middle slice and the next. They lie half a voxel before the centre of
    the voxel that has their number.
    """
    between = surface.definition == Definition.surface_distance
    chosen = surface.places[:, 0] == (2 if between else 1)
    places = surface.places[chosen, 1:] - (0.5 if between else 0.0)
    return places * SPACING_MM[1:], surface.weights[chosen]


def show_regions(ax: Axes) -> None:
    """Draw the voxels of the middle slice."""
    _, height, width = SPACING_MM
    for mask, colour in zip(make_regions(), (ORANGE, BLUE), strict=True):
        for y, x in np.argwhere(mask[1]):
            corner = ((x - 0.5) * width, (y - 0.5) * height)
            ax.add_patch(Rectangle(corner, width, height, facecolor=colour, alpha=0.16, linewidth=0))
    _, rows, columns = make_regions()[0].shape
    for row in range(rows + 1):
        ax.axhline((row - 0.5) * height, color="#dddddd", linewidth=0.7, zorder=0)
    for column in range(columns + 1):
        ax.axvline((column - 0.5) * width, color="#dddddd", linewidth=0.7, zorder=0)
    ax.set_xlim(0, (columns - 1) * width)
    ax.set_ylim((rows - 1) * height, 0)
    ax.set_aspect("equal")
    ax.set_axis_off()


def show_elements(ax: Axes, distances: SurfaceDistances) -> None:
    """Draw the elements, as large as they weigh, and a line to the nearest of the other surface where that is away."""
    prediction, reference = dots_of(distances.prediction), dots_of(distances.reference)
    for (places, _), (others, _), colour in ((prediction, reference, ORANGE), (reference, prediction, BLUE)):
        for place, other in zip(places, others[KDTree(others).query(places)[1]], strict=True):
            ax.plot(*np.array([place, other]).T[::-1], color=colour, linewidth=1.6, zorder=1)
    (y, x), weights = reference[0].T, reference[1]
    ax.scatter(x, y, s=DOT * weights, color=BLUE, linewidth=0, zorder=2)
    for row, column, weight in zip(y, x, weights, strict=True):
        ax.annotate(f"{weight:.3g}", (column, row), (6, 8), textcoords="offset points", fontsize=9, color=BLUE)
    y, x = prediction[0].T
    ax.scatter(x, y, s=DOT * prediction[1], facecolor="none", edgecolor=ORANGE, linewidth=1.8, zorder=3)


def describe(definition: Definition) -> str:
    """Return a line with the scores in a definition."""
    distances = measure(definition)
    return (
        f"{definition}: HD95 {hausdorff_95(distances):.2f} mm, ASSD {average_distance(distances):.3f} mm,"
        f" surface Dice {surface_dice(distances, TOLERANCE_MM):.3f}"
    )


def main() -> None:
    """Draw both kinds of surface, and write the scores under each."""
    figure = Figure(figsize=(10, 6.6), layout="constrained", facecolor="white")
    panels = (
        ("Between voxels: an element counts by its area, in mm²", (Definition.surface_distance,)),
        ("Border voxels: each counts 1", (Definition.medpy, Definition.monai)),
    )
    for ax, (title, definitions) in zip(figure.subplots(1, 2), panels, strict=True):
        show_regions(ax)
        show_elements(ax, measure(definitions[0]))
        ax.set_title(title, fontsize=12)
        lines = "\n".join(describe(definition) for definition in definitions)
        ax.text(0.5, -0.02, lines, transform=ax.transAxes, ha="center", va="top", fontsize=10, linespacing=1.4)
    handles = [
        Line2D([], [], marker="o", linestyle="none", markerfacecolor="none", color=ORANGE, label="prediction"),
        Line2D([], [], marker="o", linestyle="none", color=BLUE, label="reference, with its weights"),
        Line2D([], [], color=GREY, label="to the nearest of the other"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight", pad_inches=0.15)
    Image.open(drawn).convert("RGB").save(PICTURE, lossless=True)


if __name__ == "__main__":
    main()
