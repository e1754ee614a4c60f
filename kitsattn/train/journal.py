"""The journal of a fold: one JSON line an epoch."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from kitsattn.config import from_json
from kitsattn.errors import KitsattnError
from kitsattn.figures.progress import plot_progress
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
        learning_rate: Rate of its first batch.
        images_per_second: Training samples a second.
        waiting_share: Share of the training time spent waiting for data, 0 to 1.
        seconds: Length of the epoch, from where it was resumed if it was.
        skipped: Training batches whose loss or gradient was not finite, and which changed nothing.
        peak_memory_bytes: Most memory so far: of the GPU, or of the training process.
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
    skipped: int
    peak_memory_bytes: int


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


def read_journal(path: Path) -> list[EpochRecord]:
    """Return the epochs of a journal.

    Raises:
        KitsattnError: If it is missing, or a line of it is not an epoch.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [from_json(EpochRecord, json.loads(line), f"{path}:{n}") for n, line in enumerate(lines, 1)]
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise KitsattnError(msg) from error


def draw_journal(journal: Path, picture: Path, title: str) -> None:
    """Draw the curves of a journal.

    Raises:
        KitsattnError: If the journal cannot be read, or the picture not be written.
    """
    records = read_journal(journal)
    dice: dict[str, list[float]] = {}
    for record in records:
        for region, value in record.validation_dice.items():
            dice.setdefault(region.replace("_", " "), []).append(value)
    plot_progress(
        picture,
        title=title,
        losses={
            "training": [record.training_loss for record in records],
            "validation": [record.validation_loss for record in records],
        },
        dice={**dice, "moving average": [record.moving_dice for record in records]},
        learning_rates=[record.learning_rate for record in records],
    )


def truncate_journal(path: Path, epoch: int) -> None:
    """Keep the lines of the first `epoch` epochs; the rest, or what a crash left of it, is written again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    write_text(path, "".join(line + "\n" for line in lines[:epoch]))


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use so far: on a GPU what PyTorch allocated, else this process's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415 - Windows has none

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
