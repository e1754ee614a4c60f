"""What there is to score: predictions are matched with references by case id."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kitsattn.datasets.dataset import read_description
from kitsattn.datasets.find import find_dataset
from kitsattn.datasets.kits import AGGREGATED_NAME, find_cases_folder, recognise_challenge
from kitsattn.datasets.nnunet import read_nnunet_labels
from kitsattn.errors import KitsattnError
from kitsattn.files import visible_entries
from kitsattn.labels import KITS19, KITS23, ScoringProtocol, protocol_of
from kitsattn.words import count_rest, readable

_SUFFIX = re.compile(r"\.(nii|nii\.gz|nrrd|seg\.nrrd|mha)$", re.IGNORECASE)
_SHOWN = 3
_LAYOUT = "case_00000.nii.gz, prediction_00000.nii.gz or case_00000/segmentation.nii.gz"


@dataclass(frozen=True)
class CasePair:
    """The two label maps of one case.

    Attributes:
        case: The case's id.
        prediction: The predicted label map; None if it is missing, which counts as all background.
        reference: The reference label map.
        scan: The scan, for pictures; None if it is not known.
    """

    case: str
    prediction: Path | None
    reference: Path
    scan: Path | None = None

    def __str__(self) -> str:
        """Return what it is called in messages."""
        return self.case


@dataclass(frozen=True)
class MatchedCases:
    """What there is to score.

    Attributes:
        pairs: One for each reference, in the order of the case ids.
        surplus: Ids of predictions that have no reference and are left out.
    """

    pairs: tuple[CasePair, ...]
    surplus: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of references that have no prediction."""
        return tuple(pair.case for pair in self.pairs if pair.prediction is None)


def match_cases(predictions: Path, references: Path) -> MatchedCases:
    """Find the prediction of every reference.

    Two files are one case. In two folders, label maps belong together that have the same case id: the file's name
    without its suffix, `case_00000` for `prediction_00000.nii.gz` (the name KiTS19 asks for in submissions), and the
    folder's name for `case_00000/segmentation.nii.gz`, the layout of the KiTS data, or KiTS21's
    `case_00000/aggregated_MAJ_seg.nii.gz`.

    Args:
        predictions: A label map, or a folder of them.
        references: The same for the references.

    Returns:
        One pair for each reference, and the predictions that belong to none.

    Raises:
        KitsattnError: If a path does not exist, if one is a file and the other a folder, if two files in a folder
            have the same case id, or if no prediction belongs to a reference.
    """
    for path in (predictions, references):
        if not path.exists():
            msg = f"{path} does not exist: give a label map, or a folder of label maps"
            raise KitsattnError(msg)
    if predictions.is_file() and references.is_file():
        return MatchedCases((CasePair(_case_id(references), predictions, references),))
    if predictions.is_file() or references.is_file():
        file, folder = (predictions, references) if predictions.is_file() else (references, predictions)
        msg = f"{file} is a file but {folder} is a folder: give two files, or two folders"
        raise KitsattnError(msg)
    predicted = _find_label_maps(predictions)
    truth = _find_label_maps(references)
    if not predicted.keys() & truth.keys():
        mine, theirs = (count_rest(sorted(found), _SHOWN) for found in (predicted, truth))
        msg = (
            f"no label map in {predictions} ({mine}) has the case id of one in {references}"
            f" ({theirs}): give the files of a case the same name in both"
        )
        raise KitsattnError(msg)
    pairs = tuple(CasePair(case, predicted.get(case), reference) for case, reference in sorted(truth.items()))
    return MatchedCases(pairs, tuple(sorted(predicted.keys() - truth.keys())))


def choose_protocol(references: Path) -> ScoringProtocol:
    """Return how reference label maps are scored, by what is around them; no label map is opened.

    The labels that the nearest `kitsattn-dataset.json` at or above them names decide, or the `dataset.json` of
    nnU-Net's layout. Where none does, case folders with the marks of KiTS21 or KiTS23 are scored as KiTS23, and all
    else as KiTS19.

    Args:
        references: A label map, or a folder of them.

    Raises:
        KitsattnError: If that file cannot be read or is wrong.
    """
    place = references.absolute()
    labels = read_description(place, *place.parents).labels
    if labels is not None:
        return protocol_of(labels)
    for folder in _places(references):
        labels = read_nnunet_labels(folder)
        if labels is not None:
            return protocol_of(labels)
    cases_folder = find_cases_folder(place)
    return KITS19 if cases_folder is None or recognise_challenge(cases_folder) == "kits19" else KITS23


def add_scans(matched: MatchedCases, references: Path) -> MatchedCases:
    """Return the same cases with their scans, where references are in a data set or beside their scans.

    Args:
        matched: From `match_cases`.
        references: The references that it was given.
    """
    scans: dict[Path, Path] = {}
    for place in _places(references):
        with suppress(KitsattnError):
            scans = {_normal(case.labels): case.image for case in find_dataset(place).cases if case.labels}
            break
    pairs = [replace(pair, scan=scans.get(_normal(pair.reference))) for pair in matched.pairs]
    return replace(matched, pairs=tuple(pairs))


def _places(references: Path) -> tuple[Path, Path]:
    """Return where a data set may be: in the references' folder, or above it."""
    folder = _normal(references) if references.is_dir() else _normal(references).parent
    return folder, folder.parent


def _normal(path: Path) -> Path:
    """Return a path without `..`, which has a folder above it; links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - pathlib has this with links resolved only


def _find_label_maps(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in visible_entries(folder):
        candidates = [entry]
        if entry.is_dir():
            candidates = sorted(entry.glob("segmentation.*")) or sorted(entry.glob(AGGREGATED_NAME))
        for path in candidates:
            if not _SUFFIX.search(path.name):
                continue
            case = _case_id(path)
            if case in found:
                msg = f"{found[case]} and {path} are both label maps of {case}: keep one of them in {folder}"
                raise KitsattnError(msg)
            found[case] = path
    if not found:
        msg = f"{folder} holds no label maps: they are expected as {_LAYOUT}, and may be .nii, .nrrd or .mha too"
        raise KitsattnError(msg)
    return found


def _case_id(path: Path) -> str:
    name = readable(_SUFFIX.sub("", path.name))
    if name == "segmentation" or path.name == AGGREGATED_NAME:
        return readable(path.absolute().parent.name)
    return re.sub(r"^prediction_(?=\d+$)", "case_", name)
