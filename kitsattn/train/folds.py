"""Five-fold cross-validation by case, in the shape of nnU-Net's splits file."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kitsattn.errors import KitsattnError
from kitsattn.files import read_json, write_json

_log = logging.getLogger(__name__)

FOLDS = 5
SPLITS_FILE = "splits_final.json"
_SEED = 12345
"""nnU-Net's seed: the same cases give the same folds as there."""


@dataclass(frozen=True)
class Split:
    """The cases of one fold.

    Attributes:
        train: Ids of the cases to learn from.
        held_out: Ids of the cases to validate on; none of them is in `train`.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def make_splits(case_ids: Sequence[str]) -> list[Split]:
    """Split cases into five folds: shuffled with a fixed seed, every case held out once.

    Raises:
        KitsattnError: If there are fewer cases than folds.
    """
    from sklearn.model_selection import KFold  # noqa: PLC0415 - takes half a second

    if len(case_ids) < FOLDS:
        msg = (
            f"{len(case_ids)} cases cannot make {FOLDS} folds: prepare {FOLDS} or more, or write {SPLITS_FILE} yourself"
        )
        raise KitsattnError(msg)
    ids = sorted(case_ids)
    folds = KFold(FOLDS, shuffle=True, random_state=_SEED).split(ids)
    return [Split(tuple(ids[i] for i in train), tuple(ids[i] for i in held_out)) for train, held_out in folds]


def read_or_make_splits(folder: Path, case_ids: Sequence[str]) -> list[Split]:
    """Return the folds in `folder`, written there on first use; a user's own file is honoured.

    Raises:
        KitsattnError: If the file is malformed, a fold is not disjoint, or it names a case that is not prepared.
    """
    path = folder / SPLITS_FILE
    if not path.exists():
        splits = make_splits(case_ids)
        write_json(path, [{"train": list(split.train), "val": list(split.held_out)} for split in splits])
        return splits
    content = read_json(path)
    try:
        splits = [Split(tuple(fold["train"]), tuple(fold["val"])) for fold in content]
    except (KeyError, TypeError) as error:
        msg = f'{path} must be a list of {{"train": [ids], "val": [ids]}}: fix it, or delete it to make a new one'
        raise KitsattnError(msg) from error
    if not splits:
        msg = f"{path} holds no fold: fix it, or delete it to make a new one"
        raise KitsattnError(msg)
    named = {case for split in splits for case in (*split.train, *split.held_out)}
    left_out = [case for case in case_ids if case not in named]
    if left_out:
        _log.warning(
            "%d prepared cases are in no fold (%s, …): to have them, delete %s", len(left_out), left_out[0], path
        )
    for number, split in enumerate(splits):
        both = sorted(set(split.train) & set(split.held_out))
        unknown = sorted((set(split.train) | set(split.held_out)) - set(case_ids))
        if both or unknown or not split.train or not split.held_out:
            problem = (
                f"has {both[0]!r} on both sides"
                if both
                else f"names {unknown[0]!r}, which is not prepared"
                if unknown
                else "has an empty side"
            )
            msg = f"fold {number} of {path} {problem}: fix the file, or delete it to make a new one"
            raise KitsattnError(msg)
    return splits
