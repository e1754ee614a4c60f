"""Contours of label maps on CT slices, as one sheet of axial slices and a coronal view."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from kitsattn.figures.slices import Labels, SheetSlices, choose_slices
from kitsattn.files import atomic_path
from kitsattn.labels import BACKGROUND, TUMOUR
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume


@dataclass(frozen=True)
class _Pen:
    """How one label map is outlined."""

    source: str
    kidney_colour: str
    tumour_colour: str
    width: float
    line: Literal["solid"] | tuple[float, tuple[float, float]]


@dataclass(frozen=True)
class _View:
    """One panel: a slice of the scan and of the label maps on it, rows from top to bottom of the picture."""

    caption: str
    scan: NDArray[Any]
    outlines: tuple[tuple[_Pen, Labels], ...]
    spacing_mm: tuple[float, float]


# Sky blue and vermilion of Okabe and Ito (https://jfly.uni-koeln.de/color/), the latter brightened for a dark ground:
# people with any of the common colour vision deficiencies tell them apart. The reference is lighter and dashed, so
# that it is seen where it lies on the prediction.
_PREDICTED = _Pen("predicted", "#56b4e9", "#f26b1d", 1.8, "solid")
_REFERENCE = _Pen("reference", "#ffffff", "#ffe14d", 1.1, (0.0, (3.0, 2.0)))

_WINDOW_HU = (-160.0, 240.0)
_SCALE_BAR_MM = 50.0
_PAPER, _TEXT, _FAINT, _NOTE = "#101214", "#f4f4f4", "#b4b9c0", "#ffd34d"
_COLUMNS = 3
_SHEET_IN, _EDGE_IN, _PANEL_IN, _HIGHEST_PANEL_IN = 15.0, 0.2, 4.77, 6.5
_HEADER_IN, _CAPTION_IN, _FOOTER_IN = 1.5, 0.4, 0.5
_FOOTNOTE = (
    f"Window {_WINDOW_HU[0]:.0f} to {_WINDOW_HU[1]:.0f} HU.  R and L: the patient's right and left."
    f"  z grows to Superior, y to Posterior.  Bar: {_SCALE_BAR_MM / 10:.0f} cm."
)


def overlay_sheet(
    path: Path,
    scan: Volume,
    predicted: Labels | None,
    reference: Labels | None,
    *,
    title: str,
    note: str = "",
) -> None:
    """Draw the outlines of kidney and tumour on slices of a scan, as a PNG.

    The sheet has axial views and one coronal view, chosen by `choose_slices` and drawn in the radiological
    convention: the patient's right on the left. One outline is around all that is labelled, one around the tumour;
    the prediction's are solid, the reference's dashed.

    Args:
        path: The PNG to write, atomically; an existing one is replaced.
        scan: The CT in HU.
        predicted: Predicted labels on the scan's grid, (z, y, x); None if there are none to show.
        reference: Reference labels, the same.
        title: The sheet's headline, e.g. the case's id; "no kidney found" is added to it where that is so.
        note: A line below it, e.g. that the data are synthetic. Both stand in the PNG's metadata too.

    Raises:
        KitsattnError: If the file cannot be written.
        ValueError: If a label map has another shape than the scan.
    """
    outlines = [
        (pen, labels) for pen, labels in ((_PREDICTED, predicted), (_REFERENCE, reference)) if labels is not None
    ]
    for pen, labels in outlines:
        if labels.shape != scan.array.shape:
            msg = f"a {pen.source} label map of shape {labels.shape} on a scan of shape {scan.array.shape}"
            raise ValueError(msg)
    slices = choose_slices([labels for _, labels in outlines], scan.geometry)
    views = [_axial_view(scan, outlines, slices, z) for z in slices.axial]
    views.append(_coronal_view(scan, outlines, slices))
    figure = _draw_panels(views)
    headline = f"{title}: no kidney found" if outlines and not slices.kidney_found else title
    _write_around(figure, headline, note, [pen for pen, _ in outlines])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Title": headline, "Description": note})


def _axial_view(scan: Volume, outlines: Sequence[tuple[_Pen, Labels]], slices: SheetSlices, z: int) -> _View:
    _, rows, columns = slices.box
    depth, height, width = scan.geometry.shape
    superior_mm = _world_mm(scan.geometry, (z, (height - 1) / 2, (width - 1) / 2))[0]
    return _View(
        f"axial {z + 1} of {depth},  z = {superior_mm:.1f} mm",
        scan.array[z, rows, columns],
        tuple((pen, labels[z, rows, columns]) for pen, labels in outlines),
        scan.geometry.spacing_mm[1:],
    )


def _coronal_view(scan: Volume, outlines: Sequence[tuple[_Pen, Labels]], slices: SheetSlices) -> _View:
    levels, _, columns = slices.box
    y = slices.coronal
    depth, height, width = scan.geometry.shape
    posterior_mm = _world_mm(scan.geometry, ((depth - 1) / 2, y, (width - 1) / 2))[1]
    z_step, _, x_step = scan.geometry.spacing_mm
    return _View(
        f"coronal {y + 1} of {height},  y = {posterior_mm:.1f} mm",
        # z grows upwards in the patient, rows grow downwards in the picture.
        scan.array[levels, y, columns][::-1],
        tuple((pen, labels[levels, y, columns][::-1]) for pen, labels in outlines),
        (z_step, x_step),
    )


def _world_mm(geometry: Geometry, index: tuple[float, float, float]) -> NDArray[np.float64]:
    steps = np.array(geometry.spacing_mm) * np.array(index)
    world: NDArray[np.float64] = np.array(geometry.origin_mm) + np.array(geometry.direction) @ steps
    return world


def _draw_panels(views: Sequence[_View]) -> Figure:
    sizes = [(view.scan.shape[0] * view.spacing_mm[0], view.scan.shape[1] * view.spacing_mm[1]) for view in views]
    heights = [min(_PANEL_IN * height_mm / width_mm, _HIGHEST_PANEL_IN) for height_mm, width_mm in sizes]
    rows = [max(heights[start : start + _COLUMNS]) for start in range(0, len(heights), _COLUMNS)]
    total_in = _HEADER_IN + sum(rows) + _CAPTION_IN * (len(rows) - 1) + _FOOTER_IN
    figure = Figure(figsize=(_SHEET_IN, total_in), dpi=100, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows),
        _COLUMNS,
        height_ratios=rows,
        left=_EDGE_IN / _SHEET_IN,
        right=1 - _EDGE_IN / _SHEET_IN,
        top=1 - _HEADER_IN / total_in,
        bottom=_FOOTER_IN / total_in,
        wspace=0.03,
        hspace=_CAPTION_IN * len(rows) / sum(rows),
    )
    for index, view in enumerate(views):
        _draw_view(figure.add_subplot(grid[divmod(index, _COLUMNS)]), view)
    return figure


def _draw_view(axes: Axes, view: _View) -> None:
    rows, columns = view.scan.shape
    height_mm, width_mm = rows * view.spacing_mm[0], columns * view.spacing_mm[1]
    low, high = _WINDOW_HU
    axes.set_axis_off()
    axes.set_title(view.caption, color=_TEXT, fontsize=11, pad=4)
    # Positions are in mm from the picture's top left corner, so that anisotropic voxels have their true shape.
    extent = (0.0, width_mm, height_mm, 0.0)
    axes.imshow(view.scan, cmap="gray", vmin=low, vmax=high, extent=extent, aspect="equal", interpolation="bilinear")
    for pen, labels in view.outlines:
        _draw_outline(axes, labels != BACKGROUND, view.spacing_mm, pen, pen.kidney_colour)
        _draw_outline(axes, labels == TUMOUR, view.spacing_mm, pen, pen.tumour_colour)
    edged = [withStroke(linewidth=3.0, foreground=_PAPER)]
    for side, x in (("R", 0.025), ("L", 0.975)):
        text = axes.text(x, 0.5, side, color=_TEXT, ha="center", va="center", transform=axes.transAxes)
        text.set(fontsize=13, fontweight="bold", path_effects=edged)
    bar_start_mm, bar_y_mm = 0.03 * width_mm, 0.95 * height_mm
    (bar,) = axes.plot([bar_start_mm, bar_start_mm + _SCALE_BAR_MM], [bar_y_mm, bar_y_mm], color=_TEXT, linewidth=2.5)
    bar.set_path_effects([withStroke(linewidth=5.0, foreground=_PAPER)])
    axes.set_xlim(0.0, width_mm)
    axes.set_ylim(height_mm, 0.0)


def _draw_outline(axes: Axes, mask: NDArray[np.bool_], spacing_mm: tuple[float, float], pen: _Pen, colour: str) -> None:
    # Older releases of matplotlib, which we allow, warn of a contour of nothing.
    if not mask.any():
        return
    # A rim of background closes the outlines of what touches the picture's edge.
    rimmed = np.pad(mask, 1).astype(np.float32)
    y_mm = (np.arange(rimmed.shape[0]) - 0.5) * spacing_mm[0]
    x_mm = (np.arange(rimmed.shape[1]) - 0.5) * spacing_mm[1]
    axes.contour(x_mm, y_mm, rimmed, levels=[0.5], colors=[colour], linewidths=pen.width, linestyles=[pen.line])


def _write_around(figure: Figure, headline: str, note: str, pens: Sequence[_Pen]) -> None:
    height_in = figure.get_figheight()
    left = _EDGE_IN / _SHEET_IN
    for text, down_in, colour, size, weight in (
        (headline, 0.3, _TEXT, 17, "bold"),
        (note, 0.65, _NOTE, 12, "normal"),
        (_FOOTNOTE, height_in - 0.2, _FAINT, 10, "normal"),
    ):
        # A file's name may hold dollar signs; they are no formula.
        y = 1 - down_in / height_in
        figure.text(left, y, text, color=colour, fontsize=size, fontweight=weight, va="center", parse_math=False)
    lines = [
        Line2D([], [], color=colour, linewidth=pen.width, linestyle=pen.line, label=f"{region}, {pen.source}")
        for pen in pens
        for region, colour in (("kidney and tumour", pen.kidney_colour), ("tumour", pen.tumour_colour))
    ]
    if lines:
        figure.legend(
            handles=lines,
            loc="upper left",
            bbox_to_anchor=(left, 1 - 0.9 / height_in),
            borderaxespad=0.0,
            borderpad=0.0,
            ncols=len(lines),
            frameon=False,
            labelcolor=_TEXT,
            fontsize=11,
        )
