"""2.5D batches from prepared cases, drawn in this process or in workers: the same sequence either way."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kitsattn.batches.augment import build_augmentation, seeded, source_size
from kitsattn.batches.sampler import Patch, draw_patch, is_foreground_sample
from kitsattn.batches.slabs import slab_indices, slice_step, window_overlap
from kitsattn.errors import KitsattnError
from kitsattn.jobs import deaf_children
from kitsattn.preprocess.store import StoredCase

_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""How batch processes start: never as a copy of this one, which has threads."""

_log = logging.getLogger(__name__)

BatchKey = tuple[int, int, int]
"""Number of the stream, the epoch, and the batch in the epoch."""


@dataclass(frozen=True)
class SlabBatch:
    """One batch.

    Attributes:
        images: Prepared intensities, (batch, slices, height, width), float32.
        labels: Label values of the centre slices, (batch, height, width), uint8.
        cases: Case id of each sample.
    """

    images: Tensor
    labels: Tensor
    cases: tuple[str, ...]

    def pin_memory(self) -> "SlabBatch":
        """Return the batch in page-locked memory; PyTorch's loader calls this."""
        return SlabBatch(self.images.pin_memory(), self.labels.pin_memory(), self.cases)


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What a batch looks like.

    Attributes:
        batch_size: Samples, those of all processes together.
        patch_size: Height and width.
        slices: Slices in a slab.
        slab_step_mm: Distance of a slab's slices in mm; None takes adjacent slices.
        air: Prepared intensity of air, which pads patches that reach beyond the slice.
        seed: Seed of all batches.
        augment: Whether to augment.
        elastic_probability: How often a sample is deformed elastically as well.
        foreground_share: Share of a batch whose patch is centred on foreground.
        rank: This process among those that share each batch; it takes every sample whose number is its own modulo
            `ranks`.
        ranks: Number of these processes.
    """

    batch_size: int
    patch_size: tuple[int, int]
    slices: int
    slab_step_mm: float | None
    air: float
    seed: int
    augment: bool
    elastic_probability: float = 0.0
    foreground_share: float = 1 / 3
    rank: int = 0
    ranks: int = 1


class SlabBatches(Dataset[SlabBatch]):
    """Batches by number: (stream, epoch, index) gives the same batch in any process, at any time.

    Args:
        cases: The prepared cases to draw from.
        settings: What a batch looks like.
    """

    def __init__(self, cases: Sequence[StoredCase], settings: BatchSettings) -> None:
        """Build the augmentation; no case is read yet."""
        self.cases = cases
        self.settings = settings
        self.size = source_size(settings.patch_size) if settings.augment else settings.patch_size
        self.transform = build_augmentation(
            settings.patch_size, settings.air, elastic_probability=settings.elastic_probability
        )

    def __getitem__(self, key: BatchKey) -> SlabBatch:
        """Draw the batch of a (stream, epoch, index) key, or this process's part of it."""
        settings = self.settings
        drawn = [self._draw(key, index) for index in range(settings.rank, settings.batch_size, settings.ranks)]
        images, labels, cases = zip(*drawn, strict=True)
        return SlabBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)), cases)

    def _draw(self, key: BatchKey, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
        """Draw one sample; its number seeds it, so that it is the same whoever draws the others."""
        settings = self.settings
        sequence = np.random.SeedSequence((settings.seed, *key, index))
        patch = draw_patch(
            self.cases,
            settings.patch_size,
            foreground=is_foreground_sample(index, settings.batch_size, settings.foreground_share),
            generator=np.random.default_rng(sequence),
        )
        case = self.cases[patch.case]
        image, label = self._cut(case, patch)
        if settings.augment:
            with seeded(sequence):
                augmented = self.transform(data=image[None], seg=label[None, None].astype(np.float32))
            image, label = augmented["data"][0], augmented["seg"][0, 0]
        return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label, np.uint8), case.case_id

    def _cut(self, case: StoredCase, patch: Patch) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Read the slab (slices, *size) and the centre slice's labels (*size) of a patch."""
        settings = self.settings
        depth, height, width = case.shape
        step = slice_step(settings.slab_step_mm, case.spacing_mm[0])
        indices = slab_indices(patch.centre, depth, settings.slices, step)
        # The patch is what is left in the middle of the larger cut-out, once it has been turned and scaled.
        top, left = (
            start - (cut - kept) // 2
            for start, cut, kept in zip((patch.top, patch.left), self.size, settings.patch_size, strict=True)
        )
        rows, columns = window_overlap(top, self.size[0], height), window_overlap(left, self.size[1], width)
        image = np.full((settings.slices, *self.size), settings.air, np.float32)
        label = np.zeros(self.size, np.uint8)
        image[:, rows[1], columns[1]] = case.read_slices(indices)[:, rows[0], columns[0]]
        label[rows[1], columns[1]] = case.read_labels(patch.centre)[rows[0], columns[0]]
        return image, label


class _Streams(Dataset[SlabBatch | KitsattnError]):
    """Several batch sources behind one loader, so that their batches come in one order from the same workers."""

    def __init__(self, streams: "Sequence[Dataset[SlabBatch]]") -> None:
        self.streams = streams

    def __getitem__(self, key: BatchKey) -> SlabBatch | KitsattnError:
        try:
            return self.streams[key[0]][key]
        except KitsattnError as error:
            return error  # raised in a worker it would come back wrapped into a traceback
        except Exception as error:  # noqa: BLE001 - any: the training saves before it ends
            told = KitsattnError(
                f"batch {key[2] + 1} of epoch {key[1] + 1} cannot be drawn, {type(error).__name__}: "
                f"{error} (kitsattn -v shows where; if the data are sound, report it)"
            )
            told.add_note("".join(traceback.format_exception(error)))
            return told


def load_batches(
    streams: "Sequence[Dataset[SlabBatch]]", keys: Sequence[BatchKey], *, workers: int, pin_memory: bool = False
) -> Iterator[SlabBatch]:
    """Yield the batches of `keys`, in their order.

    Where a process that draws is killed, it is noticed within seconds, and all are started again, once.

    Args:
        streams: Where they come from; a key's first number picks one.
        keys: Which batches.
        workers: Processes that draw ahead; 0 draws in this one.
        pin_memory: Whether to put them into page-locked memory, for a GPU.

    Raises:
        KitsattnError: If a prepared case is gone or damaged, a batch cannot be drawn, or a process was killed again.
    """
    done, killed = 0, False
    while done < len(keys):
        try:
            for batch in _draw(streams, keys[done:], workers, pin_memory=pin_memory):
                if isinstance(batch, KitsattnError):
                    _log.debug("%s", "\n".join(getattr(batch, "__notes__", [])))
                    raise batch
                done += 1
                yield batch
        except _WorkerKilledError as error:
            if killed:
                msg = f"{error}, for the second time: most likely memory ran out, lower --workers or --batch-size"
                raise KitsattnError(msg) from error
            killed = True
            _log.warning("%s: it is started again", error)


class _WorkerKilledError(Exception):
    """A process that draws batches has ended without a word."""


def _draw(
    streams: "Sequence[Dataset[SlabBatch]]", keys: Sequence[BatchKey], workers: int, *, pin_memory: bool
) -> Iterator[SlabBatch | KitsattnError]:
    loader: DataLoader[SlabBatch | KitsattnError] = DataLoader(
        _Streams(streams),
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context=_START if workers else None,
        worker_init_fn=_stay_silent,
    )
    with deaf_children(), _death_noticed_in_turn():
        batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # PyTorch looks after its processes every five seconds that it waits for a batch; what a process had ready
            # when it died can no longer be fetched from it.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            # The end of a file says nothing.
            reason = (str(error) or type(error).__name__).splitlines()[0]
            msg = f"a process that draws batches was killed ({reason})"
            raise _WorkerKilledError(msg) from error
        yield batch


@contextmanager
def _death_noticed_in_turn() -> Iterator[None]:
    """Keep PyTorch from interrupting whatever runs when one of its processes dies: the loader finds out by itself."""
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _stay_silent(worker: int) -> None:
    """Let Ctrl-C end this process in the midst of fetching a batch without a traceback of the one that serves it.

    Errors in drawing a batch go another way: PyTorch raises them in this process.
    """
    del worker
    sys.excepthook = _tell_nothing


def _tell_nothing(*error: object) -> None:
    """Tell nothing."""
