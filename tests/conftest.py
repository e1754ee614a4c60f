"""What all tests share: the real data they may use, and the proof that the installed package is the one under test."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import kitsattn
from kitsattn.datasets.kits import find_dataset
from kitsattn.files import write_json
from kitsattn.labels import KITS19_LABELS
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume

# The same examples on every machine: a failure can be repeated, and a slow machine is no failure.
hypothesis.settings.register_profile("kitsattn", derandomize=True, deadline=None)
hypothesis.settings.load_profile("kitsattn")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop if a built wheel is to be tested (`KITSATTN_TEST_WHEEL=1`) but the checkout would be."""
    package = Path(kitsattn.__file__).resolve().parent
    if os.environ.get("KITSATTN_TEST_WHEEL") == "1" and package == session.config.rootpath.resolve() / "kitsattn":
        pytest.exit(f"kitsattn is imported from the checkout, {package}, not from the installed wheel", returncode=1)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real CT and label maps that `KITSATTN_TEST_DATA` names; without it the test is skipped."""
    folder = os.environ.get("KITSATTN_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set KITSATTN_TEST_DATA to its folder")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"KITSATTN_TEST_DATA={folder} is not a folder")
    return path


def paint_case(seed: int, shape: tuple[int, int, int] = (14, 64, 72)) -> tuple[np.ndarray, np.ndarray]:
    """Return scan and labels, (z, y, x), of a body reduced to the least: fat, muscle, two kidneys, one tumour."""
    generator = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    centre_y, centre_x = shape[1] / 2, shape[2] / 2
    radius = np.hypot((y - centre_y) / (0.42 * shape[1]), (x - centre_x) / (0.42 * shape[2]))
    scan = np.where(radius < 0.85, 50, np.where(radius < 1, -100, -1000))
    labels = np.zeros(shape, np.uint8)
    for side in (-1, 1):
        kidney_x = centre_x + side * 0.18 * shape[2] + generator.integers(-2, 3)
        distance = np.sqrt(((z - 7) / 5.5) ** 2 + ((y - centre_y - 4) / 8) ** 2 + ((x - kidney_x) / 6) ** 2)
        scan[distance < 1], labels[distance < 1] = 180, 1
    tumour = np.sqrt(((z - 7) / 3.5) ** 2 + ((y - centre_y + 4) / 5) ** 2 + ((x - kidney_x) / 5) ** 2) < 1
    scan[tumour], labels[tumour] = 100, 2
    return (scan + generator.normal(0, 12, shape)).round().astype(np.int16), labels


@pytest.fixture(scope="session")
def kits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A KiTS19 folder of six small painted cases, anisotropic, with a description that calls them synthetic."""
    folder = tmp_path_factory.mktemp("raw") / "painted"
    for number in range(6):
        scan, labels = paint_case(number)
        geometry = Geometry.axial(scan.shape, (5.0, 2.0, 2.5), (number * 7.0, -30.0, 12.5))
        case = folder / f"case_{number:05}"
        write_nifti(case / "imaging.nii.gz", Volume(scan, geometry), axes="IPL")
        write_nifti(case / "segmentation.nii.gz", Volume(labels, geometry), axes="IPL")
    description = {"name": "painted", "synthetic": True, "labels": dict(KITS19_LABELS)}
    write_json(folder / "kitsattn-dataset.json", {**description, "licence": "CC0-1.0", "citation": "painted for tests"})
    return folder


@pytest.fixture(scope="session")
def prepared(kits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The painted cases, prepared."""
    folder = tmp_path_factory.mktemp("preprocessed") / "painted"
    return preprocess_dataset(find_dataset(kits_folder), folder, workers=1).dataset


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A Dask cluster of two worker processes on loopback, as its users start one; yields the scheduler's address."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    address = tmp_path / "address"
    script = (
        "import sys; from pathlib import Path; from distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:\n"
        "        Path(sys.argv[1] + '.part').write_text(cluster.scheduler_address)\n"
        "        Path(sys.argv[1] + '.part').rename(sys.argv[1]); sys.stdin.read()\n"
    )
    (tmp_path / "cluster.py").write_text(script)
    command = [sys.executable, str(tmp_path / "cluster.py"), str(address)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        while process.poll() is None and not address.exists():
            time.sleep(0.05)
        yield address.read_text()
        process.communicate(timeout=30)
