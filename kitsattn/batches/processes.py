"""Batches in their order, drawn ahead by other processes or by this one: the same sequence either way.

Each process sends its batches through a socket of its own. They need no shared memory, of which a container has 64 MB
by default, and no lock or thread in which a batch could be lost: a process that ends closes its socket.
"""

import json
import logging
import signal
import socket
import struct
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from multiprocessing import context
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kitsattn.batches.loader import BatchKey, SlabBatch
from kitsattn.errors import KitsattnError
from kitsattn.jobs import deaf_children

if TYPE_CHECKING:
    from torch.utils.data import Dataset

_Process: type[BaseProcess] = getattr(context, "ForkServerProcess", context.SpawnProcess)
"""How batch processes start: never as a copy of this one, which has threads."""

_LOOK_S = 1.0
"""How often whoever waits for a batch looks at what else there is."""
_PATIENCE_S = 1800.0
"""How long a batch may take whose process is alive."""
_END_S = 5.0
_LENGTH = struct.Struct("!Q")
_WHOLE = getattr(socket, "MSG_WAITALL", 0)
_MOST_BYTES = 1 << 30
"""In one call; more than 2 GB are refused by some systems."""

_log = logging.getLogger(__name__)


def wait_on() -> None:
    """Do nothing: the default while a batch is waited for."""


def load_batches(
    streams: "Sequence[Dataset[SlabBatch]]",
    keys: Sequence[BatchKey],
    *,
    workers: int,
    pin_memory: bool = False,
    waiting: Callable[[], None] = wait_on,
) -> Generator[SlabBatch, None, None]:
    """Yield the batches of `keys`, in their order. Close the iterator to end the processes.

    If a process is killed, all are started again, once. If none can be started, this process draws the batches.

    Args:
        streams: Where batches come from; a key's first number picks one.
        keys: Which batches.
        workers: Processes that draw ahead; 0 draws in this one.
        pin_memory: Whether to put batches into page-locked memory, for a GPU.
        waiting: Called every second while a batch is waited for; what it raises is raised here.

    Raises:
        KitsattnError: If a prepared case is missing or damaged, a batch cannot be drawn or sent, a process was killed
            for the second time, or one that is alive sends nothing for half an hour.
    """
    done, lost = 0, False
    while done < len(keys):
        left = keys[done:]
        try:
            drawers = _start(streams, left, min(workers, len(left)))
        except OSError as error:
            _log.warning(
                "processes that draw batches cannot be started (%s): the training process draws the batches, as with "
                "--workers 0",
                error.strerror or error,
            )
            drawers, workers = [], 0
        if drawers:
            batches = _receive_all(drawers, left, pin_memory=pin_memory, waiting=waiting)
        else:
            batches = (_draw(streams, key) for key in left)
        try:
            with closing(batches):
                for batch in batches:
                    if isinstance(batch, KitsattnError):
                        _log.debug("%s", "\n".join(getattr(batch, "__notes__", [])))
                        raise batch
                    done += 1
                    yield batch
        except _LostError as error:
            if lost:
                msg = (
                    f"{error}, for the second time: most likely memory ran out, lower --workers or --batch-size, or "
                    "draw in the training process with --workers 0"
                )
                raise KitsattnError(msg) from error
            lost = True
            _log.warning("%s: it is started again", error)


class _LostError(Exception):
    """A process that draws batches has ended without sending all of them."""


def _draw(streams: "Sequence[Dataset[SlabBatch]]", key: BatchKey) -> SlabBatch | KitsattnError:
    """Return a batch, or why there is none."""
    try:
        return streams[key[0]][key]
    except KitsattnError as error:
        return error
    except Exception as error:  # noqa: BLE001 - any: the training saves before it ends
        return _unforeseen(key, "drawn", error)


def _unforeseen(key: BatchKey, done: str, error: Exception) -> KitsattnError:
    reported = KitsattnError(
        f"{_name(key)} cannot be {done}, {type(error).__name__}: {error} (kitsattn -v shows where; if the data are "
        "sound, report it)"
    )
    reported.add_note("".join(traceback.format_exception(error)))
    return reported


def _name(key: BatchKey) -> str:
    return f"batch {key[2] + 1} of epoch {key[1] + 1}"


class _Drawer:
    """A process that draws every batch of `keys`, and this process's end of its socket."""

    def __init__(self, streams: "Sequence[Dataset[SlabBatch]]", keys: Sequence[BatchKey]) -> None:
        self.channel, theirs = socket.socketpair()
        self.process = _Process(target=_serve, args=(theirs, streams, keys), daemon=True)
        # Closed here, so that the process alone keeps its end open.
        with theirs, deaf_children():
            try:
                self.process.start()
            except BaseException:
                self.channel.close()
                raise

    def why_it_ended(self) -> str:
        """Return the signal or exit code that the process has ended with."""
        self.process.join(_END_S)
        code = self.process.exitcode
        if code is None:
            return "its connection is closed"
        with suppress(ValueError):
            return signal.Signals(-code).name
        return f"exit code {code}"

    def end(self) -> None:
        """End the process, which has nothing to save; its socket is closed."""
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)  # wakes the thread that receives
        self.process.kill()
        self.process.join(_END_S)
        self.channel.close()


def _start(streams: "Sequence[Dataset[SlabBatch]]", keys: Sequence[BatchKey], workers: int) -> list[_Drawer]:
    """Start processes that draw in turn.

    Raises:
        OSError: If the system refuses one; those that were started are ended.
    """
    drawers = []
    with ExitStack() as started:
        for number in range(workers):
            drawers.append(_Drawer(streams, keys[number::workers]))
            started.callback(drawers[-1].end)
        started.pop_all()
    return drawers


def _receive_all(
    drawers: Sequence[_Drawer], keys: Sequence[BatchKey], *, pin_memory: bool, waiting: Callable[[], None]
) -> Generator[SlabBatch | KitsattnError, None, None]:
    """Yield what the processes send; a thread receives it ahead, and puts it into page-locked memory.

    Raises:
        _LostError: If a process has ended before it has sent a batch.
    """
    device = torch.cuda.current_device() if pin_memory else None
    receiver = ThreadPoolExecutor(1, initializer=_choose_device, initargs=(device,))
    received: deque[Future[SlabBatch | KitsattnError]] = deque()
    try:
        for number, key in enumerate(keys):
            # While a batch is used, one more of each process comes; each holds another, which it is sending or drawing.
            for ahead in range(number + len(received), min(number + len(drawers) + 1, len(keys))):
                channel = drawers[ahead % len(drawers)].channel
                received.append(receiver.submit(_receive, channel, pin_memory=pin_memory))
            coming = received.popleft()
            _await(coming, key, waiting)
            try:
                batch = coming.result()
            except (EOFError, ConnectionError) as error:
                reason = drawers[number % len(drawers)].why_it_ended()
                msg = f"a process that draws batches was killed ({reason}) before it sent {_name(key)}"
                raise _LostError(msg) from error
            yield batch
    finally:
        for drawer in drawers:
            drawer.end()
        receiver.shutdown(cancel_futures=True)


def _choose_device(device: int | None) -> None:
    """Let a thread put memory into pages for the GPU that the training uses."""
    if device is not None:
        torch.cuda.set_device(device)


def _await(coming: Future[SlabBatch | KitsattnError], key: BatchKey, waiting: Callable[[], None]) -> None:
    """Wait until a batch is here, or its process has ended."""
    asked = time.monotonic()
    while not wait([coming], _LOOK_S).done:
        waiting()
        if time.monotonic() - asked > _PATIENCE_S:
            msg = (
                f"{_name(key)} has not come for {_PATIENCE_S / 60:.0f} minutes, although the process that draws it is "
                "alive: check the disk of the prepared data, or draw in the training process with --workers 0"
            )
            raise KitsattnError(msg)


def _serve(channel: socket.socket, streams: "Sequence[Dataset[SlabBatch]]", keys: Sequence[BatchKey]) -> None:
    """Draw the batches of `keys` and send each as soon as there is room, until the training has ended."""
    torch.set_num_threads(1)
    with channel, suppress(ConnectionError):
        for key in keys:
            batch = _draw(streams, key)
            try:
                head, tensors = _pack(batch)
            except Exception as error:  # noqa: BLE001 - any: the training must hear of it
                head, tensors = _pack(_unforeseen(key, "sent", error))
            channel.sendall(_LENGTH.pack(len(head)) + head)
            for tensor in tensors:
                channel.sendall(_bytes_of(tensor))


def _pack(batch: SlabBatch | KitsattnError) -> tuple[bytes, tuple[Tensor, ...]]:
    """Return what precedes the tensors of a batch, as JSON, and these."""
    if isinstance(batch, KitsattnError):
        return json.dumps({"error": str(batch), "notes": getattr(batch, "__notes__", [])}).encode(), ()
    tensors = (batch.images.contiguous(), batch.labels.contiguous())
    layouts = [(str(tensor.dtype).removeprefix("torch."), tensor.shape) for tensor in tensors]
    return json.dumps({"layouts": layouts, "cases": batch.cases}).encode(), tensors


def _receive(channel: socket.socket, *, pin_memory: bool) -> SlabBatch | KitsattnError:
    """Return the next batch of a process, or why there is none.

    Raises:
        EOFError, ConnectionError: If the process has ended.
    """
    length = bytearray(_LENGTH.size)
    _fill(memoryview(length), channel)
    head = bytearray(_LENGTH.unpack(length)[0])
    _fill(memoryview(head), channel)
    answer = json.loads(head)
    if "error" in answer:
        error = KitsattnError(answer["error"])
        for note in answer["notes"]:
            error.add_note(note)
        return error
    tensors = []
    for dtype, shape in answer["layouts"]:
        tensors.append(torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=pin_memory))
        _fill(_bytes_of(tensors[-1]), channel)
    images, labels = tensors
    return SlabBatch(images, labels, tuple(answer["cases"]))


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, which can be written to."""
    return tensor.flatten().view(torch.uint8).numpy().data


def _fill(buffer: memoryview, channel: socket.socket) -> None:
    while buffer:
        count = channel.recv_into(buffer[:_MOST_BYTES], flags=_WHOLE)
        if not count:
            raise EOFError
        buffer = buffer[count:]
