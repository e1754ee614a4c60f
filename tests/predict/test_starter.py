"""The network that ships, on the real CT that ships."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kitsattn.checkpoint.shipped import weights_path
from kitsattn.datasets.sample_ct import find_sample
from kitsattn.kernels.precision import Precision
from kitsattn.predict.infer import load_ensemble
from kitsattn.predict.scan import predict_volume
from kitsattn.volume.formats import read_labels, read_scan

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
        "import resource, socket, sys\n"
        "def refuse(*_): raise OSError('the network was used')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "from kitsattn.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
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
    assert int(run.stdout.split()[-1]) * 1024 <= 1.2e9


if __name__ == "__main__":
    from kitsattn.volume.nifti import write_labels
    from kitsattn.volume.volume import Volume

    write_labels(EXPECTED, Volume(_segment("fp32"), read_scan(find_sample().scan).geometry), overwrite=True)
