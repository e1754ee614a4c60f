"""What every layout is read into: a data set with its cases, and the description that may be beside them."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kitsattn.config import read_settings
from kitsattn.errors import KitsattnError
from kitsattn.labels import BACKGROUND, KITS23_LABELS
from kitsattn.workspace import RAW_DESCRIPTION

DESCRIPTION_NAME = RAW_DESCRIPTION
UNKNOWN = "unknown"
"""Licence and citation of data whose origin is not certain."""

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Files that are taken for scans and label maps where a layout leaves the format open.

Those that hold header and voxels alike: whether a prepared case is up to date is decided by the checksum of one file.
"""

_FILE_NAME = re.compile(r"(?![. ])[^<>:\"/\\|?*\x00-\x1f]*[^<>:\"/\\|?*\x00-\x1f. ]")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        case_id: What the case is called, such as `case_00042`; its prepared files are named after it.
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
    """What `kitsattn-dataset.json` in a data set's folder says about it.

    It wins over what the layout says; every key may be left out, and then the layout decides.

    Attributes:
        name: What the data set is called, also as a folder.
        synthetic: Whether the scans were painted rather than measured.
        labels: Class name to label value; values run from 0, the background, without a gap.
        licence: Under which the data may be used.
        citation: What to cite for the data.
    """

    name: str | None = None
    synthetic: bool = False
    labels: Mapping[str, int] | None = None
    licence: str | None = None
    citation: str | None = None

    def __post_init__(self) -> None:
        """Check that the name can be a folder's, and that labels are channels."""
        if self.name is not None and not _names_files(self.name):
            msg = f"name must be usable as a folder's name, got {self.name!r}"
            raise ValueError(msg)
        if self.labels is not None:
            check_label_values(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Cases of one origin.

    Attributes:
        name: What the data set is called, also as a folder.
        folder: Where its cases are.
        layout: How they are there, one of `kitsattn.datasets.find.LAYOUTS`.
        cases: In the order of their numbers or names; ids are names of files, and no two differ in case only.
        labels: Class name to label value.
        synthetic: Whether the scans were painted rather than measured.
        licence: Under which the data may be used.
        citation: What to cite for the data.
    """

    name: str
    folder: Path
    layout: str
    cases: tuple[CaseFiles, ...]
    labels: Mapping[str, int]
    synthetic: bool
    licence: str
    citation: str


def read_description(*folders: Path) -> Description:
    """Read the `kitsattn-dataset.json` of the first folder that holds one.

    Returns:
        The description; without a file, one that leaves everything to the layout.

    Raises:
        KitsattnError: If the file cannot be read or is wrong.
    """
    for folder in folders:
        file = folder / DESCRIPTION_NAME
        if file.is_file():
            return read_settings(Description, file)
    return Description()


def check_label_values(labels: Mapping[str, int]) -> None:
    """Check that label values are a network's channels, and that the classes of KiTS have KiTS's values.

    Scores and pictures take kidney, tumour and cyst by their values, so that the same name under another value would
    be scored as something else.

    Raises:
        ValueError: If they are not.
    """
    if sorted(labels.values()) != list(range(len(labels))) or labels.get("background") != BACKGROUND:
        msg = f"labels must be numbered 0, 1, 2, … with 0 called background, got {dict(labels)}"
        raise ValueError(msg)
    moved = [name for name, value in KITS23_LABELS.items() if labels.get(name, value) != value]
    if moved:
        name = moved[0]
        msg = f"labels must call {KITS23_LABELS[name]} {name}, as KiTS does, got {dict(labels)}: renumber the maps"
        raise ValueError(msg)


def check_case_ids(cases: Iterable[CaseFiles]) -> None:
    """Check that case ids can be names of files on every system, and that no two become the same file.

    macOS and Windows tell neither `A` from `a` nor two spellings of one accented letter apart.

    Raises:
        KitsattnError: If an id cannot name a file, or two ids are the same, with the files of both.
    """
    seen: dict[str, CaseFiles] = {}
    for case in cases:
        if not _names_files(case.case_id):
            msg = f"{case.image}: its case would be called {case.case_id!r}, which cannot name files: rename it"
            raise KitsattnError(msg)
        key = unicodedata.normalize("NFC", case.case_id).casefold()
        if key in seen:
            msg = f"{seen[key].image} and {case.image} are both called {case.case_id}: rename or remove one of them"
            raise KitsattnError(msg)
        seen[key] = case


def _names_files(name: str) -> bool:
    return _FILE_NAME.fullmatch(name) is not None and _DEVICE.fullmatch(name) is None
