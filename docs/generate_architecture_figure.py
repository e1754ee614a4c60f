"""Draws docs/images/architecture.svg, the folders of the package along the way of the data.

`python docs/generate_architecture_figure.py` needs nothing but the package.
"""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import kitsattn

PICTURE = Path(__file__).with_name("images") / "architecture.svg"
SIZE_IN = (10.6, 5.3)
PAPER, TEXT, LINE = "#ffffff", "#1b1f24", "#5c6670"
COLOURS = {"data": "#cfe5f5", "network": "#d7ecd9", "result": "#e7dcf2", "made": "#fde3c8", "base": "#e9eef2"}
HEIGHT = 0.86
BOXES = {
    "volume": (0.2, 3.0, 1.75, "reads NIfTI, DICOM,\nNRRD; writes label maps", "data"),
    "preprocess": (2.45, 3.0, 1.75, "crop, clip, resample,\nnormalise, store", "data"),
    "batches": (4.7, 3.0, 1.6, "2.5D slabs,\naugmentation", "data"),
    "train": (6.8, 3.0, 1.6, "folds, recipes,\nthe loop", "network"),
    "predict": (6.8, 1.55, 1.6, "windows, whole scans,\npost-processing", "result"),
    "evaluate": (8.75, 1.55, 1.65, "metrics, reports,\nchallenge rules", "result"),
    "checkpoint": (8.75, 3.0, 1.65, "one file format;\nweights/ ships one", "network"),
    "datasets": (0.2, 4.25, 1.75, "KiTS, nnU-Net,\nfile pairs", "data"),
    "phantom": (2.45, 4.25, 1.75, "paints synthetic\npatients", "made"),
    "synthesis": (4.7, 4.25, 1.6, "makes scans while\na network trains", "made"),
    "models": (4.7, 1.55, 1.6, "the networks,\ntheir registry", "network"),
    "blocks": (2.45, 1.55, 1.75, "U-Net, ResNet,\nASPP, attention", "network"),
    "kernels": (0.2, 1.55, 1.75, "ASPP and attention\nin PyTorch and Triton", "network"),
}
ARROWS = (
    ("volume", "preprocess"),
    ("preprocess", "batches"),
    ("batches", "train"),
    ("train", "checkpoint"),
    ("predict", "evaluate"),
    ("kernels", "blocks"),
    ("blocks", "models"),
    ("phantom", "synthesis"),
)


def draw_box(ax: Axes, name: str) -> None:
    """Draw a folder with what it does."""
    left, bottom, width, text, colour = BOXES[name]
    ax.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.08",
            fc=COLOURS[colour],
            ec=LINE,
            lw=0.9,
        )
    )
    middle = left + width / 2
    ax.text(middle, bottom + 0.62, f"{name}/", ha="center", va="center", fontsize=10, fontweight="bold", color=TEXT)
    ax.text(middle, bottom + 0.28, text, ha="center", va="center", fontsize=7.4, color=TEXT, linespacing=1.3)


def draw_arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw the way of the data between two folders."""
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=LINE, lw=1.2, shrinkA=0, shrinkB=0)
    )


def main() -> None:
    """Draw the picture; every folder of the package must be on it."""
    folders = {path.parent.name for path in Path(kitsattn.__path__[0]).glob("*/__init__.py")}
    missing = folders - set(BOXES) - {"cli", "figures", "weights"}
    if missing:
        msg = f"folders that are not drawn: {missing}"
        raise SystemExit(msg)
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "kitsattn"}):
        figure = Figure(figsize=SIZE_IN, facecolor=PAPER)
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, SIZE_IN[0])
        ax.set_ylim(0, SIZE_IN[1])
        ax.set_axis_off()
        for name in BOXES:
            draw_box(ax, name)
        for first, last in ARROWS:
            left, bottom, width, *_ = BOXES[first]
            draw_arrow(
                ax, (left + width + 0.03, bottom + HEIGHT / 2), (BOXES[last][0] - 0.03, BOXES[last][1] + HEIGHT / 2)
            )
        draw_arrow(ax, (1.07, 4.25 - 0.03), (1.07, 3.0 + HEIGHT + 0.03))  # datasets to volume
        draw_arrow(ax, (5.5, 4.25 - 0.03), (5.5, 3.0 + HEIGHT + 0.03))  # synthesis to batches
        draw_arrow(ax, (6.3 + 0.03, 1.55 + HEIGHT), (6.95, 3.0 - 0.03))  # models to train
        draw_arrow(ax, (6.3 + 0.03, 1.98), (6.8 - 0.03, 1.98))  # models to predict
        draw_arrow(ax, (8.85, 3.0 - 0.03), (8.3, 1.55 + HEIGHT + 0.03))  # checkpoint to predict
        ax.add_patch(
            FancyBboxPatch(
                (0.2, 0.75), 10.2, 0.5, boxstyle="round,pad=0,rounding_size=0.08", fc=COLOURS["base"], ec=LINE, lw=0.9
            )
        )
        text = "figures/ draws pictures and pages.  cli/ has one file per command; nothing imports it."
        ax.text(5.3, 1.0, text, ha="center", va="center", fontsize=8.5, color=TEXT)
        ax.add_patch(
            FancyBboxPatch(
                (0.2, 0.12), 10.2, 0.5, boxstyle="round,pad=0,rounding_size=0.08", fc=COLOURS["base"], ec=LINE, lw=0.9
            )
        )
        files = "errors, words, files, labels, config, workspace, machine, jobs, ranks, precision"
        text = f"single files that all folders use: {files}"
        ax.text(5.3, 0.37, text, ha="center", va="center", fontsize=8.5, color=TEXT)
        figure.savefig(PICTURE, metadata={"Date": None}, facecolor=PAPER)


if __name__ == "__main__":
    main()
