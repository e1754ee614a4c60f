"""The last epochs of a training as a table on a terminal, above the progress bars."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kitsattn.cli.bars import Pace, PatientBars
from kitsattn.cli.console import drop_stream, leave_out, stderr_is_drawn_on
from kitsattn.cli.progress import progress_bars
from kitsattn.errors import KitsattnError
from kitsattn.jobs import Progress

if TYPE_CHECKING:
    from kitsattn.train.fold import EpochEnd
    from kitsattn.train.job import FoldJob
    from kitsattn.train.journal import EpochRecord

_ROWS = 10
_LINES_AROUND = 10
"""Of the terminal's height: title, head of the table, bars, and a message or two."""
_RECENT_EPOCHS = 3
"""What the time left is estimated from: whole epochs, so that validation has its share."""
_REFRESHES_PER_SECOND = 2.0
"""Drawing takes its time from the training."""


class TrainingDisplay(PatientBars):
    """The last epochs of the fold that is trained, above the bars.

    Args:
        jobs: The folds that are trained.
        console: The terminal.
        clock: Seconds, from any time on.
    """

    def __init__(
        self, jobs: "Sequence[FoldJob]", console: Console, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs = {f"fold {job.fold}": job for job in jobs}
        self._clock = clock
        self._job: FoldJob | None = None
        self._records: list[EpochRecord] = []
        super().__init__(console, refresh_per_second=_REFRESHES_PER_SECOND)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is redrawn all the time."""
        job = self._job  # this is called by the thread that draws
        if job is not None:
            yield self._table(job, self._records)
        yield self.make_tasks_table(self.tasks)

    def draw(self, label: str, done: int, total: int, /) -> None:
        """Draw the batches done of a fold, or how much of any other work."""
        job = self._jobs.get(label)
        if job is None:
            self._drop_fold()
            super().draw(label, done, total)
            return
        self._begin(job)
        if label not in self._labels:
            pace = Pace(_RECENT_EPOCHS * job.recipe.batches_per_epoch, self._clock)
            self._labels[label] = self.add_task(label, total=total, pace=pace)
        task = self._labels[label]
        self.tasks[self.task_ids.index(task)].fields["pace"].note(done)
        self.update(task, completed=done, total=total)

    def end_epoch(self, job: "FoldJob", record: "EpochRecord") -> None:
        """Add a row."""
        self._begin(job)
        # The journal may have had it already, when this fold's rows were read.
        self._records = [one for one in self._records if one.epoch < record.epoch] + [record]

    def leave(self) -> None:
        """Let the table stay where it is."""
        self._drop_fold()
        job, records = self._job, self._records
        self._job, self._records = None, []
        if job is not None:
            try:
                self.console.print(self._table(job, records))
            except OSError:
                drop_stream(sys.stderr)

    def stop(self) -> None:
        """End, and leave the table behind."""
        super().stop()
        self.leave()

    def _begin(self, job: "FoldJob") -> None:
        """Show another fold, with the epochs that its journal has."""
        from kitsattn.train.journal import read_journal
        from kitsattn.train.names import JOURNAL

        if self._job is job:
            return
        self.leave()
        try:
            self._records = read_journal(job.folder / JOURNAL) if (job.folder / JOURNAL).exists() else []
        except KitsattnError:
            self._records = []
        self._job = job

    def _drop_fold(self) -> None:
        if self._job is not None:
            self.drop(f"fold {self._job.fold}")

    def _table(self, job: "FoldJob", records: "Sequence[EpochRecord]") -> RenderableType:
        rows = max(1, min(_ROWS, self.console.height - _LINES_AROUND))
        return epoch_table(job, records[-rows:], width=self.console.width)


@contextmanager
def training_display(jobs: "Sequence[FoldJob]") -> "Iterator[tuple[Progress, EpochEnd]]":
    """Give what a training calls after each step and each epoch, to be shown on stderr.

    On a terminal epochs are rows of a table, and the sentences that say the same go to the log file alone. Elsewhere
    there are the sentences, and under -q nothing.
    """
    from kitsattn.train.fold import EPOCH_LOGGER, ignore

    console = Console(stderr=True)
    if not (stderr_is_drawn_on() and console.is_interactive):
        with progress_bars() as progress:
            yield progress, ignore
        return
    with leave_out(EPOCH_LOGGER), TrainingDisplay(jobs, console) as display:
        yield display.draw, display.end_epoch


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        head: Its name; words are below each other if there is no room.
        cells: One a row.
        rank: If there is no room, columns of the highest rank are left out first.
    """

    head: str
    cells: list[str]
    rank: int

    @property
    def least_width(self) -> int:
        """The longest word."""
        return max(map(len, [*self.head.split(), *self.cells]))

    @property
    def good_width(self) -> int:
        """What the name needs on two lines."""
        words = self.head.split()
        lines = [max(len(" ".join(words[:n])), len(" ".join(words[n:]))) for n in range(1, len(words) + 1)]
        return max(self.least_width, min(lines))


def epoch_table(job: "FoldJob", records: "Sequence[EpochRecord]", *, width: int) -> RenderableType:
    """Return a headline and a table of epochs, at most so many characters wide.

    Args:
        job: What is trained.
        records: The epochs, one a row.
        width: Of the terminal.
    """
    columns = [
        _Column("epoch", [str(one.epoch) for one in records], 0),
        _Column("training loss", [f"{one.training_loss:.3f}" for one in records], 0),
        _Column("validation loss", [f"{one.validation_loss:.3f}" for one in records], 0),
        *(
            _Column(
                f"Dice {region.key.replace('_', ' ')}",
                [f"{one.validation_dice[region.key]:.3f}" for one in records],
                rank,
            )
            for rank, region in enumerate(job.protocol.regions, 1)
        ),
    ]
    least = len(columns)
    columns += [
        _Column("learning rate", [f"{one.learning_rate:.2e}" for one in records], least),
        _Column("images/s", [_short(one.images_per_second) for one in records], least + 1),
        _Column("waiting for data", [f"{one.waiting_share:.0%}" for one in records], least + 2),
    ]
    if any(one.skipped for one in records):
        columns.append(_Column("skipped batches", [str(one.skipped) for one in records], least))
    columns.append(_Column("seconds", [_short(one.seconds) for one in records], least + 3))
    while sum(one.least_width + 1 for one in columns) > width and len(columns) > 1:
        columns.remove(max(reversed(columns), key=lambda one: one.rank))
    good = sum(one.good_width for one in columns)
    gap = 2 if good + 2 * len(columns) <= width else 1
    roomy = good + gap * len(columns) <= width
    # The box has one character between columns.
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for column in columns:
        room = column.good_width if roomy else column.least_width
        table.add_column(column.head, justify="right", vertical="bottom", width=room)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    name = job.dataset.name + (", SYNTHETIC phantoms" if job.dataset.synthetic else "")
    parts = [name, f"fold {job.fold}", job.model, f"recipe {job.recipe_name}", str(job.device), job.precision]
    return Group(Text(" | ".join(parts), style="bold"), table)


def _short(value: float) -> str:
    """Return a number of three digits or so."""
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"  # noqa: PLR2004
