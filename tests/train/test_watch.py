"""What may save or end a training between two batches."""

import signal
import time

import pytest

from kitsattn.batches.loader import SlabBatch
from kitsattn.errors import Interrupted, KitsattnError
from kitsattn.ranks import ALONE
from kitsattn.train.watch import OutOfTimeError, Watch


def _watch(saves: list[int], *, number: int | None = None, deadline: float | None = None) -> Watch:
    return Watch("fold 0", ALONE, lambda: number, 5.0, deadline, save=lambda: saves.append(1), epoch=3)


@pytest.mark.parametrize("within_wait", [False, True])
def test_it_is_stopped_by_a_signal_or_its_deadline(*, within_wait: bool) -> None:
    """Once, with everything saved, between two batches and while one is waited for; else it goes on, unsaved."""
    saves: list[int] = []
    stops = [
        (_watch(saves, number=signal.SIGTERM), Interrupted),
        (_watch(saves, deadline=time.monotonic() - 1), OutOfTimeError),
    ]
    for watch, expected in stops:
        saves.clear()
        with pytest.raises(expected):
            (watch.wait if within_wait else watch.check)()
        assert saves == [1]
    saves.clear()
    watch = _watch(saves, deadline=time.monotonic() + 60)
    watch.wait()
    watch.check()
    assert not saves


def test_it_saves_before_it_ends_for_want_of_a_batch() -> None:
    """Whatever the batches fail with, what was learnt is kept."""

    def fail(_: int) -> SlabBatch:
        msg = "a process was killed"
        raise KitsattnError(msg)

    saves: list[int] = []
    with pytest.raises(KitsattnError, match="killed"):
        _watch(saves).next(map(fail, [0]))
    assert saves == [1]
