"""How many samples a batch may have."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kitsattn.batches.loader import SlabBatch
from kitsattn.errors import KitsattnError
from kitsattn.ranks import Ranks
from kitsattn.train import fit
from kitsattn.train.fit import choose_batch_size, largest_batch, step_bytes
from kitsattn.train.fold import train_fold
from kitsattn.train.job import FoldJob
from kitsattn.train.learner import Learner, fresh, train_batch


def _pretend_memory(monkeypatch: pytest.MonkeyPatch, *, fixed: int, each: int, free: int) -> list[int]:
    """Let a step take so many bytes and so many for each sample; return the trials as they are made."""
    trials: list[int] = []

    def measured(job: FoldJob, samples: int) -> int:
        trials.append(samples)
        if fixed + each * samples > free:
            msg = "out of memory"
            raise torch.OutOfMemoryError(msg)
        return fixed + each * samples

    monkeypatch.setattr(fit, "step_bytes", measured)
    _have(monkeypatch, free)
    return trials


def _have(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let so many bytes be free on any device."""
    monkeypatch.setattr(fit, "_free_bytes", lambda _: free)


@pytest.mark.parametrize(("free", "samples"), [(300, 20), (145, 4), (125, 2), (10**6, 64)])
def test_the_largest_batch_fills_what_is_free(
    trained: FoldJob, monkeypatch: pytest.MonkeyPatch, free: int, samples: int
) -> None:
    """Two trials give the line; not less than 2, not more than 64."""
    _pretend_memory(monkeypatch, fixed=100, each=10, free=free)
    assert largest_batch(trained) == samples


def test_a_gpu_is_asked_whether_the_batch_really_fits(trained: FoldJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is in pieces, an eighth less is tried again and again."""
    trials = _pretend_memory(monkeypatch, fixed=100, each=10, free=500)
    _have(monkeypatch, 600)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert largest_batch(replace(trained, device=torch.device("cuda"))) == 39
    assert trials == [2, 4, 50, 44, 39]


def test_a_step_keeps_more_for_each_sample(trained: FoldJob) -> None:
    """Counted on a CPU: weights and their copies, and what each sample leaves for the backward pass."""
    two, four, six = (step_bytes(trained, samples) for samples in (2, 4, 6))
    assert six - four == pytest.approx(four - two, rel=0.01)
    pixels = 64 * 64 * 2
    assert four - two > 50 * pixels
    weights = sum(parameter.nbytes for parameter in fresh(trained).model.parameters())
    assert two - (four - two) == pytest.approx(4 * weights, rel=0.2)


def test_auto_multiplies_by_the_processes_and_keeps_what_a_resumed_training_had(
    trained: FoldJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, with other memory, does not change the batch of a training that is under way."""
    _pretend_memory(monkeypatch, fixed=0, each=1, free=10)
    monkeypatch.setattr(Ranks, "all_reduce_max", lambda _, values: list(values))
    assert choose_batch_size(replace(trained, ranks=Ranks(size=3)), resume=False) == 30
    assert choose_batch_size(trained, resume=True) == trained.recipe.batch_size


def test_out_of_memory_says_which_batch_fits(trained: FoldJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, and by the time it is measured the network that did not fit is gone."""
    learners: list[weakref.ref[Learner]] = []

    def full(job: FoldJob, learner: Learner, batch: SlabBatch) -> None:
        learners.append(weakref.ref(learner))
        msg = "CUDA out of memory. Tried to allocate 2.00 GiB."
        raise torch.OutOfMemoryError(msg)

    def measure(job: FoldJob, samples: int) -> int:
        assert learners[0]() is None
        return samples

    monkeypatch.setattr("kitsattn.train.fold.train_batch", full)
    monkeypatch.setattr(fit, "step_bytes", measure)
    _have(monkeypatch, 3)
    with pytest.raises(KitsattnError, match=r"--batch-size 4 does not fit into .* cpu: --batch-size 3 does"):
        train_fold(replace(trained, folder=tmp_path))


def test_what_is_tried_is_a_step(trained: FoldJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial takes the very step that training takes, with images that leave a finite gradient."""
    taken: list[Any] = []

    def watched(job: FoldJob, learner: Learner, batch: SlabBatch) -> None:
        train_batch(job, learner, batch)
        taken.append((tuple(batch.images.shape), len(learner.counters.losses)))

    monkeypatch.setattr(fit, "train_batch", watched)
    step_bytes(trained, 3)
    assert taken == [((3, 5, 64, 64), 1)]
