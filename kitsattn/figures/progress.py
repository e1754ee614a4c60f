"""The curves of a training over its epochs, as one PNG that is redrawn after each epoch."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kitsattn.files import atomic_path

# Of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart by colour-blind eyes too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_SIZE_IN = (7.2, 7.2)
_DPI = 100


def plot_progress(
    path: Path,
    *,
    title: str,
    losses: Mapping[str, Sequence[float]],
    dice: Mapping[str, Sequence[float]],
    learning_rates: Sequence[float],
) -> None:
    """Draw losses, validation Dice and learning rate over the epochs, atomically, replacing an existing file.

    Args:
        path: The PNG.
        title: The headline.
        losses: Name of a curve to its value after each epoch; one that is not finite leaves a gap.
        dice: Name of a curve to its value after each epoch, 0 to 1.
        learning_rates: In each epoch.

    Raises:
        KitsattnError: If the file cannot be written.
    """
    epochs = range(1, len(learning_rates) + 1)
    with rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=11)
        panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.4))
        for axes, curves, name in zip(
            panels,
            (losses, dice, {"": learning_rates}),
            ("loss", "Dice of the validation batches", "learning rate"),
            strict=True,
        ):
            for (label, values), colour in zip(curves.items(), _COLOURS, strict=False):
                axes.plot(epochs, values, "o-", color=colour, label=label, markersize=3, linewidth=1.3)
            axes.set_ylabel(name)
            axes.grid(visible=True, alpha=0.2)
            if len(curves) > 1:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        panels[1].set_ylim(0.0, 1.0)
        panels[2].set_yscale("log")
        panels[2].set_xlabel("epoch")
        panels[2].xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(epochs) == 1:
            panels[2].set_xlim(0.5, 1.5)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI)
    # The parts of a figure refer to each other: without this 4 MB an epoch wait for a collector that seldom comes.
    del figure, panels, axes
    gc.collect()
