"""Data sets in the layout of KiTS: one folder a case, with `imaging.nii.gz` and `segmentation.nii.gz`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kitsattn.config import read_settings
from kitsattn.errors import KitsattnError
from kitsattn.labels import BACKGROUND, KITS19_LABELS
from kitsattn.workspace import RAW_DESCRIPTION

DESCRIPTION_NAME = RAW_DESCRIPTION
IMAGE_NAME = "imaging.nii.gz"
LABELS_NAME = "segmentation.nii.gz"

_CASE_FOLDER = re.compile(r"case_(\d+)")
_NAMED_AT_MOST = 3
_INNER_FOLDERS = ("data", "dataset")
"""Where the challenges' repositories keep their cases: kits19/data, kits23/dataset."""


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        case_id: Name of the case's folder, such as `case_00042`.
        image: The CT scan.
        labels: Its label map; None for a test case.
    """

    case_id: str
    image: Path
    labels: Path | None

    def __str__(self) -> str:
        """Return the case's name."""
        return self.case_id


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `kitsattn-dataset.json` in a data set's folder says about it; every key may be left out.

    Attributes:
        name: What the data set is called, also as a folder; None takes the folder's own name, of `kits19/data` the
            outer one.
        synthetic: Whether the scans were painted rather than measured.
        labels: Class name to label value; values run from 0, the background, without a gap.
        licence: Under which the data may be used.
        citation: What to cite for the data.
    """

    name: str | None = None
    synthetic: bool = False
    labels: Mapping[str, int] = field(default_factory=lambda: KITS19_LABELS)
    licence: str = "unknown"
    citation: str = "unknown"

    def __post_init__(self) -> None:
        """Check that the name can be a folder's, and that labels are channels."""
        if self.name is not None and (Path(self.name).name != self.name or self.name.startswith(".")):
            msg = f"name must be usable as a folder's name, got {self.name!r}"
            raise ValueError(msg)
        if sorted(self.labels.values()) != list(range(len(self.labels))) or self.labels.get("background") != BACKGROUND:
            msg = f"labels must be numbered 0, 1, 2, … with 0 called background, got {dict(self.labels)}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Dataset:
    """Cases of one origin.

    Attributes:
        name: What the data set is called, also as a folder.
        folder: Where its cases lie.
        cases: In the order of their numbers.
        labels: Class name to label value.
        synthetic: Whether the scans were painted rather than measured.
        licence: Under which the data may be used.
        citation: What to cite for the data.
    """

    name: str
    folder: Path
    cases: tuple[CaseFiles, ...]
    labels: Mapping[str, int]
    synthetic: bool
    licence: str
    citation: str


def find_dataset(folder: Path) -> Dataset:
    """Find the cases in a KiTS folder; a case without a label map counts as a test case.

    Args:
        folder: Holds `case_NNNNN/imaging.nii.gz`, `case_NNNNN/segmentation.nii.gz` and, if the data are not
            KiTS19's, a `kitsattn-dataset.json`.

    Raises:
        KitsattnError: If there is no case, a case twice or without its image, or the description is wrong.
    """
    if not folder.is_dir():
        msg = f"{folder} is no folder: name one that holds case_00000/{IMAGE_NAME} and so on"
        raise KitsattnError(msg)
    description_file = folder / DESCRIPTION_NAME
    description = read_settings(Description, description_file) if description_file.is_file() else Description()
    named = folder.resolve()
    if named.name in _INNER_FOLDERS:
        named = named.parent
    return Dataset(
        name=description.name or named.name,
        folder=folder,
        cases=_find_cases(folder),
        labels=description.labels,
        synthetic=description.synthetic,
        licence=description.licence,
        citation=description.citation,
    )


def scan_name(path: Path) -> str:
    """Return what a scan is called: `case_00042` for `case_00042/imaging.nii.gz`, else the file without its suffix."""
    return path.absolute().parent.name if path.name == IMAGE_NAME else Path(path.name.removesuffix(".gz")).stem


def _find_cases(folder: Path) -> tuple[CaseFiles, ...]:
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _CASE_FOLDER.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        number = int(match[1])
        if number in numbered:
            msg = f"{folder} holds case {number} twice, as {numbered[number].name} and {path.name}: remove one of them"
            raise KitsattnError(msg)
        numbered[number] = path
    if not numbered:
        msg = f"{folder} holds no case: expected folders such as case_00000/{IMAGE_NAME}"
        raise KitsattnError(msg)
    cases = [_case_files(path) for _, path in sorted(numbered.items())]
    without = [case.case_id for case in cases if not case.image.is_file()]
    if without:
        named = ", ".join(without[:_NAMED_AT_MOST]) + (", …" if len(without) > _NAMED_AT_MOST else "")
        msg = (
            f"{folder}: {len(without)} of {len(cases)} cases have no {IMAGE_NAME} ({named}): "
            "download their images, or move these folders away"
        )
        raise KitsattnError(msg)
    return tuple(cases)


def _case_files(path: Path) -> CaseFiles:
    labels = path / LABELS_NAME
    return CaseFiles(path.name, path / IMAGE_NAME, labels if labels.is_file() else None)
