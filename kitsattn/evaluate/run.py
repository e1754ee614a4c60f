"""Evaluation of a cohort: match predictions with references, score every case, average."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from kitsattn.datasets.dataset import read_description
from kitsattn.datasets.kits import AGGREGATED_NAME, find_cases_folder, recognise_challenge
from kitsattn.errors import KitsattnError
from kitsattn.evaluate.case import CaseScores, score_case
from kitsattn.evaluate.metrics import DICE, Metric, rules_of
from kitsattn.evaluate.spread import Spread, measure_spread
from kitsattn.jobs import Progress, run_cases, silent
from kitsattn.labels import KITS19, KITS23, ScoringProtocol, protocol_of

_SUFFIX = re.compile(r"\.(nii|nii\.gz|nrrd|mha)$", re.IGNORECASE)
_LAYOUT = "case_00000.nii.gz, prediction_00000.nii.gz or case_00000/segmentation.nii.gz"


@dataclass(frozen=True)
class CasePair:
    """The two label maps of one case.

    Attributes:
        case: The case's id.
        prediction: The predicted label map; None if it is missing, which counts as all background.
        reference: The reference label map.
    """

    case: str
    prediction: Path | None
    reference: Path


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


@dataclass(frozen=True)
class Scores:
    """The scores of a cohort.

    Attributes:
        cases: The scores of each case; at least one.
        protocol: By which they were scored.
        metrics: What they were scored by.
        missing: Ids of the cases that had no prediction, scored as all background.
        surplus: Ids of predictions that had no reference, not scored.
    """

    cases: tuple[CaseScores, ...]
    protocol: ScoringProtocol
    metrics: tuple[Metric, ...] = (DICE,)
    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()

    @property
    def mean(self) -> Mapping[str, Mapping[str, float]]:
        """Region key to metric key to the mean over the cases for which it is defined; NaN if it is for none."""
        return {
            region: {metric: spread.mean for metric, spread in spreads.items()}
            for region, spreads in self.spread.items()
        }

    @cached_property
    def spread(self) -> Mapping[str, Mapping[str, Spread]]:
        """Region key to metric key to its spread over the cases."""
        return {
            region.key: {
                metric.key: measure_spread(case.regions[region.key][metric.key] for case in self.cases)
                for metric in self.metrics
            }
            for region in self.protocol.regions
        }

    @property
    def composite(self) -> float:
        """The mean over the regions of their mean Dice, by which KiTS19 ranks."""
        return fmean(metrics[DICE.key] for metrics in self.mean.values())

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON-ready values, None where one is not defined, with the rules for empty regions."""
        composite = {"composite": self.composite} if DICE in self.metrics else {}
        return {
            "protocol": self.protocol.key,
            "cases": [{"case": case.case, **_without_nan(case.regions)} for case in self.cases],
            "mean": _without_nan(self.mean),
            "spread": {
                region: {metric: _spread_to_json(spread) for metric, spread in spreads.items()}
                for region, spreads in self.spread.items()
            },
            **composite,
            "rules": list(rules_of(self.metrics, self.protocol.regions)),
            "missing": list(self.missing),
            "surplus": list(self.surplus),
        }


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
        msg = (
            f"no label map in {predictions} ({_some(predicted)}) has the case id of one in {references}"
            f" ({_some(truth)}): name the files of a case alike in both"
        )
        raise KitsattnError(msg)
    pairs = tuple(CasePair(case, predicted.get(case), reference) for case, reference in sorted(truth.items()))
    return MatchedCases(pairs, tuple(sorted(predicted.keys() - truth.keys())))


def choose_protocol(references: Path) -> ScoringProtocol:
    """Return how reference label maps are scored, by what lies around them; no label map is opened.

    The labels that the nearest `kitsattn-dataset.json` at or above them names decide. Where none does, case folders
    with the marks of KiTS21 or KiTS23 are scored as KiTS23, and all else as KiTS19.

    Args:
        references: A label map, or a folder of them.

    Raises:
        KitsattnError: If that `kitsattn-dataset.json` cannot be read or is wrong.
    """
    place = references.absolute()
    labels = read_description(place, *place.parents).labels
    if labels is not None:
        return protocol_of(labels)
    cases_folder = find_cases_folder(place)
    return KITS19 if cases_folder is None or recognise_challenge(cases_folder) == "kits19" else KITS23


def evaluate_cases(
    matched: MatchedCases,
    *,
    metrics: Sequence[Metric] = (DICE,),
    protocol: ScoringProtocol = KITS19,
    workers: int = 1,
    progress: Progress = silent,
) -> Scores:
    """Score a protocol's regions in every case.

    Args:
        matched: What to score, from `match_cases`; at least one pair.
        metrics: What to score by.
        protocol: Which labels there are, and what to score.
        workers: Number of processes; 1 scores in this one.
        progress: Called after each case.

    Returns:
        The scores, cases in the order of the pairs.

    Raises:
        KitsattnError: If a label map cannot be read, or lies on another grid than its reference, or if a reference
            holds labels that the protocol does not know.
    """
    work = partial(_score_pair, protocol=protocol, metrics=tuple(metrics))
    cases = run_cases(work, matched.pairs, workers=workers, label="evaluate", progress=progress)
    return Scores(tuple(cases), protocol, tuple(metrics), matched.missing, matched.surplus)


def _score_pair(pair: CasePair, protocol: ScoringProtocol, metrics: tuple[Metric, ...]) -> CaseScores:
    return score_case(pair.case, pair.prediction, pair.reference, protocol=protocol, metrics=metrics)


def _spread_to_json(spread: Spread) -> dict[str, Any]:
    interval = None if math.isnan(spread.low) else [spread.low, spread.high]
    sd, median = (None if math.isnan(value) else value for value in (spread.deviation, spread.median))
    return {"cases": spread.cases, "median": median, "sd": sd, "mean_ci95": interval}


def _without_nan(regions: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return values by region and metric as JSON has them, which knows no NaN."""
    return {
        region: {key: None if math.isnan(value) else value for key, value in values.items()}
        for region, values in regions.items()
    }


def _find_label_maps(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
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
    name = _SUFFIX.sub("", path.name)
    if name == "segmentation" or path.name == AGGREGATED_NAME:
        return path.absolute().parent.name
    return re.sub(r"^prediction_(?=\d+$)", "case_", name)


def _some(label_maps: Mapping[str, Path], shown: int = 3) -> str:
    ids = sorted(label_maps)
    return ", ".join(ids[:shown]) + (f" and {len(ids) - shown} more" if len(ids) > shown else "")
