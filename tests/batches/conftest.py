"""What tests of batches share."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch.utils.data import Dataset

from kitsattn.batches.loader import SlabBatch
from kitsattn.batches.processes import load_batches

CheckProcesses = Callable[[Sequence[Dataset[SlabBatch]]], None]


@pytest.fixture(scope="session")
def check_processes() -> CheckProcesses:
    """A function that checks that two processes give what this one gives, in the same order, from both streams."""

    def check(streams: Sequence[Dataset[SlabBatch]]) -> None:
        keys = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0)]
        here = list(load_batches(streams, keys, workers=0))
        there = list(load_batches(streams, keys, workers=2))
        assert len(here) == len(there) == 4
        for mine, theirs in zip(here, there, strict=True):
            assert torch.equal(mine.images, theirs.images)
            assert torch.equal(mine.labels, theirs.labels)
            assert mine.cases == theirs.cases

    return check
