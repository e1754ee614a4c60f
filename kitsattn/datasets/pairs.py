"""Plain pairs of a scan and its label map: in two folders under one name, or in one folder with different suffixes.

Two folders are `images` or `image` with `labels`, `label`, `masks` or `segmentations`, and hold `NAME.nii.gz` each. One
folder holds `NAME.nii.gz` with `NAME_seg.nii.gz`, or `_label`, `_labels`, `_segmentation` or `_mask`. Scan and label
map may be of different formats.
"""

import re
from pathlib import Path

from kitsattn.datasets.dataset import (
    SCAN_SUFFIXES,
    UNKNOWN,
    CaseFiles,
    Dataset,
    check_case_ids,
    read_description,
)
from kitsattn.errors import KitsattnError
from kitsattn.files import is_file_or_dangling, visible_entries
from kitsattn.labels import KITS19_LABELS
from kitsattn.words import name_some

EXPECTED = "images/NAME.nii.gz with labels/NAME.nii.gz, or NAME.nii.gz with NAME_seg.nii.gz"

_IMAGE_FOLDERS = ("images", "image")
_LABEL_FOLDERS = ("labels", "label", "masks", "segmentations")
_LABEL_NAME = re.compile(r"(?P<case>.+)_(seg|labels?|segmentation|mask)", re.IGNORECASE)


def holds_pairs(folder: Path) -> bool:
    """Tell whether a folder holds pairs, by the names in it."""
    if _present(folder, _IMAGE_FOLDERS):
        return bool(_present(folder, _LABEL_FOLDERS))
    return any(_LABEL_NAME.fullmatch(_stem(path)) for path in _scans(folder))


def read_pairs(folder: Path) -> Dataset:
    """Find the pairs in a folder; a scan without a label map is a test case.

    The labels are KiTS19's unless `kitsattn-dataset.json` in the folder says otherwise.

    Raises:
        KitsattnError: If there is no scan, a label map without its scan, two files for one case, or the description is
            wrong.
    """
    image_folders, label_folders = _present(folder, _IMAGE_FOLDERS), _present(folder, _LABEL_FOLDERS)
    for present in (image_folders, label_folders):
        if len(present) > 1:
            msg = f"{folder} holds both {present[0].name} and {present[1].name}: leave one of them there"
            raise KitsattnError(msg)
    if image_folders:
        images = [(_stem(path), path) for path in _scans(image_folders[0])]
        labels = [(_stem(path), path) for place in label_folders for path in _scans(place)]
    else:
        images, labels = _tell_apart(_scans(folder))
    if not images:
        msg = f"{folder} holds no scan: expected {EXPECTED}; in one of the formats {', '.join(SCAN_SUFFIXES)}"
        raise KitsattnError(msg)
    description = read_description(folder)
    return Dataset(
        name=description.name or folder.resolve().name,
        folder=folder,
        layout="pairs",
        cases=_join(folder, images, labels),
        labels=description.labels or KITS19_LABELS,
        synthetic=description.synthetic,
        licence=description.licence or UNKNOWN,
        citation=description.citation or UNKNOWN,
    )


def _present(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_dir()]


def _scans(folder: Path) -> list[Path]:
    """Return the files in formats of scans by name, and links to what is not there."""
    return [
        path
        for path in visible_entries(folder)
        if path.name.lower().endswith(SCAN_SUFFIXES) and is_file_or_dangling(path)
    ]


def _stem(path: Path) -> str:
    """Return a file's name without the suffix of its format."""
    suffix = next(suffix for suffix in SCAN_SUFFIXES if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


def _tell_apart(paths: list[Path]) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """Return scans and label maps of one folder, each with its case."""
    images: list[tuple[str, Path]] = []
    labels: list[tuple[str, Path]] = []
    for path in paths:
        match = _LABEL_NAME.fullmatch(_stem(path))
        if match is None:
            images.append((_stem(path), path))
        else:
            labels.append((match["case"], path))
    return images, labels


def _join(folder: Path, images: list[tuple[str, Path]], labels: list[tuple[str, Path]]) -> tuple[CaseFiles, ...]:
    scans = [CaseFiles(case, image, None) for case, image in images]
    check_case_ids(scans)
    cases = {case.case_id: case for case in scans}
    orphans = [path.name for case, path in labels if case not in cases]
    if orphans:
        msg = (
            f"{folder}: {len(orphans)} of {len(labels)} label maps have no scan of their name ({name_some(orphans)}): "
            "restore the scans, or move the label maps away"
        )
        raise KitsattnError(msg)
    for case, path in labels:
        other = cases[case].labels
        if other is not None:
            msg = f"{other} and {path} are both label maps of {cases[case].image}: remove one of them"
            raise KitsattnError(msg)
        cases[case] = CaseFiles(case, cases[case].image, path)
    return tuple(cases.values())
