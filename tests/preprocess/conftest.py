"""A small abdomen that all tests of preprocessing share: drawn, not random, with everything the rules look for."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kitsattn.preprocess.fingerprint import Fingerprint, Foreground
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume

SHAPE = (12, 60, 80)
SPACING_MM = (5.0, 4.0, 4.0)
BODY_RADII_MM = (80.0, 120.0)
CENTRE_MM = (110.0, 160.0)


def draw_abdomen() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw air, an elliptic body of fat around muscle, two kidneys of which one has a tumour, and a table."""
    y = np.arange(SHAPE[1])[:, None] * SPACING_MM[1] - CENTRE_MM[0]
    x = np.arange(SHAPE[2])[None, :] * SPACING_MM[2] - CENTRE_MM[1]
    radius = np.hypot(y / BODY_RADII_MM[0], x / BODY_RADII_MM[1])
    noise = np.random.default_rng(7).normal(0, 10, SHAPE)
    scan = np.full(SHAPE, -1000.0)
    scan[:, radius < 1] = -100
    scan[:, radius < 0.85] = 50
    scan[:, 52:54, 10:70] = 200
    labels = np.zeros(SHAPE, np.uint8)
    for side in (-60, 60):
        labels[2:10, np.hypot(y, x - side) < 30] = 1
    labels[4:7, np.hypot(y, x - 60) < 14] = 2
    scan[labels == 1] = 160
    scan[labels == 2] = 90
    return np.rint(scan + noise).astype(np.int16), labels


@pytest.fixture
def abdomen() -> tuple[Volume, Volume]:
    """Scan and label map of the small abdomen."""
    scan, labels = draw_abdomen()
    geometry = Geometry.axial(SHAPE, SPACING_MM)
    return Volume(scan, geometry), Volume(labels, geometry)


@pytest.fixture
def write_case(abdomen: tuple[Volume, Volume]) -> Callable[[Path, str], Path]:
    """Write the small abdomen as a case in KiTS layout and return its folder."""

    def write(folder: Path, case_id: str) -> Path:
        case = folder / case_id
        scan, labels = abdomen
        write_nifti(case / "imaging.nii.gz", scan, axes="IPL")
        write_nifti(case / "segmentation.nii.gz", labels, axes="IPL")
        return case

    return write


@pytest.fixture(scope="session")
def kits19_headers() -> list[Fingerprint]:
    """The 210 training cases of KiTS19 as their NIfTI headers describe them, with nothing cropped."""
    with (Path(__file__).parent / "kits19-headers.csv").open(encoding="ascii", newline="") as file:
        rows = list(csv.DictReader(file))
    fingerprints = []
    for row in rows:
        shape = (int(row["slices"]), int(row["rows"]), int(row["columns"]))
        spacing_mm = (float(row["slice_mm"]), float(row["row_mm"]), float(row["column_mm"]))
        box = (0, shape[1], 0, shape[2])
        fingerprints.append(Fingerprint(row["case"], shape, spacing_mm, box, {}, Foreground(90, (1, 2, 1))))
    return fingerprints
