"""What plots share: the theme of the page they stand in, dots for cases, and the names of those that stand apart."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Point = tuple[float, float]
"""Place in a plot, x and y."""

# Of Okabe and Ito (https://jfly.uni-koeln.de/color/), as on the sheets; both are seen on white and on black.
DOT, MARK = "#2b8cc4", "#e0601a"
# Stands for the page's text colour until the SVG is written.
INK = "#010203"
_THEME = (
    "<style>svg { color: #1b1f24 } @media (prefers-color-scheme: dark) { svg { color: #e9ecef } }"
    " @media print { svg { color: #000000 } }</style>"
)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",  # looks the same on every machine
    "svg.hashsalt": "kitsattn",  # equal data give an equal file
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}
SIZE_IN = (5.6, 3.9)
HALF_WIDTH = 0.17
"""Of a median's line, where the places of what is compared are 1 apart."""

FEW = 6
"""Up to this many cases are all named; of more cases only outliers are, at most as many."""
FENCE = 1.5
"""Cases stand apart that are further beyond the quartiles than this many interquartile ranges (Tukey)."""
_NAME_PT = 7.0
_LONGEST_NAME, _LONGEST_IN_COLUMN = 18, 14


def make_figure() -> tuple[Figure, Axes]:
    """Return a figure of the size that two abreast have on a page, with its axes."""
    figure = Figure(figsize=SIZE_IN, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def draw_legend(figure: Figure, axes: Axes) -> None:
    """Put the legend above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2 if len(labels) > 1 else 1)


def draw_dots(axes: Axes, place: float, values: Mapping[str, float]) -> dict[str, Point]:
    """Draw a dot for each case around a place on the x axis, with a line at the median, and return where they are."""
    many = len(values) > FEW
    spread = np.random.default_rng(1).uniform(-0.12, 0.12, len(values)) if many else np.zeros(len(values))
    points = {case: (place + by, value) for by, (case, value) in zip(spread.tolist(), values.items(), strict=True)}
    draw_points(axes, points)
    median = float(np.median(list(values.values())))
    # Many dots would hide the line, and the line would hide one of a few.
    above = 2.5 if many else 1.5
    axes.plot([place - HALF_WIDTH, place + HALF_WIDTH], [median, median], color=MARK, linewidth=2, zorder=above)
    return points


def draw_points(axes: Axes, points: Mapping[str, Point]) -> None:
    """Draw a dot for each case; where there are many, those that are behind others show through."""
    alpha = 0.5 if len(points) > FEW else 0.9
    x, y = zip(*points.values(), strict=True)
    axes.plot(x, y, "o", color=DOT, alpha=alpha, markersize=4.5, mew=0, clip_on=False)


def find_apart(values: Mapping[str, float]) -> list[str]:
    """Return the cases to name: all of few, or those that stand apart, the furthest first."""
    if len(values) <= FEW:
        return list(values)
    lower, upper = np.percentile(list(values.values()), [25, 75])
    beyond = {case: max(lower - value, value - upper) for case, value in values.items()}
    apart = [case for case, distance in beyond.items() if distance > FENCE * (upper - lower)]
    return sorted(apart, key=lambda case: -beyond[case])[:FEW]


def write_names(axes: Axes, points: Mapping[str, Point], *, gap_pt: float = 9.0, column: float | None = None) -> None:
    """Write names beside points, moved up where they would touch.

    Args:
        axes: Of a figure that is laid out, by `draw_without_rendering`.
        points: Case to its place.
        gap_pt: Between a point and its name, which is written towards the middle of the axes.
        column: Where on the x axis all names begin instead, one below the other.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    # In points of 1/72 inch, whatever the figure's resolution.
    scale = 72 / figure.dpi
    middle = axes.transAxes.transform((0.55, 0.5))[0] * scale
    placed = sorted(
        ((*(axes.transData.transform(point) * scale), point, name) for name, point in points.items()),
        key=lambda item: item[1],
    )
    bottom, top = (axes.transAxes.transform((0.0, end))[1] * scale for end in (0.0, 1.0))
    heights = [max(item[1], bottom + _NAME_PT) for item in placed]
    for upper, (below, above) in enumerate(pairwise(range(len(placed))), start=1):
        heights[upper] = max(heights[above], heights[below] + _NAME_PT + 1.5)
    # What was pushed beyond the top comes down again, and pushes what is below it.
    ceiling = top - _NAME_PT / 2
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - _NAME_PT - 1.5
    for (x, y, point, name), height in zip(placed, heights, strict=True):
        if column is None:
            along = gap_pt if x <= middle else -gap_pt
        else:
            along = axes.transData.transform((column, point[1]))[0] * scale - x
        axes.annotate(
            shorten(name, _LONGEST_NAME if column is None else _LONGEST_IN_COLUMN),
            point,
            xytext=(along, height - y),
            textcoords="offset points",
            ha="left" if along > 0 else "right",
            va="center",
            fontsize=_NAME_PT,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.4, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2},
        )


def shorten(name: str, longest: int = _LONGEST_NAME) -> str:
    """Make a file's name fit into a plot: of a long one both ends. An SVG may not hold control characters."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    start = longest // 3
    return printable if len(printable) <= longest else f"{printable[:start]}…{printable[start + 1 - longest :]}"


@contextmanager
def any_letter() -> Iterator[None]:
    """Keep quiet about letters that the font lacks, as a name may hold them: a box in their place is fine."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def to_svg(figure: Figure) -> bytes:
    """Return the figure as SVG on a transparent ground, its ink in the text colour of the reader's theme."""
    buffer = io.StringIO()
    with any_letter():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().replace(INK, "currentColor")
    return text.replace("<defs>", _THEME + "<defs>", 1).encode()
