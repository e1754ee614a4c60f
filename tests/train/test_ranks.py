"""Training in several processes, as torchrun starts them."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kitsattn.batches.loader import BatchKey, SlabBatch, SlabBatches
from kitsattn.checkpoint.file import load_checkpoint
from kitsattn.errors import KitsattnError
from kitsattn.models import build_model, model_entry
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.ranks import Ranks, join_ranks
from kitsattn.train.fold import train_fold
from kitsattn.train.folds import make_splits
from kitsattn.train.job import FoldJob, default_workers
from kitsattn.train.recipe import Recipe

RECIPE = Recipe(
    epochs=2,
    batches_per_epoch=4,
    validation_batches=2,
    batch_size=4,
    patch_size=(64, 64),
    optimizer="sgd",
    momentum=0.9,
    learning_rate=1e-4,  # steps so small that sums in another order do not lead elsewhere
    schedule="polynomial",
    ema_decay=0.9,
    dice_over="regions",
)

SCRIPT = """
import os
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import test_ranks
from test_ranks import job_of
from kitsattn.errors import KitsattnError
from kitsattn.preprocess.store import open_dataset
from kitsattn.train.fold import train_fold
from kitsattn.ranks import join_ranks
from kitsattn.train.run import train_run
import torch

def progress(label, done, total, /):
    if label == "fold 0" and done == 3 and ranks.rank == 1:
        if sys.argv[4] == "dies":
            os._exit(3)
        if sys.argv[4] == "raises":
            raise KitsattnError("case_00001 is damaged")

if __name__ == "__main__":
    with join_ranks(torch.device("cpu")) as ranks:
        job = job_of(open_dataset(Path(sys.argv[2])), Path(sys.argv[3]), ranks)
        if sys.argv[4] == "exact":
            test_ranks.in_double_precision()
            train_fold(job)
        else:
            try:
                results = train_run([job], progress=progress)
            except KitsattnError as error:
                sys.exit(f"rank {ranks.rank}: {error}")
            print(f"rank {ranks.rank} has {len(results)} results")
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.exists() else []
    assert not [name for name in names if "gloo" in name], names
"""


def job_of(prepared: PreparedDataset, folder: Path, ranks: Ranks) -> FoldJob:
    """Return a short training of the tests' network on the painted cases."""
    splits = make_splits(prepared.cases)
    return FoldJob(
        dataset=prepared,
        split=splits[0],
        fold=0,
        folds=len(splits),
        model="attention-deeplab-tiny",
        config=model_entry("attention-deeplab-tiny").config,
        recipe_name="test",
        recipe=RECIPE,
        seed=1,
        device=torch.device("cpu"),
        precision="fp32",
        workers=0,
        folder=folder,
        ranks=ranks,
    )


def in_double_precision(patch: pytest.MonkeyPatch | None = None) -> None:
    """Let networks and batches be double: in single precision sums in another order are a few per cent of the gradient.

    The pooled branch of the ASPP divides by the deviation of four values, which are nearly the same in a fresh network.
    """
    draw = SlabBatches.__getitem__

    def exact(self: SlabBatches, key: BatchKey) -> SlabBatch:
        batch = draw(self, key)
        return replace(batch, images=batch.images.double())

    patch = patch or pytest.MonkeyPatch()
    patch.setattr("kitsattn.train.learner.build_model", lambda *settings: build_model(*settings).double())
    patch.setattr(SlabBatches, "__getitem__", exact)


def _torchrun(prepared: PreparedDataset, folder: Path, fate: str = "") -> subprocess.CompletedProcess[str]:
    """Run `SCRIPT` in two processes."""
    script = folder.with_name("script.py")
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = [str(Path(__file__).parent), str(prepared.folder), str(folder), fate]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], check=False, capture_output=True, text=True, timeout=300, env=environment
    )


def test_two_processes_train_as_one_with_twice_their_batch(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and weights agree to a millionth in double precision."""
    finished = _torchrun(prepared, tmp_path / "two", "exact")
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr

    in_double_precision(monkeypatch)
    alone = job_of(prepared, tmp_path / "one", Ranks())
    train_fold(alone)
    journals = [
        [json.loads(line) for line in (tmp_path / name / "journal.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [len(journal) for journal in journals] == [2, 2]
    for one, two in zip(*journals, strict=True):
        for key in ("training_loss", "validation_loss", "validation_dice", "learning_rate"):
            assert two[key] == pytest.approx(one[key], rel=1e-6)
    torch.manual_seed(alone.seed)
    before = build_model(alone.model, alone.config).state_dict()
    for name in ("last", "ema", "best"):
        one, two = (load_checkpoint(tmp_path / side / f"{name}.safetensors").model for side in ("one", "two"))
        moved = torch.cat([(one[key] - before[key]).double().flatten() for key in before])
        error = torch.cat([(one[key] - two[key]).double().flatten() for key in before])
        assert error.norm() < 1e-6 * moved.norm()


def test_the_first_process_writes_and_each_predicts_its_share(prepared: PreparedDataset, tmp_path: Path) -> None:
    """One line an epoch, every held-out case scored once, results in the first process alone."""
    finished = _torchrun(prepared, tmp_path / "two")
    assert finished.returncode == 0, finished.stderr
    assert sorted(finished.stdout.splitlines()) == ["rank 0 has 1 results", "rank 1 has 0 results"]
    assert len((tmp_path / "two" / "journal.jsonl").read_text().splitlines()) == 2
    summary = json.loads((tmp_path / "two" / "validation" / "summary.json").read_text())
    assert [case["case"] for case in summary["cases"]] == list(make_splits(prepared.cases)[0].held_out)


@pytest.mark.parametrize("fate", ["dies", "raises"])
def test_a_process_that_ends_ends_the_training(prepared: PreparedDataset, tmp_path: Path, fate: str) -> None:
    """Within seconds instead of hanging, with its message, and what was saved is left."""
    started = time.monotonic()
    finished = _torchrun(prepared, tmp_path / "two", fate)
    assert finished.returncode != 0
    assert time.monotonic() - started < 120
    if fate == "raises":
        assert "rank 1: case_00001 is damaged" in finished.stderr
    assert "Traceback" not in finished.stderr.split("torch/distributed/elastic")[0]


def test_a_batch_that_cannot_be_shared_alike_is_refused(prepared: PreparedDataset, tmp_path: Path) -> None:
    """With the nearest batch size that can."""
    job = job_of(prepared, tmp_path, Ranks(rank=0, size=3))
    with pytest.raises(KitsattnError, match="4 samples cannot be shared alike by 3 processes: set --batch-size 3"):
        train_fold(job)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the number that fits; and so is a device that processes cannot share."""
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(KitsattnError, match=r"3 processes on a machine with 2 GPU\(s\): .* --nproc-per-node 2"),
        join_ranks(torch.device("cuda")),
    ):
        pass
    with pytest.raises(KitsattnError, match="cannot work together on mps"), join_ranks(torch.device("mps")):
        pass


def test_each_process_does_its_share() -> None:
    """Together they do everything once."""
    shares = [Ranks(rank=rank, size=3).share(range(8)) for rank in range(3)]
    assert sorted(case for share in shares for case in share) == list(range(8))
    assert Ranks().all_reduce_sum([1.0, 2.0]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("cores", "local_size", "cpu", "cuda"),
    [(1, 1, 0, 0), (2, 1, 0, 1), (4, 1, 1, 3), (16, 1, 1, 12), (16, 4, 1, 3), (2, 4, 0, 0)],
)
def test_batches_are_drawn_on_cores_that_are_left(
    monkeypatch: pytest.MonkeyPatch, cores: int, local_size: int, *, cpu: int, cuda: int
) -> None:
    """Each of several processes on a machine has its share of the cores; a CPU trains on all where they are few."""
    monkeypatch.setattr("kitsattn.ranks.available_cores", lambda: cores)
    ranks = Ranks(size=local_size, local_size=local_size)
    assert default_workers(torch.device("cpu"), ranks) == cpu
    assert default_workers(torch.device("cuda"), ranks) == cuda
