"""The numbers of a journal as TensorBoard events."""

import logging
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kitsattn.errors import KitsattnError
from kitsattn.train.job import FoldJob
from kitsattn.train.journal import EpochRecord, read_journal
from kitsattn.train.names import JOURNAL, TENSORBOARD

if TYPE_CHECKING:
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)


class EventWriter:
    """Writes what each epoch did to the folder `tensorboard` of its fold; the step is the epoch.

    Epochs that a resumed training repeats replace the earlier ones. Where a training was begun without events, the
    first ones written hold the journal's earlier epochs too. A training does not end for want of its events.

    Raises:
        KitsattnError: If the package tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - the package may be missing
        except ImportError as error:
            msg = "--tensorboard needs the package tensorboard: pip install 'kitsattn[track]'"
            raise KitsattnError(msg) from error
        self._open = SummaryWriter
        self._writer: SummaryWriter | None = None
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the events of the last fold."""
        self._close()

    def write(self, job: FoldJob, record: EpochRecord) -> None:
        """Write one epoch, and bring it to the disk: to be called when the epoch has ended."""
        try:
            if self._folder != job.folder:
                self._begin(job, record)
            if self._writer is not None:
                _add(self._writer, record)
                self._writer.flush()
        except (KitsattnError, OSError) as error:
            _log.warning("fold %d continues without TensorBoard events: %s", job.fold, error)
            self._close()

    def _begin(self, job: FoldJob, record: EpochRecord) -> None:
        """Open the events of a fold, of which `record` is the first to be written."""
        self._close()
        self._folder = job.folder
        folder = job.folder / TENSORBOARD
        new = not any(folder.glob("events.*"))
        earlier = [one for one in read_journal(job.folder / JOURNAL) if one.epoch < record.epoch] if new else []
        self._writer = self._open(str(folder), purge_step=None if new else record.epoch)
        for one in earlier:
            _add(self._writer, one)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):  # said already, where the disk is full
                writer.close()


def _add(writer: "SummaryWriter", record: EpochRecord) -> None:
    scalars = {
        "loss/training": record.training_loss,
        "loss/validation": record.validation_loss,
        **{f"dice/{region}": value for region, value in record.validation_dice.items()},
        "dice/moving_average": record.moving_dice,
        "learning_rate": record.learning_rate,
        "images_per_second": record.images_per_second,
        "waiting_share": record.waiting_share,
        "peak_memory_gb": record.peak_memory_bytes / 1e9,
        "skipped": record.skipped,
    }
    for name, value in scalars.items():
        writer.add_scalar(name, value, record.epoch)
