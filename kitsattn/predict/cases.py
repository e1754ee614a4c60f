"""What is to be predicted: the scans that a folder or a list holds, and what is written for each. Free of torch."""

import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from kitsattn.datasets.dataset import SCAN_SUFFIXES
from kitsattn.datasets.kits import IMAGE_NAME, find_cases_folder, scan_name
from kitsattn.errors import KitsattnError
from kitsattn.files import expand_path, is_clutter, is_dangling, is_file_or_dangling, unreadable, visible_entries
from kitsattn.volume.formats import is_dicom_file, read_scan
from kitsattn.volume.volume import Volume
from kitsattn.words import name_some

DICOM_SUFFIX = ".dcm"
"""Of a label map that is a DICOM Segmentation; it refers to the images of the DICOM series that was predicted."""
LIST_SUFFIX = ".txt"

_SCAN_SUFFIXES = (*SCAN_SUFFIXES, ".mhd", ".zip")
_KITS_CASE = re.compile(r"case_(\d+)")
_FIRST_CHANNEL = "_0000"


@dataclass(frozen=True, kw_only=True)
class PredictionCase:
    """A scan to predict, and what is to be written.

    Attributes:
        name: What it is called in messages, pictures and reports.
        source: The scan in HU, in any format that `volume.formats` reads, a DICOM folder or archive among them.
        target: Where the label map goes; its suffix is the format.
        series: Which DICOM series, by number or UID, and which scan in it, see `read_scan`; None takes the best of CT.
        statistics: Where volumes, diameters and attenuation go, as JSON; it is replaced.
        preview: Where a sheet with slices and contours goes, as PNG; it is replaced.
        probabilities: Where the probabilities of all classes go, as NIfTI; it is replaced.
        pictured: Whether a small picture is drawn for a report.
        assume_hu: Whether the scan's values are taken as HU without a check.
    """

    name: str
    source: Path
    target: Path
    series: str | None = None
    statistics: Path | None = None
    preview: Path | None = None
    probabilities: Path | None = None
    pictured: bool = False
    assume_hu: bool = False


def read_ahead(case: PredictionCase) -> Callable[[], Volume]:
    """Begin to read the scan of a case, beside whatever this thread does next.

    Returns:
        What waits for the scan and gives it, or raises what reading it raised.
    """
    scan: Future[Volume] = Future()

    def read() -> None:
        try:
            scan.set_result(read_scan(case.source, case.series))
        except Exception as error:  # noqa: BLE001 - any: it is raised where it is waited for
            scan.set_exception(error)

    Thread(target=read, daemon=True).start()  # a daemon: who meanwhile fails or is stopped need not wait for it
    return scan.result


def holds_cases(source: Path) -> bool:
    """Tell whether a path is a list, a KiTS folder, or a folder with files of scans other than DICOM."""
    if not source.is_dir():
        return source.suffix.lower() == LIST_SUFFIX
    return find_cases_folder(source) is not None or (bool(_scan_files(source)) and not _is_series(source))


def find_cases(source: Path, folder: Path, suffix: str) -> list[PredictionCase]:
    """Find the scans in a folder or a list.

    - A list is a text file with one path a line, relative to the list; empty lines and those with # are left out.
    - A KiTS folder holds `case_NNNNN/imaging.nii.gz`, whose label maps are `prediction_NNNNN`, as the challenges want.
    - Any other folder holds scans in files, or DICOM: one case in each folder or .zip archive. Their label maps keep
      their names, but for nnU-Net's `_0000` where all have it. A folder with DICOM files right in it is one case.

    Args:
        source: The folder or list.
        folder: Where the label maps go.
        suffix: Their format, such as `.nii.gz`.

    Returns:
        The cases in the order of the list, else of their names.

    Raises:
        KitsattnError: If there is none, a scan of a list is not there, or two label maps would have one name.
    """
    if source.suffix.lower() == LIST_SUFFIX and source.is_file():
        scans = {path: scan_name(path) for path in _read_list(source)}
    elif cases_folder := find_cases_folder(source):
        folders = [
            path
            for path in sorted(cases_folder.glob("case_*"))
            if is_dangling(path) or is_file_or_dangling(path / IMAGE_NAME)
        ]
        scans = {path / IMAGE_NAME: _kits_name(path.name) for path in folders}
    else:
        found = [source] if _is_series(source) else sorted([*_scan_files(source), *_dicom_folders(source)])
        scans = {path: scan_name(path) for path in found}
        if scans and all(name.endswith(_FIRST_CHANNEL) for name in scans.values()):
            scans = {path: name.removesuffix(_FIRST_CHANNEL) for path, name in scans.items()}
    if not scans:
        msg = f"{source} holds no scan: expected case_NNNNN/{IMAGE_NAME}, files in one of the formats "
        raise KitsattnError(msg + f"{', '.join(_SCAN_SUFFIXES)}, or folders of DICOM files")
    twice = [name for name, count in Counter(scans.values()).items() if count > 1]
    if twice:
        msg = (
            f"{source} holds several scans called {name_some(twice)}, whose label maps would have one name: rename them"
        )
        raise KitsattnError(msg)
    return [PredictionCase(name=name, source=path, target=folder / f"{name}{suffix}") for path, name in scans.items()]


def _read_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        msg = f"{path} is not a text file in UTF-8: write one scan path per line"
        raise KitsattnError(msg) from error
    except OSError as error:
        raise unreadable(path, error) from error
    scans = [
        path.parent / expand_path(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")
    ]
    missing = [str(scan) for scan in scans if not scan.exists()]
    if missing:
        msg = f"{path} names what is not there: {name_some(missing)}"
        raise KitsattnError(msg)
    return scans


def _kits_name(folder: str) -> str:
    match = _KITS_CASE.fullmatch(folder)
    return f"prediction_{match[1]}" if match else folder


def _scan_files(folder: Path) -> list[Path]:
    """Return the files of scans by name, and links to what is not there."""
    return [
        path
        for path in visible_entries(folder)
        if path.name.lower().endswith(_SCAN_SUFFIXES) and is_file_or_dangling(path)
    ]


def _is_series(folder: Path) -> bool:
    """Tell whether DICOM files are directly in a folder."""
    files = [path for path in visible_entries(folder) if path.is_file()]
    return any(is_dicom_file(path) for path in files if not path.name.lower().endswith(_SCAN_SUFFIXES))


def _dicom_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that hold a DICOM file, however deep, and links to folders that are not there."""
    return [path for path in visible_entries(folder) if _holds_dicom(path) or (is_dangling(path) and not path.suffix)]


def _holds_dicom(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    inside = (path for path in folder.rglob("*") if not any(map(is_clutter, path.relative_to(folder).parts)))
    return any(is_dangling(path) or (path.is_file() and is_dicom_file(path)) for path in inside)
