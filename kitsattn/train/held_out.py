"""The held-out predictions of a run, to be scored again or compared with those of another run."""

import logging
from collections.abc import Sequence
from pathlib import Path

from kitsattn.checkpoint.header import read_header
from kitsattn.errors import KitsattnError
from kitsattn.evaluate.match import CasePair, MatchedCases
from kitsattn.evaluate.task import Task
from kitsattn.labels import ScoringProtocol, protocol_of
from kitsattn.preprocess.store import open_dataset
from kitsattn.train.folds import read_or_make_splits
from kitsattn.train.names import BEST, VALIDATION
from kitsattn.words import readable
from kitsattn.workspace import Workspace

_log = logging.getLogger(__name__)


def find_checkpoints(run: Path, workspace: Workspace) -> list[Path]:
    """Return the checkpoints of a run's folds.

    Args:
        run: Folder or name of the run.
        workspace: Holds the runs that have names.

    Raises:
        KitsattnError: If there is no such run.
    """
    for folder in (run, workspace.runs / run):
        checkpoints = sorted(folder.glob(f"fold_*/{BEST}"))
        if checkpoints:
            return checkpoints
    msg = f"{run} is not a run in {workspace.runs}: name one, or folders of predictions with a REF behind them"
    raise KitsattnError(msg)


def held_out_task(checkpoints: Sequence[Path], workspace: Workspace, protocol: ScoringProtocol | None = None) -> Task:
    """Return a run's held-out predictions with their references. Folds that have none yet are left out, and logged.

    Args:
        checkpoints: Of the run's folds.
        workspace: Holds the prepared data.
        protocol: How labels are scored; None goes by the run's.

    Raises:
        KitsattnError: If no fold has held-out predictions, or the prepared data are missing.
    """
    pairs, synthetic = [], False
    for checkpoint in checkpoints:
        header, _ = read_header(checkpoint)
        folder, made = checkpoint.parent / VALIDATION, header.provenance
        dataset = open_dataset(workspace.preprocessed_dataset(made.dataset))
        held_out = read_or_make_splits(dataset.folder, dataset.cases)[made.fold].held_out
        found = [case_id for case_id in held_out if (folder / f"{case_id}.nii.gz").is_file()]
        if not found:
            _log.info("fold %d has no held-out predictions yet and is left out", made.fold)
            continue
        _log.info("predictions: %s", f"{folder}{' (SYNTHETIC phantoms)' * made.synthetic}")
        labels, synthetic = header.labels, synthetic or made.synthetic
        for case_id in held_out:
            prediction = folder / f"{case_id}.nii.gz" if case_id in found else None
            source = dataset.sources[case_id]
            pairs.append(CasePair(case_id, prediction, source.labels, source.image))
    run = checkpoints[0].parents[1]
    if not pairs:
        msg = f"{run} has no held-out predictions yet: let `kitsattn train` finish, or name PRED and REF"
        raise KitsattnError(msg)
    return Task(readable(run.name), MatchedCases(tuple(pairs)), protocol or protocol_of(labels), None, synthetic)
