"""What the starter network is trained from: which files, where they come from, and which are kept for validation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kitsattn.errors import KitsattnError
from kitsattn.labels import KIDNEY
from kitsattn.synthesis.slices import RealSlice
from kitsattn.volume.archive import READ_ERRORS

HELD_OUT_BODIES = frozenset({"s0009", "s0328"})
HELD_OUT_CURVAS = frozenset({10012, 10013, 10014})
FIRST_HELD_OUT_KITS = 159
"""KiTS19's cases from this one on are for validation; so are the subjects and patients above. None is trained on."""

_CURVAS_KIDNEY = 2


@dataclass(frozen=True)
class SourceInfo:
    """One of the folders or files that `train --recipe starter` reads.

    Attributes:
        path: Below the data folder.
        content: What it holds.
        origin: Where it can be had.
        licence: Licence of the data.
        citation: What to cite.
    """

    path: str
    content: str
    origin: str
    licence: str
    citation: str


KITS19_LABELS = SourceInfo(
    "kits19-labels",
    "KiTS19 label maps, case_NNNNN.nii.gz",
    "the folders data/case_NNNNN of github.com/neheller/kits19",
    "CC BY-NC-SA 4.0",
    "Heller et al., The KiTS19 Challenge Data, arXiv 1904.00445",
)
KITS23_LABELS = SourceInfo(
    "starter/kits23-labels",
    "KiTS23 label maps, case_NNNNN.nii.gz",
    "the folders dataset/case_NNNNN of github.com/neheller/kits23",
    "CC BY-NC-SA 4.0",
    "Heller et al., The KiTS21 Challenge, arXiv 2307.01984",
)
TOTALSEGMENTATOR = SourceInfo(
    "starter/totalsegmentator",
    "TotalSegmentator label maps, sNNNN_seg.nii.gz, with labels.json (value to name)",
    "zenodo.org/records/10047292",
    "CC BY 4.0",
    "Wasserthal et al., TotalSegmentator, Radiology: Artificial Intelligence 2023",
)
ATLAS = SourceInfo(
    "starter/spl-atlas",
    "SPL abdominal atlas, spl_seg.nii.gz, with labels.json",
    "the Open Anatomy Project, openanatomy.org",
    "3D Slicer licence",
    "SPL abdominal atlas, Surgical Planning Laboratory, Brigham and Women's Hospital",
)
CURVAS = SourceInfo(
    "starter/real-slices/curvas_108slices.npz",
    "slices of the CURVAS challenge, HU clipped to 0..255",
    "zenodo.org/records/11147560",
    "CC BY-NC 4.0",
    "CURVAS challenge 2024, Zenodo 11147560",
)
KITS19_SLICES = SourceInfo(
    "starter/real-slices/kits19_train_slices.npz",
    "slices of KiTS19, HU clipped to 0..255",
    "kits19.grand-challenge.org",
    "CC BY-NC-SA 4.0",
    KITS19_LABELS.citation,
)
SOURCES_OF_DATA = (KITS19_LABELS, KITS23_LABELS, TOTALSEGMENTATOR, ATLAS, CURVAS, KITS19_SLICES)


@dataclass(frozen=True)
class StarterData:
    """The files of a data folder.

    Attributes:
        folder: The folder.
        label_maps: KiTS's label maps, that scans are painted around and kidneys are cut out of. Without any, phantoms
            are painted that follow no patient, and bodies keep their own kidneys.
        bodies: Label maps of organs with the names of their values; held-out subjects are left out.
        atlas: The atlas and the names of its values; None where it is missing.
        slices: Real slices, held-out patients left out.
        held_out_slices: Real slices of held-out patients.
    """

    folder: Path
    label_maps: tuple[Path, ...]
    bodies: tuple[tuple[Path, Mapping[int, str]], ...]
    atlas: tuple[Path, Mapping[int, str]] | None
    slices: tuple[RealSlice, ...]
    held_out_slices: tuple[RealSlice, ...]


def find_starter_data(folder: Path | None) -> StarterData:
    """Find the files of every source; all but label maps of organs may be missing.

    Args:
        folder: The data folder; None raises the error that lists what belongs into one.

    Raises:
        KitsattnError: If the folder holds no label map of organs; the message lists what belongs there and where it
            comes from.
    """
    if folder is None:
        raise KitsattnError(_describe_missing("a recipe that makes scans needs --data FOLDER"))
    label_maps = [
        path
        for info in (KITS19_LABELS, KITS23_LABELS)
        for path in sorted((folder / info.path).glob("case_*.nii.gz"))
        if info is KITS23_LABELS or _case_number(path) < FIRST_HELD_OUT_KITS
    ]
    organs = folder / TOTALSEGMENTATOR.path
    maps = [path for path in sorted(organs.glob("s*_seg.nii.gz")) if _subject(path) not in HELD_OUT_BODIES]
    if not maps:
        raise KitsattnError(_describe_missing(f"{folder} holds no label maps of organs to make scans from"))
    names = _read_names(organs / "labels.json")
    atlas = folder / ATLAS.path / "spl_seg.nii.gz"
    slices = [*_read_curvas(folder / CURVAS.path), *_read_kits(folder / KITS19_SLICES.path)]
    return StarterData(
        folder,
        tuple(label_maps),
        tuple((path, names) for path in maps),
        (atlas, _read_names(atlas.with_name("labels.json"))) if atlas.exists() else None,
        tuple(one for one, held_out in slices if not held_out),
        tuple(one for one, held_out in slices if held_out),
    )


def _describe_missing(problem: str) -> str:
    lines = [f"{info.path} ({info.content}; from {info.origin}; {info.licence})" for info in SOURCES_OF_DATA]
    return f"{problem}. These belong below it, the third is needed: {', '.join(lines)}"


def _subject(path: Path) -> str:
    return path.name.removesuffix("_seg.nii.gz")


def _case_number(path: Path) -> int:
    digits = path.name.removeprefix("case_").removesuffix(".nii.gz")
    return int(digits) if digits.isdecimal() else FIRST_HELD_OUT_KITS


def _read_names(path: Path) -> dict[int, str]:
    try:
        content = json.loads(path.read_text("utf-8"))
        return {int(value): str(name) for value, name in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        msg = f'{path} must map label values to organ names, such as {{"2": "kidney_right"}} ({error})'
        raise KitsattnError(msg) from error


def _read_curvas(path: Path) -> list[tuple[RealSlice, bool]]:
    stored = _read_npz(path, ("images", "labels", "patient_index", "slice"))
    rows = (
        zip(*(stored[name] for name in ("images", "labels", "patient_index", "slice")), strict=True) if stored else ()
    )
    found = []
    for image, labels, patient, number in rows:
        kidney = np.where(labels == _CURVAS_KIDNEY, KIDNEY, 0).astype(np.uint8)
        one = RealSlice(f"CURVAS {patient} {number}", image, kidney, None, tumours_labelled=False)
        found.append((one, int(patient) in HELD_OUT_CURVAS))
    return found


def _read_kits(path: Path) -> list[tuple[RealSlice, bool]]:
    stored = _read_npz(path, ("images", "labels", "case", "slice", "spacing_zyx"))
    names = ("images", "labels", "case", "slice", "spacing_zyx")
    rows = zip(*(stored[name] for name in names), strict=True) if stored else ()
    return [
        (
            RealSlice(
                f"KiTS19 {case} {number}", image, labels.astype(np.uint8), float(spacing[1]), tumours_labelled=True
            ),
            int(case) >= FIRST_HELD_OUT_KITS,
        )
        for image, labels, case, number, spacing in rows
    ]


def _read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read arrays; a file that is not there gives none."""
    if not path.exists():
        return {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (*READ_ERRORS, KeyError) as error:
        msg = f"{path} does not hold the arrays {', '.join(names)} ({error}): copy it again"
        raise KitsattnError(msg) from error
