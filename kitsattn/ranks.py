"""The processes that work together: `torchrun` starts them, one a GPU, and each is called a rank."""

import gc
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from kitsattn.errors import KitsattnError
from kitsattn.machine import available_cores

Item = TypeVar("Item")

_CPU = torch.device("cpu")
_PATIENCE = timedelta(minutes=30)
"""How long one process waits for another that neither answers nor ends."""


@dataclass(frozen=True)
class Ranks:
    """The processes that work together, as one of them sees them.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_size: Number of them on this machine.
        device: Where this one computes.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = _CPU

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """How many of this machine's cores each process has."""
        return max(1, available_cores() // self.local_size)

    @property
    def group(self) -> "distributed.ProcessGroup | None":
        """All of them as PyTorch knows them; None where there is one."""
        return None if self.size == 1 else distributed.group.WORLD

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return what this process does of some work."""
        return items[self.rank :: self.size]

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over the processes."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """Return the highest of each value over the processes."""
        return self._reduced(values, distributed.ReduceOp.MAX)

    def barrier(self) -> None:
        """Wait until all are here."""
        self.all_reduce_sum([0.0])

    def all_gather(self, item: Item) -> list[Item]:
        """Return what each process has, in their order; it is pickled."""
        if self.size == 1:
            return [item]
        items: list[Item | None] = [None] * self.size
        distributed.all_gather_object(items, item)
        return cast("list[Item]", items)

    def _reduced(self, values: Sequence[float], operation: "distributed.ReduceOp.RedOpType") -> list[float]:
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(together, operation)
        reduced: list[float] = together.tolist()
        return reduced


ALONE = Ranks()


@contextmanager
def join_ranks(device: torch.device, patience: timedelta = _PATIENCE) -> Iterator[Ranks]:
    """Join the processes that `torchrun` has started, and leave them at the end; without it, be alone.

    Args:
        device: The kind of device to compute on; of several GPUs each process takes its own.
        patience: How long one process waits for another that neither answers nor ends.

    Raises:
        KitsattnError: If there are more processes than GPUs, or they cannot work together on such a device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield Ranks(device=device)
        return
    if device.type not in {"cpu", "cuda"}:
        msg = f"{size} processes cannot work together on {device.type}: use one, or --device cpu"
        raise KitsattnError(msg)
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own = _CPU
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            there = torch.cuda.device_count()
            msg = f"{local_size} processes on a machine with {there} GPU(s): start torchrun --nproc-per-node {there}"
            raise KitsattnError(msg)
        own = torch.device("cuda", local_rank)
        torch.cuda.set_device(own)
    # Its functions have the default group as default argument. Imported later, as DistributedDataParallel does, they
    # would keep it alive for good, and a thread of it that is at work when the interpreter ends aborts the process.
    import_module("torch.distributed.nn.functional")
    distributed.init_process_group(
        "nccl" if own.type == "cuda" else "gloo", timeout=patience, device_id=own if own.type == "cuda" else None
    )
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), local_size, own)
    except BaseException as error:
        _drop_locals(error)
        raise
    finally:
        # A network under DistributedDataParallel is a cycle that keeps the group alive.
        gc.collect()
        distributed.destroy_process_group()


def _drop_locals(error: BaseException | None) -> None:
    """Let go of what the functions held that an error has left, networks among them."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def lost_rank(error: RuntimeError) -> bool:
    """Tell whether an error says that another process of the group has ended."""
    text = str(error)
    return isinstance(error, distributed.DistError) or "gloo" in text or "NCCL" in text


def sum_over_group(values: Tensor, group: "distributed.ProcessGroup | None") -> Tensor:
    """Return the sum of a tensor over a group of processes; every process that uses it gives its gradient to all.

    Args:
        values: Of the same shape and dtype in all of them.
        group: The processes; None is this one alone, and the tensor comes back as it is.
    """
    if group is None:
        return values
    total: Tensor = _Sum.apply(values, group)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: "distributed.ProcessGroup") -> Tensor:  # noqa: ANN401 - PyTorch's
        ctx.group = group
        total = values.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - PyTorch's
        total = grad.clone()
        distributed.all_reduce(total, group=ctx.group)
        return total, None
