"""Finds the data set in a folder, whichever of the known layouts it has."""

from pathlib import Path

from kitsattn.datasets.dataset import SCAN_SUFFIXES, Dataset
from kitsattn.datasets.kits import CHALLENGES, IMAGE_NAME, find_cases_folder, read_kits, recognise_challenge
from kitsattn.datasets.nnunet import IMAGES_FOLDER, LABELS_FOLDER, SETTINGS_NAME, read_nnunet
from kitsattn.datasets.pairs import EXPECTED, holds_pairs, read_pairs
from kitsattn.errors import KitsattnError
from kitsattn.files import unreadable

LAYOUTS = (*CHALLENGES, "nnunet", "pairs")


def find_dataset(folder: Path, *, layout: str | None = None) -> Dataset:
    """Find the data set in a folder. Names alone are looked at; no volume is opened.

    Args:
        folder: Holds the data set; for KiTS also the challenge's repository.
        layout: One of `LAYOUTS`; None recognises it. `case_NNNNN` folders are KiTS before anything else lying beside
            them counts, then `dataset.json` or the folders of nnU-Net, then pairs.

    Returns:
        The data set, with its layout. What `kitsattn-dataset.json` in the folder says wins over what the layout says.

    Raises:
        KitsattnError: If no layout is recognised, or the data set is not as its layout says, or a folder
            cannot be read.
    """
    if layout is not None and layout not in LAYOUTS:
        msg = f"the layout {layout!r} is not known: choose {', '.join(LAYOUTS)}"
        raise KitsattnError(msg)
    try:
        return _find_dataset(folder, layout)
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error) from error


def _find_dataset(folder: Path, layout: str | None) -> Dataset:
    if not folder.is_dir():
        msg = f"{folder} is not a folder: name one that holds a data set, such as case_00000/{IMAGE_NAME} and so on"
        raise KitsattnError(msg)
    layout = layout or _recognise_layout(folder)
    if layout == "nnunet":
        return read_nnunet(folder)
    if layout == "pairs":
        return read_pairs(folder)
    return read_kits(folder, layout)


def _recognise_layout(folder: Path) -> str:
    cases_folder = find_cases_folder(folder)
    if cases_folder is not None:
        return recognise_challenge(cases_folder)
    if (folder / SETTINGS_NAME).is_file() or any((folder / name).is_dir() for name in (IMAGES_FOLDER, LABELS_FOLDER)):
        return "nnunet"
    if holds_pairs(folder):
        return "pairs"
    msg = (
        f"{folder} holds no data set: expected case_00000/{IMAGE_NAME} and so on (KiTS, also in data or dataset), "
        f"{IMAGES_FOLDER} with {LABELS_FOLDER} and {SETTINGS_NAME} (nnU-Net), {EXPECTED}; in one of the formats "
        f"{', '.join(SCAN_SUFFIXES)}"
    )
    raise KitsattnError(msg)
