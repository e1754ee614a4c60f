"""A run: one model and recipe on one data set, fold by fold, each ended by the scores of its held-out cases."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from kitsattn.checkpoint.header import read_header
from kitsattn.errors import KitsattnError
from kitsattn.evaluate.match import CasePair, MatchedCases
from kitsattn.evaluate.metrics.dice import DICE
from kitsattn.evaluate.report import write_report, write_summary
from kitsattn.evaluate.run import evaluate_cases
from kitsattn.evaluate.scores import Scores
from kitsattn.evaluate.scoring import Scoring
from kitsattn.figures.overlay import overlay_sheet
from kitsattn.files import sole_writer, write_bytes
from kitsattn.jobs import Progress, silent
from kitsattn.labels import KITS19, KITS23
from kitsattn.notices import RESEARCH_NOTICE
from kitsattn.predict.cases import PredictionCase
from kitsattn.predict.infer import load_ensemble
from kitsattn.predict.run import predict_cases
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.threads import threads_beside_others
from kitsattn.train.fold import EpochEnd, ignore, train_fold
from kitsattn.train.job import FoldJob
from kitsattn.train.names import VALIDATION
from kitsattn.train.starter import ship
from kitsattn.volume.formats import read_labels, read_scan
from kitsattn.volume.hu import check_hu
from kitsattn.words import plural

SUMMARY = "summary.json"
REPORT = "report.html"
PICTURES = 10
"""Worst cases whose pictures go into the report, which carries them inside."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldResult:
    """What a fold left behind.

    Attributes:
        fold: Number of the fold.
        checkpoint: The best checkpoint.
        pairs: Prediction and reference of every held-out case.
        scores: Their scores.
        report: One-page report.
    """

    fold: int
    checkpoint: Path
    pairs: tuple[CasePair, ...]
    scores: Scores
    report: Path


def train_run(
    jobs: Sequence[FoldJob],
    *,
    resume: bool = True,
    save_every_minutes: float = 5.0,
    max_minutes: float | None = None,
    progress: Progress = silent,
    epoch_end: EpochEnd = ignore,
) -> list[FoldResult]:
    """Train folds one after the other; predict and score the held-out cases of each as whole volumes.

    Several processes share the cases that are predicted; the first one scores and reports.

    Args:
        jobs: The folds.
        resume: Whether to continue where an earlier call stopped.
        save_every_minutes: How much of an epoch is lost at most when the process is killed.
        max_minutes: How long the folds may be trained together; None trains to the end.
        progress: Called with the steps done of each part.
        epoch_end: Called after each epoch.

    Returns:
        One result a fold; none in any but the first of several processes, and none of a training on made scans,
        which leaves the file that ships instead (`train.starter`).

    Raises:
        KitsattnError: If another process trains the same fold of the same run, a checkpoint does not fit, a scan is
            gone, or the disk is full.
        OutOfTimeError: If `max_minutes` have passed; everything is saved.
    """
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    results = []
    for job in jobs:
        with _only_training(job):
            checkpoint = train_fold(
                job,
                resume=resume,
                save_every_minutes=save_every_minutes,
                deadline=deadline,
                progress=progress,
                epoch_end=epoch_end,
            )
            if job.made is not None:
                if job.ranks.is_main:
                    ship(job, checkpoint)
                continue
            predict_held_out(job, checkpoint, progress=progress)
            job.ranks.barrier()
            if job.ranks.is_main:
                results.append(score_held_out(job, checkpoint, progress=progress))
    return results


def _only_training(job: FoldJob) -> AbstractContextManager[None]:
    """Keep other trainings out of the fold's folder; of several processes, the one that writes does it for all."""
    if not job.ranks.is_main:
        return nullcontext()
    return sole_writer(job.folder, "kitsattn train", instead="name another --run-name")


def predict_held_out(job: FoldJob, checkpoint: Path, *, progress: Progress = silent) -> None:
    """Predict the held-out cases of a fold from their scans; what is newer than the checkpoint is kept.

    Raises:
        KitsattnError: If a scan or its label map is gone, or a file cannot be written.
    """
    cases = []
    for case_id in job.ranks.share(job.split.held_out):
        source = job.dataset.sources[case_id]
        for path in (source.image, source.labels):
            if not path.exists():
                msg = f"{path} is gone, and fold {job.fold} is scored on it: put it back and run the command again"
                raise KitsattnError(msg)
        target = job.folder / VALIDATION / f"{case_id}.nii.gz"
        if not _is_newer(target, checkpoint):
            case = PredictionCase(name=case_id, source=source.image, target=target, assume_hu=source.assumed_hu)
            cases.append(case)
    ensemble = load_ensemble([checkpoint], job.device, job.precision)
    with threads_beside_others(progress, torch.get_num_threads(), watch=job.device.type == "cpu") as adapting:
        results = predict_cases(ensemble, cases, overwrite=True, progress=adapting)
    for result in results:
        if isinstance(result, KitsattnError):
            raise result


def score_held_out(job: FoldJob, checkpoint: Path, *, progress: Progress = silent) -> FoldResult:
    """Score the predicted cases of a fold, and write summary, pictures and report."""
    folder = job.folder / VALIDATION
    pairs, images = [], {}
    for case_id in job.split.held_out:
        source = job.dataset.sources[case_id]
        target = folder / f"{case_id}.nii.gz"
        pairs.append(CasePair(case_id, target, source.labels))
        images[case_id] = folder / f"{case_id}.png"
        sheet = overlay_sheet(
            check_hu(read_scan(source.image), assume=source.assumed_hu),
            read_labels(target).array,
            read_labels(source.labels).array,
            title=f"{job.dataset.name} {case_id}, held out of fold {job.fold}",
            note=("SYNTHETIC phantom. " if job.dataset.synthetic else "") + RESEARCH_NOTICE,
            parts=job.protocol in (KITS19, KITS23),
        )
        write_bytes(images[case_id], sheet)
    scores = evaluate_cases(MatchedCases(tuple(pairs)), Scoring(job.protocol), progress=progress)
    for reason in scores.failed.values():
        raise KitsattnError(reason)
    provenance = provenance_rows(job.dataset, checkpoint)
    write_summary(folder / SUMMARY, scores, provenance=provenance)
    write_report(
        job.folder / REPORT,
        scores,
        title=f"{job.dataset.name}: held-out cases of fold {job.fold}",
        provenance=provenance,
        synthetic=job.dataset.synthetic,
        images={case: images[case] for case in _worst_cases(scores)},
    )
    _log.info("fold %d: held-out Dice %s", job.fold, describe_scores(scores))
    return FoldResult(job.fold, checkpoint, tuple(pairs), scores, job.folder / REPORT)


def _is_newer(target: Path, checkpoint: Path) -> bool:
    """Return whether a case was predicted since the checkpoint was written, by a run that was stopped then."""
    return target.exists() and target.stat().st_mtime_ns > checkpoint.stat().st_mtime_ns


def cross_validated(results: Sequence[FoldResult]) -> Scores:
    """Return the scores of all folds' held-out cases as one cohort."""
    cases = tuple(case for result in results for case in result.scores.cases)
    return Scores(cases, results[0].scores.scoring)


def report_cross_validation(folder: Path, jobs: Sequence[FoldJob], results: Sequence[FoldResult]) -> Path:
    """Write summary and report of all folds' held-out cases together, and return the report.

    Args:
        folder: Of the run.
        jobs: The folds.
        results: What they left behind, in the same order.
    """
    dataset, scores = jobs[0].dataset, cross_validated(results)
    images = {
        case.case: result.checkpoint.parent / VALIDATION / f"{case.case}.png"
        for result in results
        for case in result.scores.cases
    }
    provenance = {
        **provenance_rows(dataset, results[0].checkpoint),
        "fold": f"{', '.join(str(result.fold) for result in results)} of {jobs[0].folds}",
        "checkpoint": ", ".join(str(result.checkpoint) for result in results),
        **{f"fold {result.fold}": describe_scores(result.scores) for result in results},
    }
    write_summary(folder / SUMMARY, scores, provenance=provenance)
    write_report(
        folder / REPORT,
        scores,
        title=f"{dataset.name}: cross-validation over {plural(len(results), 'fold')}",
        provenance=provenance,
        synthetic=dataset.synthetic,
        images={case: images[case] for case in _worst_cases(scores)},
    )
    return folder / REPORT


def _worst_cases(scores: Scores) -> list[str]:
    """Return the cases whose pictures go into a report: those with the lowest mean Dice."""
    return [case.case for case in scores.worst_first(DICE)[:PICTURES]]


def describe_scores(scores: Scores) -> str:
    """Return the mean Dice of each region as one phrase."""
    return ", ".join(f"{region} {metrics['dice']:.3f}" for region, metrics in scores.mean.items())


def provenance_rows(dataset: PreparedDataset, checkpoint: Path) -> Mapping[str, str]:
    """Return where scores come from, as rows of a table."""
    header, _ = read_header(checkpoint)
    made = header.provenance
    return {
        "data set": dataset.name + (" (synthetic phantoms, no patients)" if dataset.synthetic else ""),
        "licence": dataset.licence,
        "citation": dataset.citation,
        "model": header.model,
        "recipe": f"{made.recipe}, {made.epoch} epochs, {made.precision}, seed {made.seed}",
        "fold": f"{made.fold} of {made.folds}",
        "checkpoint": str(checkpoint),
        "versions": f"kitsattn {made.kitsattn}, torch {made.torch}",
        "trained": made.created,
    }
