"""Plots of what a data set holds, as SVG."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kitsattn.figures.theme import (
    DOT,
    INK,
    MARK,
    SIZE_IN,
    STYLE,
    draw_dots,
    draw_legend,
    find_apart,
    make_figure,
    shorten,
    to_svg,
    write_names,
)
from kitsattn.volume.geometry import Shape, Triple

Histogram = tuple[int, Sequence[int]]
"""HU of the first count, and the number of voxels at that and every following whole HU."""

_MOST_SHAPES = 6
_BARS = 20
_BINS = 120
_WIDTHS_HU = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_TAIL = 0.005


def plot_spacing(spacings_mm: Mapping[str, Triple], target_mm: tuple[float, float]) -> bytes:
    """Plot in-plane spacing against the distance of slices, one dot a case, with the target in-plane.

    Args:
        spacings_mm: Case to its spacing, (z, y, x).
        target_mm: In-plane spacing of the prepared data, (y, x).

    Returns:
        An SVG.
    """
    with rc_context(STYLE):
        figure, axes = make_figure()
        in_plane = {case: max(y, x) for case, (_, y, x) in spacings_mm.items()}
        between = {case: z for case, (z, _, _) in spacings_mm.items()}
        # Rows and columns seldom differ; if they do, a line joins the two spacings.
        joined = [((y, z), (x, z)) for z, y, x in spacings_mm.values()]
        axes.add_collection(LineCollection(joined, colors=DOT, linewidths=1.0))
        axes.plot(list(in_plane.values()), list(between.values()), "o", color=DOT, alpha=0.5, markersize=5, mew=0)
        for value in dict.fromkeys(target_mm):
            axes.axvline(value, color=MARK, linewidth=1.5, label=f"target in-plane: {value:g} mm")
        axes.set(xlabel="in-plane spacing (mm)", ylabel="distance of slices (mm)")
        axes.margins(x=0.12, y=0.12)
        axes.set_ylim(bottom=0.0)
        axes.grid(visible=True)
        draw_legend(figure, axes)
        apart = dict.fromkeys([*find_apart(in_plane), *find_apart(between)])
        figure.draw_without_rendering()
        write_names(axes, {case: (in_plane[case], between[case]) for case in apart})
        return to_svg(figure)


def plot_sizes(shapes: Mapping[str, Shape]) -> bytes:
    """Plot how many slices the scans have, and how large they are in-plane.

    Args:
        shapes: Case to the shape of its scan, (z, y, x).

    Returns:
        An SVG.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        slices = [depth for depth, _, _ in shapes.values()]
        width = math.ceil((max(slices) - min(slices) + 1) / _BARS)
        left.hist(slices, bins=np.arange(min(slices), max(slices) + width + 1, width) - 0.5, color=DOT, alpha=0.75)
        left.plot(slices, [0] * len(slices), "|", color=INK, markersize=7, alpha=0.5, clip_on=False)
        left.set(xlabel="number of slices", ylabel="cases")
        left.margins(x=0.1)
        left.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        left.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        left.grid(visible=True, axis="y")
        found = Counter(f"{height} x {width}" for _, height, width in shapes.values()).most_common()
        rows = dict(found[:_MOST_SHAPES])
        if len(found) > _MOST_SHAPES:
            rows["others"] = sum(count for _, count in found[_MOST_SHAPES:])
        bars = right.barh(list(rows), list(rows.values()), color=DOT, alpha=0.75, height=0.6)
        right.bar_label(bars, padding=3)
        right.set(xlabel="cases", title="rows x columns")
        right.title.set_fontsize(9)
        right.invert_yaxis()
        right.set_ylim(max(len(rows), 4) - 0.5, -0.5)
        right.set_xlim(0, 1.2 * max(rows.values()))
        right.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        right.tick_params(axis="y", length=0)
        return to_svg(figure)


def plot_intensities(
    histograms: Mapping[str, Histogram], *, clip_hu: tuple[float, float], mean_hu: float, std_hu: float
) -> bytes:
    """Plot the values of the foreground, pooled so that every case weighs the same, with a thin line for each case.

    Args:
        histograms: Case to the histogram of its labelled voxels, at least one; none is empty.
        clip_hu: What HU are clipped to.
        mean_hu: What is subtracted.
        std_hu: What is divided by.

    Returns:
        An SVG.
    """
    lowest = min(first for first, _ in histograms.values())
    highest = max(first + len(counts) for first, counts in histograms.values())
    shares = np.zeros((len(histograms), highest - lowest))
    for row, (first, counts) in zip(shares, histograms.values(), strict=True):
        row[first - lowest : first - lowest + len(counts)] = np.array(counts) / sum(counts)
    low, high = _percentiles(shares.mean(axis=0), lowest)
    ends = [_percentiles(row, lowest) for row in shares]
    # Wide enough for every single case: one that is no CT in HU shall be seen.
    start = math.floor(min(clip_hu[0], *(first for first, _ in ends))) - 10
    stop = math.ceil(max(clip_hu[1], *(last for _, last in ends))) + 10
    width = next((width for width in _WIDTHS_HU if (stop - start) / width <= _BINS), _WIDTHS_HU[-1])
    edges = np.arange(start, stop + width, width)
    middles = (edges[:-1] + edges[1:]) / 2
    lines = dict(zip(histograms, (_binned(row, lowest, edges) for row in shares), strict=True))
    mean = np.mean(list(lines.values()), axis=0)
    apart = find_apart({case: float(middles @ line) for case, line in lines.items()})
    with rc_context(STYLE):
        figure, axes = make_figure()
        for cases, alpha in ((lines.keys() - set(apart), max(0.15, min(0.6, 5 / len(lines)))), (apart, 0.9)):
            paths = [np.stack([middles, lines[case]], axis=1) for case in lines if case in cases]
            axes.add_collection(LineCollection(paths, colors=DOT, linewidths=0.7, alpha=alpha))
        axes.plot([], [], color=DOT, linewidth=0.7, label="a case")
        axes.fill_between(middles, mean, color=DOT, alpha=0.3, linewidth=0)
        axes.plot(middles, mean, color=DOT, linewidth=2.0, label="all cases, each with the same weight")
        axes.axvspan(clip_hu[0], clip_hu[1], color=INK, alpha=0.05, linewidth=0)
        for value, label in ((clip_hu[0], f"clipped to {clip_hu[0]:g} to {clip_hu[1]:g} HU"), (clip_hu[1], None)):
            axes.axvline(value, color=INK, linewidth=1.2, label=label)
        for value, label in ((low, f"0.5 % and 99.5 % are below {low} and {high} HU"), (high, None)):
            axes.axvline(value, color=MARK, linewidth=1.2, linestyle="--", label=label)
        axes.axvline(mean_hu, color=MARK, linewidth=1.6, label=f"mean {mean_hu:.1f} HU, deviation {std_hu:.1f} HU")
        axes.set(xlabel="value of labelled voxels (HU)", ylabel=f"share of voxels (% in {width} HU)")
        axes.set_xlim(start, stop)
        axes.set_ylim(0.0, 1.08 * max(float(line.max()) for line in lines.values()))
        axes.grid(visible=True)
        draw_legend(figure, axes)
        figure.draw_without_rendering()
        peaks = {case: int(lines[case].argmax()) for case in apart}
        write_names(axes, {case: (float(middles[peak]), float(lines[case][peak])) for case, peak in peaks.items()})
        return to_svg(figure)


def plot_volumes(volumes_ml: Mapping[str, Mapping[str, float]]) -> bytes:
    """Plot the volume of each class, one dot a case, on a logarithmic axis; cases that stand apart are named.

    Args:
        volumes_ml: Class to case to volume. Cases without the class, 0 ml, are counted below its name.

    Returns:
        An SVG.
    """
    with rc_context(STYLE):
        figure, axes = make_figure()
        axes.set_yscale("log")
        labels, dots = [], []
        for place, (name, volumes) in enumerate(volumes_ml.items()):
            present = {case: ml for case, ml in volumes.items() if ml > 0}
            absent = len(volumes) - len(present)
            labels.append(shorten(name) + (f"\nnone in {absent} of {len(volumes)}" if absent else ""))
            if not present:
                continue
            points = draw_dots(axes, place, present)
            apart = find_apart({case: math.log(ml) for case, ml in present.items()})
            dots.append({case: points[case] for case in apart})
        axes.plot([], [], color=MARK, linewidth=2, label="median")
        axes.set_xticks(range(len(labels)), labels, parse_math=False)
        axes.set_xlim(-0.45, len(labels) - 0.35)
        axes.set_ylabel("volume (ml)")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.margins(y=0.1)
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=True, axis="y")
        draw_legend(figure, axes)
        figure.draw_without_rendering()
        for named in dots:
            write_names(axes, named, gap_pt=40.0)
        return to_svg(figure)


def _percentiles(shares: NDArray[np.float64], lowest: int) -> tuple[int, int]:
    """Return the whole HU below which 0.5 % and 99.5 % of a histogram from `lowest` on are."""
    cumulated = np.cumsum(shares)
    low, high = np.searchsorted(cumulated, [_TAIL * cumulated[-1], (1 - _TAIL) * cumulated[-1]])
    return lowest + int(low), lowest + int(high)


def _binned(shares: NDArray[np.float64], lowest: int, edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum shares at whole HU from `lowest` on into bins, in percent; what is beyond counts in the outermost ones."""
    bins = np.clip(np.searchsorted(edges, lowest + np.arange(len(shares)), side="right") - 1, 0, len(edges) - 2)
    return np.bincount(bins, weights=100 * shares, minlength=len(edges) - 1).astype(np.float64)
