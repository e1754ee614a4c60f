"""The folders of KiTS19, KiTS21 and KiTS23: one folder a case, `case_NNNNN`, with scan and label map in it.

KiTS19 keeps its cases in `kits19/data`, KiTS21 in `kits21/kits21/data`, KiTS23 in `kits23/dataset`; each of these
folders may be named, or the repository above it.
"""

import re
from pathlib import Path

from kitsattn.datasets.dataset import UNKNOWN, CaseFiles, Dataset, read_description
from kitsattn.errors import KitsattnError
from kitsattn.files import is_dangling, is_file_or_dangling
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS
from kitsattn.words import name_some

IMAGE_NAME = "imaging.nii.gz"
LABELS_NAME = "segmentation.nii.gz"

CHALLENGES = ("kits19", "kits21", "kits23")

AGGREGATED_NAME = "aggregated_MAJ_seg.nii.gz"
"""KiTS21 has three label maps of every case: the union (OR) and intersection (AND) of its three annotations, and their
majority (MAJ). The majority is what the organisers' evaluation takes by default, and nnU-Net's conversion too.
"""

_INSTANCES_FOLDER = "instances"
"""Where KiTS23 keeps the single annotations of a case."""

_CASE_FOLDER = re.compile(r"case_(\d+)")
_INNER_FOLDERS = ("data", "dataset", "kits21/data")
_FIRST_OF_KITS23 = 400
"""KiTS19 and KiTS21 number their cases 0 to 299, KiTS23 adds 400 to 588."""

# The licences: data/LICENSE in the repository of KiTS19, https://kits-challenge.org/kits21/participate, and the README
# of KiTS23 with https://kits-challenge.org. The citations are those that the repositories ask for.
LICENCE = "CC BY-NC-SA 4.0"
_KITS19_CITATION = (
    "Heller et al., The state of the art in kidney and kidney tumor segmentation in contrast-enhanced CT imaging: "
    "Results of the KiTS19 challenge, Medical Image Analysis 67, 2021, arXiv:1912.01054; Heller et al., The KiTS19 "
    "challenge data, 2019, arXiv:1904.00445"
)
_KITS21_CITATION = (
    "Heller et al., The KiTS21 Challenge: Automatic segmentation of kidneys, renal tumors, and renal cysts in "
    "corticomedullary-phase CT, 2023, arXiv:2307.01984"
)
CITATIONS = {"kits19": _KITS19_CITATION, "kits21": _KITS21_CITATION, "kits23": _KITS21_CITATION}


def find_cases_folder(folder: Path) -> Path | None:
    """Return the folder of the `case_NNNNN` folders: the one given, or the place in it where a challenge keeps them."""
    for place in (folder, *(folder / inner for inner in _INNER_FOLDERS)):
        if place.is_dir() and _case_folders(place):
            return place
    return None


def recognise_challenge(cases_folder: Path) -> str:
    """Say which challenge's folders these are, by the names in them.

    Aggregated label maps are KiTS21's. KiTS23 shows itself by its `instances` folders, its `kits23.json`, or case
    numbers from 400 on. A folder without any of these is the challenge's that its path names, the innermost one; and
    KiTS19 if it names none, because KiTS23 is then the same to the eye. If that is wrong, a label map with cysts in it
    is refused later.
    """
    cases = _case_folders(cases_folder)
    if any((path / AGGREGATED_NAME).is_file() for _, path in cases):
        return "kits21"
    if _holds_marks_of_kits23(cases_folder) or any(number >= _FIRST_OF_KITS23 for number, _ in cases):
        return "kits23"
    named = [part for part in reversed(cases_folder.resolve().parts) if part.lower() in {"kits19", "kits23"}]
    return named[0].lower() if named else "kits19"


def read_kits(folder: Path, challenge: str) -> Dataset:
    """Find the cases in a KiTS folder; a case without a label map counts as a test case.

    Licence and citation are the challenge's only where the folder bears its marks: KiTS21's aggregated label maps,
    KiTS19's `kits.json`, KiTS23's `kits23.json` or `instances`, or the data set's own name. Any other folder of this
    layout may be anybody's data, also one that was named with the layout.

    Args:
        folder: Holds the cases, or is a challenge's repository.
        challenge: One of `CHALLENGES`: decides which label map is read, and what the labels are.

    Raises:
        KitsattnError: If there is no case, a case twice or without its image, or the description is wrong.
    """
    cases_folder = find_cases_folder(folder)
    if cases_folder is None:
        msg = f"{folder} holds no case: expected folders such as case_00000/{IMAGE_NAME}"
        raise KitsattnError(msg)
    labels_name = AGGREGATED_NAME if challenge == "kits21" else LABELS_NAME
    cases = _find_cases(cases_folder, labels_name)
    description = read_description(folder, cases_folder)
    name = _default_name(cases_folder)
    certain = name.lower() == challenge or _bears_marks(cases_folder, challenge, cases)
    return Dataset(
        name=description.name or name,
        folder=cases_folder,
        layout=challenge,
        cases=cases,
        labels=description.labels or (KITS19_LABELS if challenge == "kits19" else KITS23_LABELS),
        synthetic=description.synthetic,
        licence=description.licence or (LICENCE if certain else UNKNOWN),
        citation=description.citation or (CITATIONS[challenge] if certain else UNKNOWN),
    )


def scan_name(path: Path) -> str:
    """Return what a scan is called: `case_00042` for `case_00042/imaging.nii.gz`, else the file without its suffix.

    A folder of DICOM files keeps its whole name.
    """
    if path.is_dir():
        return path.absolute().name
    if path.name == IMAGE_NAME:
        return path.absolute().parent.name
    return path.with_suffix("").stem if path.suffix.lower() == ".gz" else path.stem


def _case_folders(cases_folder: Path) -> list[tuple[int, Path]]:
    """Return the case folders with their numbers, in the order of these."""
    found = [
        (int(match[1]), path)
        for path in cases_folder.iterdir()
        if (match := _CASE_FOLDER.fullmatch(path.name)) and (path.is_dir() or is_dangling(path))
    ]
    return sorted(found)


def _holds_marks_of_kits23(cases_folder: Path) -> bool:
    return (cases_folder / "kits23.json").is_file() or any(
        (path / _INSTANCES_FOLDER).is_dir() for _, path in _case_folders(cases_folder)
    )


def _bears_marks(cases_folder: Path, challenge: str, cases: tuple[CaseFiles, ...]) -> bool:
    if challenge == "kits21":
        return any(case.labels is not None for case in cases)
    if challenge == "kits23":
        return _holds_marks_of_kits23(cases_folder)
    return (cases_folder / "kits.json").is_file()


def _default_name(cases_folder: Path) -> str:
    """Return what the data set is called after its folder: `kits19` for `kits19/data`."""
    named = cases_folder.resolve()
    outer = named.parent.name if named.name in {"data", "dataset"} else ""
    return outer or named.name  # a container's /data has no name above it


def _find_cases(folder: Path, labels_name: str) -> tuple[CaseFiles, ...]:
    numbered: dict[int, Path] = {}
    for number, path in _case_folders(folder):
        if number in numbered:
            msg = f"{folder} holds case {number} twice, as {numbered[number].name} and {path.name}: remove one of them"
            raise KitsattnError(msg)
        numbered[number] = path
    without = [path.name for path in numbered.values() if not is_file_or_dangling(path / IMAGE_NAME)]
    if without:
        msg = (
            f"{folder}: {len(without)} of {len(numbered)} cases have no {IMAGE_NAME} ({name_some(without)}): "
            "download their images, or move these folders away"
        )
        raise KitsattnError(msg)
    return tuple(_case_files(path, path / labels_name) for path in numbered.values())


def _case_files(path: Path, labels: Path) -> CaseFiles:
    return CaseFiles(path.name, path / IMAGE_NAME, labels if is_file_or_dangling(labels) else None)
