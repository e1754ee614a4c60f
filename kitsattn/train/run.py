"""A run: one model and recipe on one data set, fold by fold, each ended by the scores of its held-out cases."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from kitsattn.checkpoint.header import read_header
from kitsattn.errors import KitsattnError
from kitsattn.evaluate.report import write_report, write_summary
from kitsattn.evaluate.run import CasePair, MatchedCases, Scores, evaluate_dice
from kitsattn.figures.overlay import overlay_sheet
from kitsattn.jobs import Progress, silent
from kitsattn.notices import RESEARCH_NOTICE
from kitsattn.predict.infer import load_ensemble
from kitsattn.predict.run import predict_file
from kitsattn.preprocess.intensity import check_hu
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.train.fold import VALIDATION, FoldJob, train_fold
from kitsattn.volume.formats import read_labels, read_scan

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
) -> list[FoldResult]:
    """Train folds one after the other; predict and score the held-out cases of each as whole volumes.

    Args:
        jobs: The folds.
        resume: Whether to go on from where an earlier call was stopped.
        save_every_minutes: How much of an epoch is lost at most when the process is killed.
        max_minutes: How long the folds may be trained together; None trains to the end.
        progress: Called with the steps done of each part.

    Returns:
        One result a fold.

    Raises:
        KitsattnError: If a checkpoint does not fit, a scan is gone, or the disk is full.
        OutOfTimeError: If `max_minutes` have passed; everything is saved.
    """
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    results = []
    for job in jobs:
        checkpoint = train_fold(
            job, resume=resume, save_every_minutes=save_every_minutes, deadline=deadline, progress=progress
        )
        results.append(validate_fold(job, checkpoint, progress=progress))
    return results


def validate_fold(job: FoldJob, checkpoint: Path, *, progress: Progress = silent) -> FoldResult:
    """Predict the held-out cases of a fold from their scans, score them, and write summary, pictures and report."""
    ensemble = load_ensemble([checkpoint], job.device, job.precision)
    folder = job.folder / VALIDATION
    pairs, images = [], {}
    for case_id in job.split.held_out:
        source = job.dataset.sources[case_id]
        for path in (source.image, source.labels):
            if not path.exists():
                msg = f"{path} is gone, and fold {job.fold} is scored on it: put it back and run the command again"
                raise KitsattnError(msg)
        target = folder / f"{case_id}.nii.gz"
        if not _is_newer(target, checkpoint):
            predict_file(ensemble, source.image, target, overwrite=True, progress=progress)
        pairs.append(CasePair(case_id, target, source.labels))
        images[case_id] = folder / f"{case_id}.png"
        overlay_sheet(
            images[case_id],
            check_hu(read_scan(source.image)),
            read_labels(target).array,
            read_labels(source.labels).array,
            title=f"{job.dataset.name} {case_id}, held out of fold {job.fold}",
            note=("SYNTHETIC phantom. " if job.dataset.synthetic else "") + RESEARCH_NOTICE,
        )
    scores = evaluate_dice(MatchedCases(tuple(pairs)), progress=progress)
    provenance = provenance_rows(job.dataset, checkpoint)
    write_summary(folder / SUMMARY, scores, provenance=provenance)
    worst = sorted(scores.cases, key=lambda case: fmean(metrics["dice"] for metrics in case.regions.values()))
    write_report(
        job.folder / REPORT,
        scores,
        title=f"{job.dataset.name}: held-out cases of fold {job.fold}",
        provenance=provenance,
        synthetic=job.dataset.synthetic,
        images={case.case: images[case.case] for case in worst[:PICTURES]},
    )
    _log.info("fold %d: held-out Dice %s", job.fold, describe_scores(scores))
    return FoldResult(job.fold, checkpoint, tuple(pairs), scores, job.folder / REPORT)


def _is_newer(target: Path, checkpoint: Path) -> bool:
    """Return whether a case was predicted since the checkpoint was written, by a run that was stopped then."""
    return target.exists() and target.stat().st_mtime_ns > checkpoint.stat().st_mtime_ns


def cross_validated(results: Sequence[FoldResult]) -> Scores:
    """Return the scores of all folds' held-out cases as one cohort."""
    return Scores(tuple(case for result in results for case in result.scores.cases))


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
