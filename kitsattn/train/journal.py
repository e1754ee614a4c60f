"""The journal of a fold: one JSON line an epoch."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kitsattn.errors import KitsattnError
from kitsattn.files import write_text


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """What one epoch did.

    Attributes:
        epoch: Number of finished epochs.
        training_loss: Mean over the training batches.
        validation_loss: Mean over the validation batches.
        validation_dice: Dice by region key, over all pixels of the validation batches.
        moving_dice: Moving average of their mean; the best checkpoint is where it is highest.
        learning_rate: Rate in this epoch.
        images_per_second: Training samples a second.
        waiting_share: Share of the training time spent waiting for data, 0 to 1.
        seconds: Length of the epoch.
    """

    epoch: int
    training_loss: float
    validation_loss: float
    validation_dice: Mapping[str, float]
    moving_dice: float
    learning_rate: float
    images_per_second: float
    waiting_share: float
    seconds: float


def append_record(path: Path, record: EpochRecord) -> None:
    """Append one line and bring it to the disk."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror or error}): see that the disk has room, run the command again"
        raise KitsattnError(msg) from error


def truncate_journal(path: Path, epoch: int) -> None:
    """Keep the lines of the first `epoch` epochs; the rest, or what a crash left of it, is written again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    write_text(path, "".join(line + "\n" for line in lines[:epoch]))
