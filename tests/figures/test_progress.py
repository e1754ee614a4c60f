"""The picture of a training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kitsattn.errors import KitsattnError
from kitsattn.figures.progress import plot_progress


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_curves_are_drawn_for_any_number_of_epochs(tmp_path: Path, epochs: int) -> None:
    """One epoch is a dot; a loss that is not finite leaves a gap."""
    losses = np.linspace(1, -0.5, epochs)
    losses[epochs // 2] = np.nan
    plot_progress(
        tmp_path / "progress.png",
        title="fold 0",
        losses={"training": losses.tolist(), "validation": (losses + 0.1).tolist()},
        dice={
            "tumour": np.linspace(0, 0.7, epochs).tolist(),
            "kidney_and_tumour": np.linspace(0, 0.9, epochs).tolist(),
        },
        learning_rates=np.geomspace(1e-3, 1e-5, epochs).tolist(),
    )
    with Image.open(tmp_path / "progress.png") as picture:
        assert picture.size == (720, 720)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        assert (np.abs(pixels.astype(int) - colour).sum(1) < 20).any()
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A folder in its place."""
    (tmp_path / "progress.png").mkdir()
    with pytest.raises(KitsattnError, match=r"progress\.png cannot be written"):
        plot_progress(tmp_path / "progress.png", title="", losses={}, dice={}, learning_rates=[1.0])
