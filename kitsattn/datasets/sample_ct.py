"""The CT of a real patient that ships with the package, with a reference label map of the kidneys."""

from dataclasses import dataclass
from pathlib import Path

from kitsattn.errors import KitsattnError

LICENCE = "CC BY 4.0"
CITATION = (
    "Wasserthal et al., TotalSegmentator: robust segmentation of 104 anatomical structures in CT images, "
    "Radiology: Artificial Intelligence 2023; data set v2, Zenodo 10047292, subject s0009"
)

_FOLDER = Path(__file__).with_name("sample")


@dataclass(frozen=True)
class SampleCT:
    """A scan that ships with the package.

    Attributes:
        scan: The CT in HU.
        labels: Its label map: background 0, kidney 1. Tumours are not labelled.
        licence: Licence of both files.
        citation: Source of both files, for every output that shows them.
    """

    scan: Path
    labels: Path
    licence: str
    citation: str


def find_sample() -> SampleCT:
    """Return the sample CT. `sample/ATTRIBUTION.md` lists how it differs from the published scan.

    Raises:
        KitsattnError: If a file is missing.
    """
    sample = SampleCT(_FOLDER / "ct.nii.gz", _FOLDER / "labels.nii.gz", LICENCE, CITATION)
    for path in (sample.scan, sample.labels):
        if not path.is_file():
            msg = f"{path} is missing: install kitsattn again, this file is part of the package"
            raise KitsattnError(msg)
    return sample
