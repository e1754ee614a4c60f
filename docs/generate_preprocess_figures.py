"""Draws the pictures of docs/how-to/preprocess.md: one for each step, all of one painted phantom.

`python docs/generate_preprocess_figures.py` writes docs/how-to/images/preprocess-*.webp. The scan is synthetic: it
follows no patient.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.labels import BACKGROUND, KIDNEY, TUMOUR
from kitsattn.phantom.paint import paint
from kitsattn.phantom.patient import draw_patient
from kitsattn.preprocess.crop import body_box
from kitsattn.preprocess.intensity import clip_hu, normalise
from kitsattn.preprocess.resample import resample_labels, resample_scan
from kitsattn.preprocess.store import draw_locations

FOLDER = Path(__file__).with_name("how-to") / "images"
SEED = 0
SHAPE, SPACING_MM = (20, 352, 352), (5.0, 1.15, 1.15)
TARGET_MM = 0.78
WINDOW_HU = (-300.0, 300.0)
WHOLE_HU = (-1000.0, 1000.0)
DETAIL_MM = 36.0

# The look of the sheets in kitsattn.figures.overlay.
PAPER, TEXT, BLUE, ORANGE, YELLOW = "#101214", "#f4f4f4", "#56b4e9", "#f26b1d", "#ffd34d"


def main() -> None:
    """Paint the phantom, prepare it step by step, and draw each step."""
    scan, label_map = paint(draw_patient(SEED), SHAPE, SPACING_MM)
    labels: NDArray[np.uint8] = label_map.array
    z = int((labels == TUMOUR).sum(axis=(1, 2)).argmax())
    y0, y1, x0, x1 = body_box(scan)
    _, axes = figure(1, SHAPE[1] / SHAPE[2])
    show(axes[0], scan.array[z], f"as read: {SHAPE[1]} x {SHAPE[2]} voxels", WHOLE_HU)
    edge = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=YELLOW, linewidth=1.8)
    axes[0].add_patch(edge)
    save(axes[0], "crop")

    cropped, cropped_labels = scan.array[z : z + 1, y0:y1, x0:x1], labels[:, y0:y1, x0:x1]
    clipped = clip_hu(cropped, WINDOW_HU)
    _, axes = figure(2, cropped.shape[1] / cropped.shape[2])
    show(axes[0], cropped[0], "cropped", WHOLE_HU)
    show(axes[1], clipped[0], f"clipped to {WINDOW_HU[0]:.0f} to {WINDOW_HU[1]:.0f} HU", WINDOW_HU)
    save(axes[0], "clip")

    shape = (round(cropped.shape[1] * SPACING_MM[1] / TARGET_MM), round(cropped.shape[2] * SPACING_MM[2] / TARGET_MM))
    prepared = resample_scan(clipped, shape)
    prepared_labels = resample_labels(cropped_labels, shape)
    pair = (SPACING_MM[1], TARGET_MM)
    _, axes = figure(2, 1.0)
    for axis, image, step in zip(axes, (clipped[0], prepared[0]), pair, strict=True):
        show(axis, image, f"{step:g} mm", (-160.0, 240.0))
        zoom(axis, cropped_labels[z], step)
    save(axes[0], "resample")

    _, axes = figure(2, 1.0)
    colours = ListedColormap([PAPER, BLUE, ORANGE])
    for axis, image, step in zip(axes, (cropped_labels[z], prepared_labels[z]), pair, strict=True):
        show(axis, image, f"{step:g} mm", (BACKGROUND, TUMOUR), colours)
        zoom(axis, cropped_labels[z], step)
    save(axes[0], "labels")

    show_values(clip_hu(scan.array[:, y0:y1, x0:x1], WINDOW_HU), cropped_labels)
    show_locations(prepared[0], prepared_labels, z)


def show_values(clipped: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    """Draw the distribution of values before and after normalising."""
    foreground = clipped[labels != BACKGROUND]
    mean, std = float(foreground.mean()), float(foreground.std())
    picture = Figure(figsize=(9.0, 3.4), dpi=100, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(picture)
    axes: Any = picture.subplots(1, 2, sharey=True)
    inside = clipped[np.abs(clipped) < WINDOW_HU[1]]
    for axis, convert, title, unit in (
        (axes[0], lambda hu: hu, "clipped", "HU"),
        (axes[1], lambda hu: normalise(hu, mean, std), "normalised", "standard deviations of labelled voxels"),
    ):
        # Half a HU beside whole ones, so that no value lies on an edge.
        edges = convert(np.arange(WINDOW_HU[0] - 0.5, WINDOW_HU[1], 5, dtype=np.float32))
        for values, colour, name in ((inside, BLUE, "body"), (foreground, ORANGE, "labelled voxels")):
            weights = np.full(values.size, 100 / values.size)
            axis.hist(convert(values), bins=edges, weights=weights, color=colour, alpha=0.65, label=name)
        axis.axvline(convert(np.array([mean], np.float32))[0], color=YELLOW, linewidth=1.6, label="mean of these")
        axis.set_title(title, color=TEXT, fontsize=11)
        axis.set_xlabel(unit, color=TEXT)
        axis.set_facecolor(PAPER)
        axis.tick_params(colors=TEXT)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel("share of voxels (%)", color=TEXT)
    handles, names = axes[0].get_legend_handles_labels()
    picture.legend(handles, names, frameon=False, labelcolor=TEXT, loc="outside lower center", ncols=3)
    save(axes[0], "normalise")


def show_locations(image: NDArray[np.float32], labels: NDArray[np.uint8], z: int) -> None:
    """Draw the voxels of a slice that patches may be centred on."""
    rows = draw_locations({value: np.flatnonzero(labels == value) for value in (KIDNEY, TUMOUR)}, labels.shape)
    _, axes = figure(1, image.shape[0] / image.shape[1])
    show(axes[0], image, "voxels that patches are centred on", WINDOW_HU)
    for value, colour, name in ((KIDNEY, BLUE, "kidney"), (TUMOUR, ORANGE, "tumour")):
        drawn = rows[(rows[:, 0] == value) & (rows[:, 1] == z)]
        axes[0].plot(drawn[:, 3], drawn[:, 2], ".", color=colour, markersize=2.2, markeredgewidth=0, label=name)
    axes[0].legend(frameon=False, labelcolor=TEXT, loc="upper left", markerscale=4)
    save(axes[0], "locations")


def figure(panels: int, aspect: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels side by side, each `aspect` times as high as wide."""
    width = 9.0 if panels > 1 else 6.0
    picture = Figure(figsize=(width, width / panels * aspect + 0.35), dpi=100, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(picture)
    return picture, list(picture.subplots(1, panels, squeeze=False)[0])


def show(axis: Axes, image: NDArray[Any], title: str, span: tuple[float, float], colours: Any = "gray") -> None:  # noqa: ANN401
    """Show an image voxel by voxel."""
    axis.imshow(image, cmap=colours, vmin=span[0], vmax=span[1], interpolation="nearest")
    axis.set_title(title, color=TEXT, fontsize=11)
    axis.set_axis_off()


def zoom(axis: Axes, labels: NDArray[np.uint8], step_mm: float) -> None:
    """Show only the surroundings of where the tumour meets the kidney; `labels` are those before resampling."""
    border = ndimage.binary_dilation(labels == TUMOUR) & (labels == KIDNEY)
    y, x = ((float(np.mean(places)) + 0.5) * SPACING_MM[1] / step_mm - 0.5 for places in np.nonzero(border))
    half = DETAIL_MM / 2 / step_mm
    axis.set_xlim(x - half, x + half)
    axis.set_ylim(y + half, y - half)


def save(axis: Axes, name: str) -> None:
    """Write the picture that `axis` belongs to."""
    FOLDER.mkdir(exist_ok=True)
    picture = axis.get_figure()
    assert isinstance(picture, Figure)
    path = FOLDER / f"preprocess-{name}.webp"
    picture.savefig(path, pil_kwargs={"quality": 85, "method": 6})
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
