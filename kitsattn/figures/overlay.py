"""Contours of label maps on CT slices: sheets of axial slices and a coronal view."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from kitsattn.figures.slices import Labels, SheetSlices, choose_slices
from kitsattn.labels import BACKGROUND, CYST, LABEL_COLOURS, TUMOUR
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume


@dataclass(frozen=True)
class Pen:
    """How one label map is outlined.

    Attributes:
        source: Where its labels come from, for the legend; empty where there is one source only.
        kidney_colour: Of the outline around all that is labelled.
        tumour_colour: Of the outline around tumours.
        cyst_colour: Of the outline around cysts.
        width: Of all outlines, in points.
        line: Solid, or the dashes as matplotlib describes them.
    """

    source: str
    kidney_colour: str
    tumour_colour: str
    cyst_colour: str
    width: float
    line: Literal["solid"] | tuple[float, tuple[float, float]]


@dataclass(frozen=True)
class View:
    """One panel: a slice of a scan and of the label maps on it.

    Attributes:
        caption: What stands above it.
        scan: HU, (rows, columns), from top to bottom and from left to right of the picture.
        outlines: Label maps of the same shape, with their pens.
        spacing_mm: Distance of rows and of columns.
    """

    caption: str
    scan: NDArray[Any]
    outlines: tuple[tuple[Pen, Labels], ...]
    spacing_mm: tuple[float, float]


_COLOURS = LABEL_COLOURS["kidney"], LABEL_COLOURS["tumour"], LABEL_COLOURS["cyst"]
_PREDICTED = Pen("predicted", *_COLOURS, 1.8, "solid")
# Lighter and dashed, so that it is seen where it is on the prediction.
_REFERENCE = Pen("reference", "#ffffff", "#ffe14d", "#c9f7c0", 1.1, (0.0, (3.0, 2.0)))
LABELLED = Pen("", *_COLOURS, 1.4, "solid")
"""For the only label map of a picture."""


@dataclass(frozen=True)
class _Layout:
    """How a sheet is laid out, in inches.

    Attributes:
        width_in: Of the sheet.
        columns: Panels in a row.
        highest_in: Most that a panel may be high.
        level: Whether every row is that high, so that all sheets have one size.
        header_in: Height of what stands above the first row's captions.
        caption_in: Height of a row's captions.
        footer_in: Height of what stands below the last row.
        fontsize: Of captions, in points.
    """

    width_in: float
    columns: int
    highest_in: float
    level: bool
    header_in: float
    caption_in: float
    footer_in: float
    fontsize: float


_SHEET = _Layout(15.0, 3, 6.5, level=False, header_in=1.1, caption_in=0.4, footer_in=0.5, fontsize=11.0)
_COMPACT = _Layout(9.0, 2, 3.15, level=True, header_in=0.38, caption_in=0.27, footer_in=0.06, fontsize=9.0)

_WINDOW_HU = (-160.0, 240.0)
_SCALE_BAR_MM = 50.0
_PAPER, _TEXT, _FAINT, _NOTE = "#101214", "#f4f4f4", "#b4b9c0", "#ffd34d"
COMPACT_SIZE = (900, 728)
"""Width and height, in pixels, of a compact sheet of four views."""
_EDGE_IN = 0.2
_GAP = 0.03
_DPI = 100
# Smaller files show blocks around the contours; method 2 packs nearly as well as the default in half the time.
_WEBP = {"quality": 72, "method": 2}
_FOOTNOTE = (
    f"Window {_WINDOW_HU[0]:.0f} to {_WINDOW_HU[1]:.0f} HU.  R and L: the patient's right and left."
    f"  z grows to Superior, y to Posterior.  Bar: {_SCALE_BAR_MM / 10:.0f} cm."
)


def overlay_sheet(
    scan: Volume,
    predicted: Labels | None,
    reference: Labels | None,
    *,
    title: str,
    note: str = "",
    parts: bool = True,
) -> bytes:
    """Draw the outlines of kidney and tumour on slices of a scan.

    The sheet has axial views and one coronal view, chosen by `choose_slices` and drawn in the radiological
    convention: the patient's right on the left. One outline is around all that is labelled, one around the tumour,
    one around cysts where they are labelled; the prediction's are solid, the reference's dashed.

    Args:
        scan: The CT in HU.
        predicted: Predicted labels on the scan's grid, (z, y, x); None if there are none to show.
        reference: Reference labels, the same.
        title: The sheet's headline, e.g. the case's id; "no kidney found" is added to it where that is so.
        note: A line below it, e.g. that the data are synthetic. Both stand in the PNG's metadata too.
        parts: Whether labels are those of KiTS; of other ones there is one outline, around all of them.

    Returns:
        A PNG.

    Raises:
        ValueError: If a label map has another shape than the scan.
    """
    outlines = [
        (pen, labels if parts else (labels != BACKGROUND).astype(np.uint8))
        for pen, labels in ((_PREDICTED, predicted), (_REFERENCE, reference))
        if labels is not None
    ]
    for pen, labels in outlines:
        if labels.shape != scan.array.shape:
            msg = f"a {pen.source} label map of shape {labels.shape} on a scan of shape {scan.array.shape}"
            raise ValueError(msg)
    slices = choose_slices([labels for _, labels in outlines], scan.geometry)
    views = [_axial_view(scan, outlines, slices, z) for z in slices.axial]
    views.append(_coronal_view(scan, outlines, slices))
    figure = _draw_panels(views, _SHEET)
    headline = f"{title}: no {'kidney' if parts else 'label'} found" if outlines and not slices.kidney_found else title
    height_in = figure.get_figheight()
    for text, down_in, colour, size, weight in (
        (headline, 0.3, _TEXT, 17, "bold"),
        (note, 0.65, _NOTE, 12, "normal"),
        (_FOOTNOTE, height_in - 0.2, _FAINT, 10, "normal"),
    ):
        _write(figure, text, down_in, color=colour, fontsize=size, fontweight=weight)
    _draw_legend(figure, views, "upper left", (_EDGE_IN, 0.9), fontsize=11, parts=parts)
    return _to_bytes(figure, format="png", metadata={"Title": headline, "Description": note})


def compact_sheet(views: Sequence[View], *, title: str) -> bytes:
    """Draw up to four views two abreast as a small WebP, 900 pixels wide; all sheets of four have the same size.

    Args:
        views: What to draw.
        title: The sheet's headline, one line.

    Returns:
        A WebP.
    """
    figure = _draw_panels(views, _COMPACT)
    _write(figure, title, 0.22, color=_TEXT, fontsize=12, fontweight="bold")
    _draw_legend(figure, views, "upper right", (_COMPACT.width_in - _EDGE_IN, 0.14), fontsize=9)
    return _to_bytes(figure, format="webp", pil_kwargs=_WEBP)


def _to_bytes(figure: Figure, **settings: Any) -> bytes:  # noqa: ANN401 - matplotlib's
    picture = BytesIO()
    with warnings.catch_warnings():
        # A name may hold letters that the font lacks: a box in their place is fine.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(picture, **settings)
    return picture.getvalue()


def _axial_view(scan: Volume, outlines: Sequence[tuple[Pen, Labels]], slices: SheetSlices, z: int) -> View:
    _, rows, columns = slices.box
    depth, height, width = scan.geometry.shape
    superior_mm = _world_mm(scan.geometry, (z, (height - 1) / 2, (width - 1) / 2))[0]
    return View(
        f"axial {z + 1} of {depth},  z = {superior_mm:.1f} mm",
        scan.array[z, rows, columns],
        tuple((pen, labels[z, rows, columns]) for pen, labels in outlines),
        scan.geometry.spacing_mm[1:],
    )


def _coronal_view(scan: Volume, outlines: Sequence[tuple[Pen, Labels]], slices: SheetSlices) -> View:
    levels, _, columns = slices.box
    y = slices.coronal
    depth, height, width = scan.geometry.shape
    posterior_mm = _world_mm(scan.geometry, ((depth - 1) / 2, y, (width - 1) / 2))[1]
    z_step, _, x_step = scan.geometry.spacing_mm
    return View(
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


def _draw_panels(views: Sequence[View], layout: _Layout) -> Figure:
    panel_in = (layout.width_in - 2 * _EDGE_IN) / (layout.columns + _GAP * (layout.columns - 1))
    sizes = [(view.scan.shape[0] * view.spacing_mm[0], view.scan.shape[1] * view.spacing_mm[1]) for view in views]
    heights = [
        layout.highest_in if layout.level else min(panel_in * height_mm / width_mm, layout.highest_in)
        for height_mm, width_mm in sizes
    ]
    rows = [max(heights[start : start + layout.columns]) for start in range(0, len(heights), layout.columns)]
    above_in = layout.header_in + layout.caption_in
    total_in = above_in + sum(rows) + layout.caption_in * (len(rows) - 1) + layout.footer_in
    figure = Figure(figsize=(layout.width_in, total_in), dpi=_DPI, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows),
        layout.columns,
        height_ratios=rows,
        left=_EDGE_IN / layout.width_in,
        right=1 - _EDGE_IN / layout.width_in,
        top=1 - above_in / total_in,
        bottom=layout.footer_in / total_in,
        wspace=_GAP,
        hspace=layout.caption_in * len(rows) / sum(rows),
    )
    for index, view in enumerate(views):
        _draw_view(figure.add_subplot(grid[divmod(index, layout.columns)]), view, layout.fontsize)
    return figure


def _draw_view(axes: Axes, view: View, fontsize: float) -> None:
    rows, columns = view.scan.shape
    height_mm, width_mm = rows * view.spacing_mm[0], columns * view.spacing_mm[1]
    low, high = _WINDOW_HU
    axes.set_axis_off()
    axes.set_title(view.caption, color=_TEXT, fontsize=fontsize, pad=4)
    # Positions are in mm from the picture's top left corner, so that anisotropic voxels have their true shape.
    extent = (0.0, width_mm, height_mm, 0.0)
    axes.imshow(view.scan, cmap="gray", vmin=low, vmax=high, extent=extent, aspect="equal", interpolation="bilinear")
    for pen, labels in view.outlines:
        _draw_outline(axes, labels != BACKGROUND, view.spacing_mm, pen, pen.kidney_colour)
        _draw_outline(axes, labels == CYST, view.spacing_mm, pen, pen.cyst_colour)
        _draw_outline(axes, labels == TUMOUR, view.spacing_mm, pen, pen.tumour_colour)
    edged = [withStroke(linewidth=3.0, foreground=_PAPER)]
    for side, x in (("R", 0.025), ("L", 0.975)):
        text = axes.text(x, 0.5, side, color=_TEXT, ha="center", va="center", transform=axes.transAxes)
        text.set(fontsize=fontsize + 2, fontweight="bold", path_effects=edged)
    bar_start_mm, bar_y_mm = 0.03 * width_mm, 0.95 * height_mm
    (bar,) = axes.plot([bar_start_mm, bar_start_mm + _SCALE_BAR_MM], [bar_y_mm, bar_y_mm], color=_TEXT, linewidth=2.5)
    bar.set_path_effects([withStroke(linewidth=5.0, foreground=_PAPER)])
    axes.set_xlim(0.0, width_mm)
    axes.set_ylim(height_mm, 0.0)


def _draw_outline(axes: Axes, mask: NDArray[np.bool_], spacing_mm: tuple[float, float], pen: Pen, colour: str) -> None:
    # Older releases of matplotlib, which we allow, warn of a contour of nothing.
    if not mask.any():
        return
    # A rim of background closes the outlines of what touches the picture's edge.
    rimmed = np.pad(mask, 1).astype(np.float32)
    y_mm = (np.arange(rimmed.shape[0]) - 0.5) * spacing_mm[0]
    x_mm = (np.arange(rimmed.shape[1]) - 0.5) * spacing_mm[1]
    axes.contour(x_mm, y_mm, rimmed, levels=[0.5], colors=[colour], linewidths=pen.width, linestyles=[pen.line])


def _write(figure: Figure, text: str, down_in: float, **style: Any) -> None:  # noqa: ANN401 - matplotlib's
    """Write a line that begins at the sheet's left edge, its middle `down_in` below the top."""
    left, y = _EDGE_IN / figure.get_figwidth(), 1 - down_in / figure.get_figheight()
    # A file's name may hold dollar signs; they are not a formula.
    figure.text(left, y, text, va="center", parse_math=False, **style)


def _draw_legend(
    figure: Figure,
    views: Sequence[View],
    corner: Literal["upper left", "upper right"],
    place_in: tuple[float, float],
    fontsize: float,
    *,
    parts: bool = True,
) -> None:
    """Explain the outlines; the legend's `corner` is `place_in` from the left and from the top."""
    outlined = [outline for view in views for outline in view.outlines]
    cysts = any((labels == CYST).any() for _, labels in outlined)
    lines = []
    for pen in dict.fromkeys(pen for pen, _ in outlined):
        regions = {"kidney, tumour and cyst" if cysts else "kidney and tumour": pen.kidney_colour}
        regions["tumour"] = pen.tumour_colour
        if not parts:
            regions = {"all labels": pen.kidney_colour}
        if cysts:
            regions["cyst"] = pen.cyst_colour
        for region, colour in regions.items():
            label = f"{region}, {pen.source}" if pen.source else region
            lines.append(Line2D([], [], color=colour, linewidth=pen.width, linestyle=pen.line, label=label))
    if lines:
        figure.legend(
            handles=lines,
            loc=corner,
            bbox_to_anchor=(place_in[0] / figure.get_figwidth(), 1 - place_in[1] / figure.get_figheight()),
            borderaxespad=0.0,
            borderpad=0.0,
            ncols=len(lines),
            frameon=False,
            labelcolor=_TEXT,
            fontsize=fontsize,
        )
