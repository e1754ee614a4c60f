"""Data sets in nnU-Net's raw layout: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz` and `dataset.json`.

Both forms of `dataset.json` are read: that of version 2 (`channel_names`, labels from name to value, `file_ending`, and
a `dataset` of its own where files are elsewhere) and that of version 1 and the Medical Segmentation Decathlon
(`modality`, labels from value to name). They are described in nnU-Net's documentation, dataset_format.md and
region_based_training.md, https://github.com/MIC-DKFZ/nnUNet. `imagesTs` has no labels and is left alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitsattn.config import from_json, read_mapping
from kitsattn.datasets.dataset import (
    DESCRIPTION_NAME,
    SCAN_SUFFIXES,
    UNKNOWN,
    CaseFiles,
    Dataset,
    check_case_ids,
    check_label_values,
    read_description,
)
from kitsattn.errors import KitsattnError
from kitsattn.files import visible_entries
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS
from kitsattn.words import name_some
from kitsattn.workspace import PREPARED_FORMAT

SETTINGS_NAME = "dataset.json"
IMAGES_FOLDER = "imagesTr"
LABELS_FOLDER = "labelsTr"

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_REGIONS = (
    ({"kidney": (1, 2), "tumour": (2,)}, KITS19_LABELS),
    ({"kidney": (1, 2, 3), "masses": (2, 3), "tumour": (2,)}, KITS23_LABELS),
)
"""Regions whose classes are known: those that KiTS19 and KiTS23 are scored by."""


@dataclass(frozen=True)
class _Listed:
    """One case in the `dataset` key of version 2; paths are relative to the data set's folder, or absolute."""

    images: tuple[str, ...]
    label: str


def read_nnunet(folder: Path) -> Dataset:
    """Find the cases of one data set in nnU-Net's raw layout; an image without a label map is a test case.

    Args:
        folder: Such as `nnUNet_raw/Dataset220_KiTS2023`; the data set is called after it.

    Raises:
        KitsattnError: If `dataset.json` is missing, is not of one CT channel or has labels that are not understood, or
            if images and label maps do not belong together.
    """
    file = folder / SETTINGS_NAME
    if not file.is_file():
        msg = f"{file} does not exist, and nnU-Net's raw layout needs it: restore it, or add --layout pairs"
        raise KitsattnError(msg)
    settings = read_mapping(file)
    if str(settings.get("format", "")).startswith(PREPARED_FORMAT):
        msg = f"{folder} is prepared already: train on it with `kitsattn train --dataset {folder.resolve().name}`"
        raise KitsattnError(msg)
    description = read_description(folder)
    _check_channel(settings, file)
    if "dataset" in settings:
        cases = _listed_cases(settings["dataset"], file)
    else:
        cases = _find_cases(folder, _file_ending(settings, file))
    check_case_ids(cases)
    return Dataset(
        name=description.name or folder.resolve().name,
        folder=folder,
        layout="nnunet",
        cases=cases,
        labels=description.labels or _read_labels(settings, file),
        synthetic=description.synthetic,
        licence=description.licence or _text(settings, "licence", "license"),
        citation=description.citation or _text(settings, "reference"),
    )


def read_nnunet_labels(folder: Path) -> Mapping[str, int] | None:
    """Return class name to label value as `dataset.json` in a folder has them; None where there are none.

    Raises:
        KitsattnError: If the file cannot be read, or its labels are not understood.
    """
    file = folder / SETTINGS_NAME
    if not file.is_file():
        return None
    settings = read_mapping(file)
    return _read_labels(settings, file) if "labels" in settings else None


def _check_channel(settings: Mapping[str, Any], file: Path) -> None:
    channels = settings.get("channel_names", settings.get("modality"))
    if not isinstance(channels, Mapping):
        msg = f"{file} names no channels: add channel_names (modality in version 1), such as {{'0': 'CT'}}"
        raise KitsattnError(msg)
    names = [str(name) for name in channels.values()]
    if [name.upper() for name in names] != ["CT"]:
        msg = f"{file} has the channels {', '.join(names) or 'none'}: exactly one is read, and it must be called CT"
        raise KitsattnError(msg)


def _file_ending(settings: Mapping[str, Any], file: Path) -> str:
    """Return how images and label maps end; version 1 knows .nii.gz alone."""
    ending = settings.get("file_ending", ".nii.gz")
    if ending not in SCAN_SUFFIXES:
        msg = f"{file}: file_ending is {ending!r}: convert the files to one of {', '.join(SCAN_SUFFIXES)}"
        raise KitsattnError(msg)
    return str(ending)


def _read_labels(settings: Mapping[str, Any], file: Path) -> Mapping[str, int]:
    """Return class name to label value, with KiTS's spelling of the names."""
    content = settings.get("labels")
    if not isinstance(content, Mapping):
        msg = f"{file} has no labels, such as {{'background': 0, 'kidney': 1, 'tumor': 2}}: add them"
        raise KitsattnError(msg)
    if content and all(isinstance(name, str) for name in content.values()):
        content = {name: int(value) if value.isdecimal() else value for value, name in content.items()}
    named = {_spell(name): value for name, value in content.items()}
    fix = f"say in {file.with_name(DESCRIPTION_NAME)} which class each value is"
    if len(named) < len(content):
        msg = f"{file}: two labels of {content} have one name: {fix}"
        raise KitsattnError(msg)
    if "ignore" in named:
        msg = f"{file} has an ignore label, and every voxel is trained on: give these voxels a class, and {fix}"
        raise KitsattnError(msg)
    if any(isinstance(value, list) for value in named.values()):
        return _classes_of_regions(named, file, fix)
    if any(type(value) is not int for value in named.values()):
        msg = f"{file}: labels must be whole numbers, got {content}: {fix}"
        raise KitsattnError(msg)
    try:
        check_label_values(named)
    except ValueError as error:
        msg = f"{file}: {error}"
        raise KitsattnError(msg) from error
    return named


def _classes_of_regions(named: Mapping[str, Any], file: Path, fix: str) -> Mapping[str, int]:
    """Return the classes behind regions that overlap; the class of a value cannot be derived from others."""
    regions = {
        name: tuple(sorted(value, key=str)) if isinstance(value, list) else (value,)
        for name, value in named.items()
        if name != "background"
    }
    for known, labels in _REGIONS:
        if regions == known:
            return labels
    msg = f"{file} has regions instead of classes, {regions}, and only those of KiTS are understood: {fix}"
    raise KitsattnError(msg)


def _spell(name: str) -> str:
    name = name.lower()
    return "tumour" if name == "tumor" else name


def _text(settings: Mapping[str, Any], *keys: str) -> str:
    """Return the first of these keys that says something; nnU-Net's own converters write `none`."""
    values = [settings[key] for key in keys if isinstance(settings.get(key), str)]
    return next((value for value in values if value.strip().lower() not in {"", "none"}), UNKNOWN)


def _listed_cases(listed: object, file: Path) -> tuple[CaseFiles, ...]:
    """Take the cases from the `dataset` key, which names their files wherever they are."""
    if not isinstance(listed, Mapping) or not listed:
        msg = f"{file}: dataset must be an object with a key for each case, got {listed!r}"
        raise KitsattnError(msg)
    cases = []
    for case_id, content in sorted(listed.items()):
        entry = from_json(_Listed, content, f"{file}: dataset.{case_id}")
        if len(entry.images) != 1:
            msg = f"{file}: dataset.{case_id} has {len(entry.images)} images, and exactly one channel is read"
            raise KitsattnError(msg)
        image, labels = file.parent / entry.images[0], file.parent / entry.label
        for path in (image, labels):
            if not path.is_file():
                msg = f"{path} does not exist, and {file} lists it for {case_id}: restore it, or take the case out"
                raise KitsattnError(msg)
        cases.append(CaseFiles(case_id, image, labels))
    return tuple(cases)


def _find_cases(folder: Path, ending: str) -> tuple[CaseFiles, ...]:
    images: dict[str, Path] = {}
    for path in _files(folder / IMAGES_FOLDER, ending):
        match = _CHANNEL.fullmatch(path.name.removesuffix(ending))
        if match is None or match["channel"] != "0000":
            msg = f"{path}: nnU-Net calls an image of one channel CASE_0000{ending}: rename it, or move it away"
            raise KitsattnError(msg)
        images[match["case"]] = path
    if not images:
        msg = f"{folder / IMAGES_FOLDER} holds no image: expected files such as CASE_0000{ending}"
        raise KitsattnError(msg)
    labels = {path.name.removesuffix(ending): path for path in _files(folder / LABELS_FOLDER, ending)}
    orphans = [path.name for case, path in labels.items() if case not in images]
    if orphans:
        msg = (
            f"{folder / LABELS_FOLDER}: {len(orphans)} of {len(labels)} label maps have no image in {IMAGES_FOLDER} "
            f"({name_some(orphans)}): restore the images, or move the label maps away"
        )
        raise KitsattnError(msg)
    return tuple(CaseFiles(case, image, labels.get(case)) for case, image in images.items())


def _files(folder: Path, ending: str) -> list[Path]:
    """Return the files of that ending by name."""
    if not folder.is_dir():
        return []
    return [path for path in visible_entries(folder) if path.name.endswith(ending)]
