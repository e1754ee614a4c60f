"""What the tests of preprocessing share."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from kitsattn.preprocess.fingerprint import Fingerprint, Foreground
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume


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
