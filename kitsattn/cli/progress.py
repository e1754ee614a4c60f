"""Progress bars on stderr. Apart from the bars themselves, so that commands start without rich."""

from collections.abc import Iterator
from contextlib import contextmanager

from kitsattn.cli.console import stderr_is_drawn_on
from kitsattn.jobs import Progress, silent


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Give a callback that draws a bar for each label on stderr, once its work has lasted two seconds.

    Nothing is drawn if stderr is not a terminal, or under -q.
    """
    if not stderr_is_drawn_on():
        yield silent
        return
    from rich.console import Console

    from kitsattn.cli.bars import PatientBars

    with PatientBars(Console(stderr=True)) as bars:
        yield bars.draw
