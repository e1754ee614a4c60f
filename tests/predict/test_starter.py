"""The network that ships, on the real CT that ships."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from kitsattn.checkpoint.shipped import weights_path
from kitsattn.cli.app import app
from kitsattn.datasets.sample_ct import find_sample
from kitsattn.phantom.paint import paint
from kitsattn.phantom.patient import draw_patient
from kitsattn.precision import Precision
from kitsattn.predict.infer import load_ensemble
from kitsattn.predict.scan import predict_volume
from kitsattn.volume.formats import read_labels, read_scan
from kitsattn.volume.geometry import Geometry, Triple
from kitsattn.volume.nifti import write_labels, write_nifti
from kitsattn.volume.volume import Volume

EXPECTED = Path(__file__).with_name("starter_sample.nii.gz")
"""The label map of the sample before post-processing, in fp32. Made again, after new weights, by running this file."""

pytestmark = pytest.mark.skipif(not weights_path("starter").exists(), reason="needs the shipped weights")


def _segment(precision: Precision) -> NDArray[np.uint8]:
    ensemble = load_ensemble([weights_path("starter")], torch.device("cpu"), precision)
    labels, _ = predict_volume(ensemble, read_scan(find_sample().scan))
    array: NDArray[np.uint8] = labels.array
    return array


def _dice(one: NDArray[np.uint8], other: NDArray[np.uint8], value: int) -> float:
    found, true = one == value, other == value
    return 2 * int((found & true).sum()) / max(1, int(found.sum()) + int(true.sum()))


@pytest.fixture(scope="module")
def labels() -> NDArray[np.uint8]:
    """The sample's label map in fp32."""
    return _segment("fp32")


def test_the_label_map_is_the_same_on_every_machine(labels: NDArray[np.uint8]) -> None:
    """Up to rounding: the kidney's Dice with the label map of another machine is 0.99 or more."""
    assert _dice(labels, read_labels(EXPECTED).array, 1) >= 0.99


def test_precisions_agree(labels: NDArray[np.uint8]) -> None:
    """In bf16 the kidney's Dice with fp32 is 0.99 or more; a second run gives the same voxels."""
    first, second = _segment("bf16"), _segment("bf16")
    assert np.array_equal(first, second)
    assert _dice(first, labels, 1) >= 0.99


def test_the_kidneys_of_the_sample_are_found(labels: NDArray[np.uint8]) -> None:
    """The Dice of kidney and tumour together with the reference is 0.90 or more."""
    found = (labels > 0).astype(np.uint8)
    assert _dice(found, read_labels(find_sample().labels).array, 1) >= 0.90


def test_predict_needs_no_workspace_and_no_network(tmp_path: Path) -> None:
    """`kitsattn predict IN OUT` in an empty folder works without a connection, in less than 1.2 GB."""
    script = (
        "import socket\n"
        "from pathlib import Path\n"
        "def refuse(*_): raise OSError('the network was used')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "from kitsattn.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    status = Path('/proc/self/status')\n"
        "    print(*[line for line in status.read_text().splitlines() if 'VmHWM' in line] if status.exists() else [])\n"
    )
    arguments = ["predict", str(find_sample().scan), "out.nii.gz", "--device", "cpu"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KITSATTN_")}
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "starter" in run.stderr
    assert read_labels(tmp_path / "out.nii.gz").array.any()
    if sys.platform == "linux":
        # Not getrusage: its peak begins with that of the process that started this one, the whole test suite.
        assert int(run.stdout.split()[-2]) * 1024 <= 1.2e9


def _ellipse(shape: tuple[int, int], height: float, width: float) -> NDArray[np.bool_]:
    y, x = (np.linspace(-1, 1, length) for length in shape)
    return np.asarray((y[:, None] / height) ** 2 + (x[None] / width) ** 2 <= 1)


def _head() -> Volume:
    """Return skin, skull and brain in air, 12 slices of 3 mm."""
    plane = np.full((128, 128), -1000)
    for size, hu in ((0.8, -80), (0.77, 40), (0.74, 1100), (0.68, 35)):
        plane[_ellipse((128, 128), size, 0.8 * size)] = hu
    return _volume(plane, 12, (3.0, 1.6, 1.6))


def _chest() -> Volume:
    """Return lungs, heart and spine in muscle and fat, 12 slices of 3 mm."""
    plane = np.full((128, 160), -1000)
    for height, width, hu in ((0.85, 0.9, -100), (0.78, 0.84, 55), (0.65, 0.74, -850), (0.3, 0.25, 45)):
        plane[_ellipse((128, 160), height, width)] = hu
    plane[84:100, 70:90] = 300
    return _volume(plane, 12, (3.0, 2.2, 2.2))


def _volume(plane: NDArray[np.int_], slices: int, spacing_mm: Triple) -> Volume:
    noise = np.random.default_rng(0).normal(0, 12, (slices, *plane.shape))
    scan = np.where(plane > -900, plane + noise, plane).round().astype(np.int16)
    return Volume(scan, Geometry.axial(scan.shape, spacing_mm))


def _phantom(*, slice_mm: float = 5.0, scale: float = 1.0) -> Volume:
    """Return a phantom with two kidneys; a scale below 1 makes a child of it."""
    scan, _ = paint(draw_patient(3), (round(250 / slice_mm), 160, 160), (slice_mm, 2.5, 2.5))
    spacing = (scale * slice_mm, scale * 2.5, scale * 2.5)
    return Volume(scan.array, Geometry.axial(scan.array.shape, spacing))


def _windowed() -> Volume:
    scan = _phantom()
    return scan.with_array(np.clip(scan.array, -160, 240))


@pytest.mark.parametrize(
    ("make", "doubt"),
    [
        (_head, ""),
        (_chest, ""),
        (functools.partial(_phantom, slice_mm=8.0), ""),
        (functools.partial(_phantom, scale=0.35), ""),
        (_windowed, "cut off at -160 and 240 HU"),
    ],
    ids=["head", "chest", "8 mm", "infant", "window"],
)
def test_every_ct_ends_with_a_label_map(make: Callable[[], Volume], doubt: str, tmp_path: Path) -> None:
    """On the scan's grid, with a warning where the scan itself is in doubt."""
    write_nifti(tmp_path / "in.nii.gz", make())
    result = _predict(tmp_path)
    assert result.exit_code == 0, result.output
    assert read_labels(tmp_path / "out.nii.gz").geometry == read_scan(tmp_path / "in.nii.gz").geometry
    assert doubt in result.stderr


def test_mr_is_refused(tmp_path: Path) -> None:
    """Its values are no HU: one line, and no label map."""
    y, x = np.indices((128, 128))
    plane = np.where(_ellipse((128, 128), 0.8, 0.6), 200 + 150 * np.sin(x / 9) + 100 * np.cos(y / 7), 5)
    write_nifti(tmp_path / "in.nii.gz", _volume(plane.astype(np.int_), 12, (3.0, 1.6, 1.6)))
    result = _predict(tmp_path)
    assert result.exit_code == 1
    assert "does not seem to be a CT scan in Hounsfield units" in result.stderr
    assert not (tmp_path / "out.nii.gz").exists()


def _predict(folder: Path) -> Result:
    words = ["predict", str(folder / "in.nii.gz"), str(folder / "out.nii.gz"), "--model", "starter", "--device", "cpu"]
    return CliRunner().invoke(app, words, catch_exceptions=False)


if __name__ == "__main__":
    write_labels(EXPECTED, Volume(_segment("fp32"), read_scan(find_sample().scan).geometry), overwrite=True)
