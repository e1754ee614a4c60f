"""What may save or end a training between two batches: the time since the last save, a deadline, a signal, data."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from kitsattn.batches.loader import SlabBatch
from kitsattn.errors import Interrupted, KitsattnError
from kitsattn.ranks import Ranks


class OutOfTimeError(Exception):
    """The time that a training was given has passed, and it has saved where it is."""


@dataclass
class Watch:
    """What may save or end a training between two batches.

    Attributes:
        name: What is trained, for messages.
        ranks: The processes that train together: what one of them has noticed, all do.
        asked: Returns the signal that asked to stop, if one did.
        save_every_minutes: How much of an epoch is lost at most when the process is killed.
        deadline: When to save and stop, as a time of `time.monotonic`; None never.
        save: Saves where the training is; set once it has begun.
        saved: When that was done last.
        epoch: The epoch that is under way, from 1.
    """

    name: str
    ranks: Ranks
    asked: Callable[[], int | None]
    save_every_minutes: float
    deadline: float | None
    save: Callable[[], None] = lambda: None
    saved: float = field(default_factory=time.monotonic)
    epoch: int = 1

    def next(self, batches: Iterator[SlabBatch]) -> SlabBatch:
        """Return the next batch; save before the training ends because there is none."""
        try:
            return next(batches)
        except KitsattnError:
            self.save()
            raise

    def wait(self) -> None:
        """While a batch is waited for: save and raise if it is time to stop.

        The other processes of the training cannot be asked: they may be in the midst of a step.

        Raises:
            Interrupted: If a signal has come.
            OutOfTimeError: If the deadline has passed.
        """
        number, late = self.asked() or 0, self._is_late()
        if number or late:
            self.save()
        self._stop(number, late=late)

    def check(self) -> None:
        """Save if it is time to, and raise if it is time to stop.

        Raises:
            Interrupted: If a signal has come.
            OutOfTimeError: If the deadline has passed.
        """
        due = time.monotonic() - self.saved > 60 * self.save_every_minutes
        number, *reasons = self.ranks.all_reduce_max([self.asked() or 0, self._is_late(), due])
        if number or any(reasons):
            self.save()
            self.ranks.barrier()  # the first process that ends makes torchrun end the others
            self.saved = time.monotonic()
        self._stop(int(number), late=bool(reasons[0]))

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _stop(self, number: int, *, late: bool) -> None:
        if number:
            raise Interrupted(number)
        if late:
            msg = f"{self.name} was stopped in epoch {self.epoch}: its time has passed"
            raise OutOfTimeError(msg)


@contextmanager
def signals_held_back(*, alone: bool) -> Iterator[Callable[[], int | None]]:
    """Hold Ctrl-C and SIGTERM back until they are asked for, so that no step is torn; a second one ends at once.

    Not under torchrun, which hands on a signal that the terminal has sent to every process already.

    Args:
        alone: Whether this process trains alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # only the main thread may say what a signal does
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if came and alone:
            raise Interrupted(number)
        came.append(number)

    # A background job ignores Ctrl-C, and goes on doing so.
    held = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, note) for one in held}
    try:
        yield lambda: came[0] if came else None
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
