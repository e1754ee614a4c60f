"""A submission to a challenge: whether its files are what the challenge's rules ask for, and the archive of them."""

import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.files import atomic_path, is_visible, unreadable
from kitsattn.jobs import HERE, Progress, Workers, silent, try_cases
from kitsattn.labels import BACKGROUND, KITS19, KITS23, ScoringProtocol
from kitsattn.volume.formats import read_grid, read_labels
from kitsattn.volume.orientation import SPATIAL_AXES
from kitsattn.volume.volume import FileGrid
from kitsattn.words import count_rest

AFFINE_TOLERANCE = 1e-3
"""Up to where the absolute differences of two affines may add, by kits23/check_submission_folder.py."""

_SUFFIX = ".nii.gz"
_NAMES = {KITS19.key: "prediction", KITS23.key: "case"}
_KITS19_TEST_CASES = tuple(f"{number:05}" for number in range(210, 300))
_PREDICTION = re.compile(r"(?:prediction|case)_(\d{5})\.(?:nii\.gz|nii|nrrd|mha|mhd)", re.IGNORECASE)
_SCANS = ("case_*/imaging.nii.gz", "case_*.nii.gz")
_SCAN = re.compile(r"case_(\d{5})(?:/imaging|_0000)?\.nii\.gz")
_GZIP_MAGIC = b"\x1f\x8b"
_SHOWN = 5
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip archive can state."""
_UNIX, _FILE_MODE = 3, 0o100644
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class CheckedSubmission:
    """What a folder holds for a challenge, and what is to be said of it, one line each.

    Attributes:
        protocol: KITS19 or KITS23, whose rules KiTS21 shares.
        files: Name in the archive to file, in the order of names.
        problems: What the challenge would refuse or score as wrong; nothing is archived before they are fixed.
        warnings: What the challenge takes, but is hardly meant.
        notes: What else a reader should know.
    """

    protocol: ScoringProtocol
    files: Mapping[str, Path]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "protocol": self.protocol.key,
            "files": {name: str(path) for name, path in self.files.items()},
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


def guess_protocol(folder: Path) -> ScoringProtocol:
    """Return whose test cases a folder holds: KiTS19's end at 00299, KiTS21's and KiTS23's begin behind it.

    Args:
        folder: Named as for `check_submission`.

    Raises:
        KitsattnError: If it does not exist or cannot be read.
    """
    return KITS23 if max(_find_predictions(folder)[0], default="") > _KITS19_TEST_CASES[-1] else KITS19


def check_submission(
    folder: Path,
    images: Path | None,
    protocol: ScoringProtocol,
    *,
    workers: Workers = HERE,
    progress: Progress = silent,
) -> CheckedSubmission:
    """Check predictions by the rules of a challenge; whatever is wrong with some, all are checked.

    KiTS19 wants cases 00210 to 00299 and takes those that are missing as background. KiTS21 and KiTS23 want every
    case of the test scans, in their shape and affine.

    Args:
        folder: The predictions, prediction_00210.nii.gz or case_00210.nii.gz.
        images: The test scans, case_00210/imaging.nii.gz, case_00210.nii.gz or case_00210_0000.nii.gz. Without them
            neither shapes and affines nor, for KITS23, completeness are checked.
        protocol: KITS19 or KITS23.
        workers: Who checks.
        progress: Called after each file.

    Raises:
        KitsattnError: If a folder does not exist or cannot be read, `images` holds no scans, or the protocol is that
            of no challenge.
    """
    if protocol.key not in _NAMES:
        msg = f"there are submissions to KiTS19 and KiTS23, not by {protocol.title}: add --protocol kits19 or kits23"
        raise KitsattnError(msg)
    candidates, others = _find_predictions(folder)
    scans = {} if images is None else _find_scans(images)
    expected = set(_KITS19_TEST_CASES) if protocol == KITS19 else set(scans or candidates)
    files, problems = _choose_files({number: candidates[number] for number in expected & candidates.keys()})
    others += [path.name for number, paths in candidates.items() if number not in expected for path in paths]
    notes = [f"These do not go into the archive: {count_rest(sorted(others), _SHOWN)}."] if others else []
    warnings = []
    missing = [_archive_name(number, protocol) for number in sorted(expected - candidates.keys())]
    if not expected & candidates.keys():
        problems.append(f"{folder} holds no predictions of test cases: name them {_archive_name('NNNNN', protocol)}")
    elif missing and protocol == KITS19:
        warnings.append(f"{folder} lacks {count_rest(missing, _SHOWN)}: what is missing counts as background")
    else:
        problems += [f"{folder / name} is missing: predict that case too" for name in missing]
    if images is None:
        unknown = "Shapes and affines" if protocol == KITS19 else "Shapes, affines, and whether every case is there,"
        notes.append(f"{unknown} were not checked: that needs the test scans.")
    elif unseen := [path.name for number, path in files.items() if number not in scans]:
        warnings.append(f"{images} holds no scan of {count_rest(unseen, _SHOWN)}: shape and affine were not checked")
    grids = {path: scans[number] for number, path in files.items() if number in scans}
    work = partial(_check_file, scans=grids, protocol=protocol)
    for findings in try_cases(work, list(files.values()), workers=workers, label="check", progress=progress):
        faults, doubts = ([str(findings)], []) if isinstance(findings, KitsattnError) else findings
        problems += faults
        warnings += doubts
    named = {_archive_name(number, protocol): path for number, path in files.items()}
    return CheckedSubmission(protocol, named, tuple(problems), tuple(warnings), tuple(notes))


def zip_submission(path: Path, checked: CheckedSubmission) -> None:
    """Write the archive that is handed in, atomically, replacing an existing file.

    The same files give the same bytes. They are compressed already, and are stored as they are.

    Args:
        path: Ends in .zip; KiTS19 asks for `predictions.zip`.
        checked: A submission without problems.

    Raises:
        KitsattnError: If it has problems, a file of it cannot be read, or the archive cannot be written.
    """
    if checked.problems:
        more = f" (and {len(checked.problems) - 1} more)" if len(checked.problems) > 1 else ""
        msg = f"{path} was not written, fix first: {checked.problems[0]}{more}"
        raise KitsattnError(msg)
    if path.suffix.lower() != ".zip":
        msg = f"{path} is not the name of a zip archive: use a name such as predictions.zip"
        raise KitsattnError(msg)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, file in sorted(checked.files.items()):
            _add(archive, name, file)


def _add(archive: zipfile.ZipFile, name: str, file: Path) -> None:
    entry = zipfile.ZipInfo(name, _EARLIEST)
    entry.create_system, entry.external_attr = _UNIX, _FILE_MODE << 16
    with ExitStack() as stack:
        try:
            source = stack.enter_context(file.open("rb"))
            entry.file_size = file.stat().st_size  # from 2 GiB on, the entry is begun as one of zip64
        except OSError as error:
            raise unreadable(file, error) from error
        shutil.copyfileobj(source, stack.enter_context(archive.open(entry, "w")), _BLOCK_BYTES)


def _find_predictions(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the files of each case number, whatever their format, and the names of all else that is not hidden."""
    found: dict[str, list[Path]] = {}
    others = []
    for path in _entries(folder):
        match = _PREDICTION.fullmatch(path.name)
        if match:
            found.setdefault(match[1], []).append(path)
        elif is_visible(path.name):
            others.append(path.name)
    return found, others


def _find_scans(images: Path) -> dict[str, Path]:
    _entries(images)
    found: dict[str, Path] = {}
    for path in (path for pattern in _SCANS for path in sorted(images.glob(pattern))):
        match = _SCAN.fullmatch(path.relative_to(images).as_posix())
        if match:
            found.setdefault(match[1], path)
    if not found:
        layouts = "case_00210/imaging.nii.gz, case_00210.nii.gz or case_00210_0000.nii.gz"
        msg = f"{images} holds no test scans: they are expected as {layouts}"
        raise KitsattnError(msg)
    return found


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        msg = f"{folder} {'is a file' if folder.exists() else 'does not exist'}: name a folder"
        raise KitsattnError(msg)
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error


def _choose_files(candidates: Mapping[str, Sequence[Path]]) -> tuple[dict[str, Path], list[str]]:
    """Return the one file of each case, by number, and a problem for each case that has no such file."""
    files, problems = {}, []
    for number, (path, *further) in sorted(candidates.items()):
        if further:
            problems.append(f"{path} and {further[0]} are both of case {number}: keep one of them")
        elif not path.name.endswith(_SUFFIX):
            problems.append(f"{path} has a format that the challenge does not take: write it as {_SUFFIX}")
        else:
            files[number] = path
    return files, problems


def _check_file(path: Path, scans: Mapping[Path, Path], protocol: ScoringProtocol) -> tuple[list[str], list[str]]:
    """Return the problems and the warnings of one prediction."""
    grid = read_grid(path)[1]
    problems = _check_grid(grid, scans.get(path))
    with path.open("rb") as file:
        if file.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
            problems.append(f"{path} is named {_SUFFIX} but is not compressed: compress it with gzip")
    try:
        labels = read_labels(path)
    except KitsattnError as error:
        return [*problems, str(error)], []
    return problems, _check_values(labels.array, path, protocol)


def _check_grid(grid: FileGrid, scan: Path | None) -> list[str]:
    """Compare shape and affine with the scan's as the files have them: the challenges know no other order of axes."""
    shape = _shape(grid)
    if len(shape) != SPATIAL_AXES:
        return [f"{grid.path} has the shape {shape}: write it with three axes"]
    if scan is None:
        return []
    wanted = read_grid(scan)[1]
    fix = "write it on the grid of its scan, in the same order of axes, as `kitsattn predict` does"
    if shape != _shape(wanted):
        return [f"{grid.path} has the shape {shape}, {scan} has {_shape(wanted)}: {fix}"]
    difference = float(np.abs(grid.header.get_best_affine() - wanted.header.get_best_affine()).sum())
    if difference > AFFINE_TOLERANCE:
        return [f"{grid.path} has another affine than {scan}, by {difference:.3g} in sum: {fix}"]
    return []


def _shape(grid: FileGrid) -> tuple[int, ...]:
    return tuple(int(size) for size in grid.header.get_data_shape())


def _check_values(labels: NDArray[np.uint8], path: Path, protocol: ScoringProtocol) -> list[str]:
    counts = sum(np.bincount(one_slice.ravel(), minlength=256) for one_slice in labels)
    found = set(np.flatnonzero(counts).tolist())
    known = set(protocol.labels.values())
    warnings = []
    if found - known:
        values = count_rest(map(str, sorted(found - known)), _SHOWN)
        names = ", ".join(f"{value} {name}" for name, value in protocol.labels.items())
        warnings.append(f"{path} holds the values {values}, which count as background: {protocol.title} knows {names}")
    if not found & known - {BACKGROUND}:
        warnings.append(f"{path} holds nothing but background: see that its prediction did not fail")
    return warnings


def _archive_name(number: str, protocol: ScoringProtocol) -> str:
    return f"{_NAMES[protocol.key]}_{number}{_SUFFIX}"
