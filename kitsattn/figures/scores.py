"""Pictures of a cohort's scores: box plots of every region, and agreement of volumes (Bland and Altman)."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kitsattn.figures.theme import (
    DOT,
    FENCE,
    FEW,
    HALF_WIDTH,
    INK,
    MARK,
    SIZE_IN,
    STYLE,
    Point,
    any_letter,
    draw_dots,
    draw_legend,
    draw_points,
    find_apart,
    make_figure,
    shorten,
    to_svg,
    write_names,
)
from kitsattn.files import atomic_path


@dataclass(frozen=True)
class ScorePanel:
    """What one box plot shows.

    Attributes:
        title: The metric with its unit, as in "HD95, mm".
        values: Region to case to value; NaN where it is not defined.
        share: Whether values are in [0, 1], 1 being the best.
    """

    title: str
    values: Mapping[str, Mapping[str, float]]
    share: bool


_PAPER = "#ffffff"
_DPI = 150
_EDGE_IN = 0.15
_TITLE_PT, _NOTE_PT = 14.0, 9.0
_LINE_HEIGHT = 1.35
_LETTER_WIDTH = 0.6
"""Of a line and of a bold letter, as multiples of the font's size."""


def plot_boxes(panel: ScorePanel) -> bytes:
    """Plot the values of each region: a dot for every case, with a box where there are more than a few.

    The box reaches from the first to the third quartile, the whiskers to the furthest cases within 1.5 times their
    distance. Cases beyond are named. Values that are not defined are counted below the region's name.

    Args:
        panel: What to plot. A region may be without any defined value.

    Returns:
        An SVG.
    """
    with rc_context(STYLE):
        figure, axes = make_figure()
        apart = _draw_panel(axes, panel)
        _explain(figure, [panel], "outside upper left")
        figure.draw_without_rendering()
        _name_cases(axes, apart)
        return to_svg(figure)


def plot_agreement(
    title: str,
    predicted_ml: Mapping[str, float],
    reference_ml: Mapping[str, float],
    *,
    bias_ml: float,
    low_ml: float,
    high_ml: float,
) -> bytes:
    """Plot how well predicted volumes agree with the reference (Bland and Altman), one dot a case.

    Args:
        title: The region.
        predicted_ml: Case to its volume.
        reference_ml: The same cases, at least one.
        bias_ml: Mean of predicted less reference volume; NaN where it is not defined, and not drawn.
        low_ml: Lower limit of agreement, likewise.
        high_ml: Upper limit of agreement, likewise.

    Returns:
        An SVG.
    """
    difference = {case: predicted_ml[case] - reference_ml[case] for case in reference_ml}
    points = {case: ((predicted_ml[case] + reference_ml[case]) / 2, difference[case]) for case in reference_ml}
    with rc_context(STYLE):
        figure, axes = make_figure()
        axes.axhline(0.0, color=INK, linewidth=0.8, alpha=0.5)
        if math.isfinite(bias_ml):
            axes.axhline(bias_ml, color=MARK, linewidth=1.6, label=f"bias: {bias_ml:+.1f} ml")
        if math.isfinite(low_ml) and math.isfinite(high_ml):
            limits = f"limits of agreement: {low_ml:+.1f} and {high_ml:+.1f} ml"
            axes.axhline(low_ml, color=MARK, linewidth=1.2, linestyle="--", label=limits)
            axes.axhline(high_ml, color=MARK, linewidth=1.2, linestyle="--")
        draw_points(axes, points)
        axes.set_title(shorten(title), loc="left", fontsize=10, fontweight="bold", parse_math=False)
        axes.set(xlabel="mean of predicted and reference volume (ml)", ylabel="predicted - reference (ml)")
        axes.margins(x=0.12, y=0.12)
        axes.grid(visible=True)
        draw_legend(figure, axes)
        figure.draw_without_rendering()
        write_names(axes, {case: points[case] for case in find_apart(difference)})
        return to_svg(figure)


def scores_sheet(path: Path, panels: Sequence[ScorePanel], *, title: str, note: str = "") -> None:
    """Draw the box plots of several metrics on one sheet, as a PNG on white.

    Args:
        path: The PNG to write, atomically; an existing one is replaced.
        panels: At least one, drawn as by `plot_boxes`, two abreast.
        title: The sheet's headline.
        note: Sentences below it, e.g. that the data are synthetic. Both stand in the PNG's metadata too.

    Raises:
        KitsattnError: If the file cannot be written.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width_in = columns * SIZE_IN[0]
    lines = [(line, _TITLE_PT, "bold") for line in _wrap(title, width_in, _TITLE_PT)]
    lines += [(line, _NOTE_PT, "normal") for line in _wrap(note, width_in, _NOTE_PT)]
    header_in = _EDGE_IN + sum(size * _LINE_HEIGHT for _, size, _ in lines) / 72
    height_in = header_in + rows * SIZE_IN[1]
    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(rect=(0.0, 0.0, 1.0, 1 - header_in / height_in))
        figure = Figure((width_in, height_in), dpi=_DPI, facecolor=_PAPER, layout=layout)
        FigureCanvasAgg(figure)
        top_in = height_in - _EDGE_IN
        for line, size, weight in lines:
            place = _EDGE_IN / width_in, top_in / height_in
            figure.text(*place, line, va="top", fontsize=size, fontweight=weight, parse_math=False)
            top_in -= size * _LINE_HEIGHT / 72
        grid = [figure.add_subplot(rows, columns, number) for number in range(1, len(panels) + 1)]
        apart = [_draw_panel(axes, panel) for axes, panel in zip(grid, panels, strict=True)]
        _explain(figure, panels, "outside lower left")
        with any_letter():
            figure.draw_without_rendering()
        for axes, groups in zip(grid, apart, strict=True):
            _name_cases(axes, groups)
        with atomic_path(path) as temporary, any_letter():
            figure.savefig(temporary, format="png", metadata={"Title": title, "Description": note})


def _draw_panel(axes: Axes, panel: ScorePanel) -> list[dict[str, Point]]:
    """Draw the boxes and dots, and return the cases to name of each region; regions are 1 apart on the x axis."""
    labels: list[str] = []
    apart: list[dict[str, Point]] = []
    lowest = math.inf
    for place, (region, values) in enumerate(panel.values.items()):
        defined = {case: value for case, value in values.items() if math.isfinite(value)}
        left_out = len(values) - len(defined)
        labels.append(shorten(region) + (f"\n{left_out} not defined" if left_out else ""))
        if not defined:
            apart.append({})
            continue
        if len(defined) > FEW:
            _draw_box(axes, place, list(defined.values()))
        points = draw_dots(axes, place, defined)
        apart.append({case: points[case] for case in find_apart(defined)})
        lowest = min(lowest, *defined.values())
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", parse_math=False)
    axes.set_xticks(range(len(labels)), labels, parse_math=False)
    # Names stand to the right of the boxes.
    axes.set_xlim(-0.4, len(labels) - 0.2)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=True, axis="y")
    if panel.share:
        axes.set_ylim(min(0.9, math.floor(10 * lowest) / 10) if math.isfinite(lowest) else 0.0, 1.0)
    elif lowest >= 0:
        axes.set_ylim(bottom=0.0)
    else:
        axes.axhline(0.0, color=INK, linewidth=0.8, alpha=0.5)
    return apart


def _draw_box(axes: Axes, place: float, values: Sequence[float]) -> None:
    line = {"color": INK, "linewidth": 0.9, "alpha": 0.7}
    axes.boxplot(
        [values],
        positions=[place],
        widths=2 * HALF_WIDTH,
        whis=FENCE,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": "none", "edgecolor": INK, "linewidth": 0.9, "alpha": 0.7},
        whiskerprops=line,
        capprops=line,
        medianprops={"linewidth": 0.0},
    )


def _name_cases(axes: Axes, apart: Sequence[Mapping[str, Point]]) -> None:
    for place, points in enumerate(apart):
        write_names(axes, points, column=place + HALF_WIDTH + 0.06)


def _explain(
    figure: Figure, panels: Sequence[ScorePanel], place: Literal["outside upper left", "outside lower left"]
) -> None:
    """Write the legend that all panels share."""
    dot = Line2D([], [], color=DOT, marker="o", linestyle="none", alpha=0.9, markersize=4.5, mew=0, label="a case")
    median = Line2D([], [], color=MARK, linewidth=2, label="median")
    label = f"quartiles; whiskers: within {FENCE:g} times their distance"
    box = Patch(facecolor="none", edgecolor=INK, linewidth=0.9, alpha=0.7, label=label)
    counts = [sum(map(math.isfinite, values.values())) for panel in panels for values in panel.values.values()]
    boxes = [box] if max(counts, default=0) > FEW else []
    figure.legend(handles=[dot, median, *boxes], loc=place, ncols=3)


def _wrap(text: str, width_in: float, size: float) -> list[str]:
    """Break a text into lines that fit across the sheet in a font of that size."""
    return textwrap.wrap(text, int((width_in - 2 * _EDGE_IN) * 72 / (_LETTER_WIDTH * size)))
