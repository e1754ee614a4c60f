"""Progress bars that are shown once their work has lasted a while."""

import sys
from collections import deque
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from kitsattn.cli.console import drop_stream

_PATIENCE_SECONDS = 2.0
"""Work that ends sooner shows no progress bar."""


class PatientBars(RichProgress):
    """A bar for each label, shown once its work has lasted a while.

    Args:
        console: The terminal.
        refresh_per_second: How often they are drawn.
    """

    def __init__(self, console: Console, *, refresh_per_second: float = 10.0) -> None:
        self._labels: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), _TimeLeft())
        super().__init__(*columns, console=console, transient=True, refresh_per_second=refresh_per_second)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return the bars of the work that has lasted."""
        return super().make_tasks_table(task for task in tasks if (task.elapsed or 0.0) >= _PATIENCE_SECONDS)

    def draw(self, label: str, done: int, total: int, /) -> None:
        """Draw how much of the work is done; its bar goes when all is."""
        if label not in self._labels:
            self._labels[label] = self.add_task(label, total=total)
        self.update(self._labels[label], completed=done, total=total)
        if done >= total:
            self.drop(label)

    def stop(self) -> None:
        """End, also where the terminal has gone: the work has not."""
        try:
            super().stop()
        except OSError:
            drop_stream(sys.stderr)

    def drop(self, label: str) -> None:
        """Remove a bar, if there is one of this label."""
        if label in self._labels:
            self.remove_task(self._labels.pop(label))


class Pace:
    """How long the rest takes, by the pace of the last steps.

    Args:
        recent: Over so many steps the pace is taken; what was done before the first call has no part in it.
        clock: Seconds, from any time on.
    """

    def __init__(self, recent: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=recent + 1)

    def note(self, done: int) -> None:
        """Note that so many steps are done now."""
        self._marks.append((self._clock(), done))

    def seconds_left(self, total: float) -> float | None:
        """Return how long it takes to `total` steps; None if that is not known yet."""
        marks = list(self._marks)
        if len(marks) < 2:  # noqa: PLR2004 - between two marks there is time
            return None
        (begun, first), (now, done) = marks[0], marks[-1]
        return max(0.0, (total - done) * (now - begun) / max(1, done - first) - (self._clock() - now))


class _TimeLeft(TimeRemainingColumn):
    """The time left, of a training by the pace of its recent epochs."""

    def render(self, task: Task) -> Text:
        pace = task.fields.get("pace")
        if pace is None:
            return super().render(task)
        seconds = pace.seconds_left(task.total)
        if seconds is None:
            return Text("-:--:-- left", style="progress.remaining")
        minutes, seconds = divmod(round(seconds), 60)
        return Text(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left", style="progress.remaining")
