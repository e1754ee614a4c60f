"""Training of a fold."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kitsattn.batches.loader import SlabBatch, SlabBatches
from kitsattn.checkpoint.file import load_checkpoint, save_checkpoint
from kitsattn.errors import Interrupted, KitsattnError
from kitsattn.models.attention_deeplab import AttentionDeeplabConfig
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.train.fold import train_fold
from kitsattn.train.folds import Split, make_splits
from kitsattn.train.job import FoldJob
from kitsattn.train.learner import Learner, resume_learner, start_learner, train_batch
from kitsattn.train.recipe import OptimizerName, Recipe
from kitsattn.train.run import cross_validated, train_run
from kitsattn.train.watch import OutOfTimeError

CONFIG = AttentionDeeplabConfig(
    slices=3,
    normalizer_channels=(4, 8),
    encoder_block="basic",
    encoder_depths=(1, 1, 1, 1),
    encoder_width=8,
    aspp_channels=16,
    aspp_rates=(2,),
    key_channels=4,
    low_level_channels=8,
    decoder_channels=16,
)
RECIPE = Recipe(
    epochs=2,
    batches_per_epoch=4,
    validation_batches=2,
    batch_size=4,
    patch_size=(64, 64),
    learning_rate=5e-3,
    schedule="polynomial",
)


def _job(prepared: PreparedDataset, folder: Path, *, fold: int = 0, recipe: Recipe = RECIPE) -> FoldJob:
    splits = make_splits(prepared.cases)
    return FoldJob(
        dataset=prepared,
        split=splits[fold],
        fold=fold,
        folds=len(splits),
        model="attention-deeplab-tiny",
        config=CONFIG,
        recipe_name="test",
        recipe=recipe,
        seed=1,
        device=torch.device("cpu"),
        precision="fp32",
        workers=0,
        folder=folder / f"fold_{fold}",
    )


def _journal(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_a_fold_learns_and_leaves_checkpoints_and_a_journal(prepared: PreparedDataset, tmp_path: Path) -> None:
    """The loss falls, every epoch has a line, `best` names its provenance and `last` can be resumed."""
    job = _job(prepared, tmp_path, recipe=replace(RECIPE, epochs=4, batches_per_epoch=60))
    best = train_fold(job)
    lines = _journal(job.folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["training_loss"] < lines[0]["training_loss"] - 0.3  # type: ignore[operator]
    assert lines[-1]["validation_dice"]["kidney_and_tumour"] > 0.5  # type: ignore[index]
    header = load_checkpoint(best).header
    assert header.training is None
    assert header.provenance.synthetic is True
    assert header.provenance.dataset == "painted"
    assert header.plan["patch_size"] == [64, 64]
    assert load_checkpoint(job.folder / "last.safetensors").header.training is not None


def test_a_stopped_training_goes_on_as_if_it_had_not_been(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Two epochs and then two more give, bit for bit, the weights of four."""
    recipe = replace(RECIPE, epochs=4)
    straight, stopped = _job(prepared, tmp_path / "a", recipe=recipe), _job(prepared, tmp_path / "b", recipe=recipe)
    train_fold(straight)

    class StopError(Exception):
        pass

    def stop(label: str, done: int, total: int, /) -> None:
        if done == 10:  # in the middle of the third epoch
            raise StopError

    with pytest.raises(StopError):
        train_fold(stopped, progress=stop)
    assert [line["epoch"] for line in _journal(stopped.folder)] == [1, 2]
    train_fold(stopped)
    one, other = (load_checkpoint(job.folder / "last.safetensors") for job in (straight, stopped))
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)
    assert all(torch.equal(one.training[name], other.training[name]) for name in one.training)
    assert one.header.training == other.header.training
    kept = ("epoch", "training_loss", "validation_dice", "learning_rate")
    journals = [[[line[key] for key in kept] for line in _journal(job.folder)] for job in (straight, stopped)]
    assert journals[0] == journals[1]


MODERN = replace(
    RECIPE, optimizer="adamw", weight_decay=0.05, ema_decay=0.9, dice_over="regions", warmup_share=0.25, epochs=3
)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimiser_goes_on_to_the_same_bits(
    prepared: PreparedDataset, tmp_path: Path, optimizer: OptimizerName
) -> None:
    """Moments, averaged weights and warm-up included."""
    recipe = replace(MODERN, optimizer=optimizer)
    straight, stopped = (_job(prepared, tmp_path / name, recipe=recipe) for name in ("a", "b"))
    train_fold(straight)
    with pytest.raises(OutOfTimeError):
        train_fold(stopped, deadline=time.monotonic())
    train_fold(stopped)
    for name in ("last", "ema", "best"):
        one, other = (load_checkpoint(job.folder / f"{name}.safetensors") for job in (straight, stopped))
        assert one.training.keys() == other.training.keys()
        assert all(torch.equal(one.model[key], other.model[key]) for key in one.model)
        assert all(torch.equal(one.training[key], other.training[key]) for key in one.training)


def test_averaged_weights_are_validated_and_shipped(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked out again from the weights after each step; `best` holds the average, `last` the weights themselves."""
    recipe = replace(MODERN, epochs=1)
    job = _job(prepared, tmp_path, recipe=recipe)
    steps: list[dict[str, torch.Tensor]] = []

    def watched(job: FoldJob, learner: Learner, batch: SlabBatch) -> None:
        if not steps:
            steps.append({name: tensor.clone() for name, tensor in learner.model.state_dict().items()})
        train_batch(job, learner, batch)
        steps.append({name: tensor.clone() for name, tensor in learner.model.state_dict().items()})

    monkeypatch.setattr("kitsattn.train.fold.train_batch", watched)
    best = load_checkpoint(train_fold(job))
    wanted = {name: tensor.double() for name, tensor in steps[0].items()}
    for done, weights in enumerate(steps[1:]):
        decay = min(0.9, (1 + done) / (10 + done))
        wanted = {name: decay * tensor + (1 - decay) * weights[name] for name, tensor in wanted.items()}
    for name, tensor in best.model.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(tensor, steps[-1][name])
    last = load_checkpoint(job.folder / "last.safetensors")
    assert all(torch.equal(last.model[name], steps[-1][name]) for name in last.model)


def test_adamw_leaves_biases_and_normalisations_alone(prepared: PreparedDataset, tmp_path: Path) -> None:
    """With no gradient to follow, a decay of 0.1 at rate 0.1 shrinks weights by a hundredth a step, nothing else."""
    recipe = replace(RECIPE, optimizer="adamw", weight_decay=0.1, learning_rate=0.1, schedule="plateau")
    learner = start_learner(_job(prepared, tmp_path, recipe=recipe))
    before = {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}
    for parameter in learner.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    for name, parameter in learner.model.named_parameters():
        wanted = before[name] * (0.99 if parameter.ndim > 1 else 1.0)
        torch.testing.assert_close(parameter.detach(), wanted)


def test_a_finished_fold_is_not_trained_again_unless_told(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Resuming at the last epoch does nothing; --restart begins anew."""
    job = _job(prepared, tmp_path)
    best = train_fold(job)
    before = best.stat().st_mtime_ns
    train_fold(job)
    assert best.stat().st_mtime_ns == before
    train_fold(job, resume=False)
    assert best.stat().st_mtime_ns > before
    assert [line["epoch"] for line in _journal(job.folder)] == [1, 2]


@pytest.mark.parametrize(
    ("recipe", "change", "told"),
    [
        ({"learning_rate": 1e-3}, {}, "recipe: learning_rate was 0.005 and is 0.001"),
        ({"epochs": 9}, {}, "recipe: epochs was 2 and is 9"),
        ({}, {"seed": 2}, "seed was 1 and is 2"),
        ({}, {"config": CONFIG}, "model settings: aspp_channels was 64 and is 16; model settings: aspp_rates"),
        (
            {"epochs": 9, "batch_size": 2, "learning_rate": 1.0},
            {"seed": 2},
            "recipe: batch_size was 4 and is 2; recipe: epochs was 2 and is 9; recipe: learning_rate was 0.005 and is",
        ),
    ],
)
def test_another_training_is_not_resumed(
    trained: FoldJob, recipe: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    """What differs is listed, with how it was and how it is; a polynomial depends on its end."""
    with pytest.raises(KitsattnError) as refusal:
        train_fold(replace(trained, recipe=replace(trained.recipe, **recipe), **change))
    assert f"is of another training ({told}" in str(refusal.value)
    assert "): add --restart to begin again, or name another --run-name" in str(refusal.value)
    assert ("; and 1 more)" in str(refusal.value)) == (len(recipe) == 3)


def test_a_checkpoint_without_later_settings_is_resumed(trained: FoldJob, tmp_path: Path) -> None:
    """A setting that came after the training began has its default there."""
    shutil.copytree(trained.folder, tmp_path / "fold_0")
    last = tmp_path / "fold_0" / "last.safetensors"
    stored = load_checkpoint(last)
    earlier = {name: value for name, value in stored.header.config.items() if not name.startswith("attention_")}
    assert earlier != dict(stored.header.config)
    save_checkpoint(last, replace(stored, header=replace(stored.header, config=earlier)))

    resumed = resume_learner(replace(trained, folder=tmp_path / "fold_0"), last)

    assert resumed.counters.epoch == trained.recipe.epochs


def test_a_training_on_other_cases_is_not_resumed(trained: FoldJob) -> None:
    """The cases that only one of the two has are named."""
    first, *others = trained.split.train
    for train, told in ((others, f"{first} gone, none new"), ([*others, first], "are in another order")):
        with pytest.raises(KitsattnError, match=f"training cases:? {told}"):
            train_fold(replace(trained, split=Split(tuple(train), trained.split.held_out)))


def test_a_plateau_goes_on_with_more_epochs_and_ends_for_good(prepared: PreparedDataset, tmp_path: Path) -> None:
    """More epochs are welcome where the schedule does not depend on them; below its last rate nothing is trained."""
    recipe = replace(RECIPE, epochs=1, schedule="plateau")
    train_fold(_job(prepared, tmp_path, recipe=recipe))
    job = _job(prepared, tmp_path, recipe=replace(recipe, epochs=2))
    train_fold(job)
    assert [line["epoch"] for line in _journal(job.folder)] == [1, 2]

    ended = _job(prepared, tmp_path / "ended", recipe=replace(recipe, epochs=5, learning_rate=1e-7))
    train_fold(ended)
    train_fold(ended)
    assert [line["epoch"] for line in _journal(ended.folder)] == [1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_step(
    prepared: PreparedDataset, tmp_path: Path, number: signal.Signals
) -> None:
    """In the midst of a batch it ends the training after it, with that batch saved, and the handlers are as before."""
    job = _job(prepared, tmp_path)
    reported = []

    def press(label: str, done: int, total: int, /) -> None:
        signal.raise_signal(number)
        reported.append(done)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(number)
    try:
        with pytest.raises(Interrupted) as caught:
            train_fold(job, progress=press)
        assert signal.getsignal(number) is before
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert caught.value.number == number
    assert reported == [1]
    state = load_checkpoint(job.folder / "last.safetensors").header.training
    assert state is not None
    assert json.loads(state)["batch"] == 1


def test_a_second_signal_ends_at_once(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Whoever is impatient need not wait for the batch."""

    def press(label: str, done: int, total: int, /) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_fold(_job(prepared, tmp_path), progress=press)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_beginning_again_forgets_what_was_there(prepared: PreparedDataset, tmp_path: Path) -> None:
    """After --restart no checkpoint, line or prediction of the old training is left, even if the new one is stopped."""
    job = _job(prepared, tmp_path)
    train_run([job])
    (job.folder / "tensorboard").mkdir()

    def stop(label: str, done: int, total: int, /) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_fold(job, resume=False, progress=stop)
    assert [path.name for path in job.folder.iterdir() if path.name != "report.html"] == []


def test_predicted_cases_are_kept_when_a_run_is_called_again(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Only what is missing is predicted."""
    job = _job(prepared, tmp_path)
    train_run([job])
    first, second = (job.folder / "validation" / f"{case}.nii.gz" for case in job.split.held_out)
    kept = first.stat().st_mtime_ns
    second.unlink()
    train_run([job])
    assert first.stat().st_mtime_ns == kept
    assert second.is_file()


def _poison(monkeypatch: pytest.MonkeyPatch, keys: set[tuple[int, int, int]]) -> None:
    """Let the images of some batches be NaN."""
    draw = SlabBatches.__getitem__

    def poisoned(self: SlabBatches, key: tuple[int, int, int]) -> SlabBatch:
        batch = draw(self, key)
        return replace(batch, images=batch.images * float("nan")) if key in keys else batch

    monkeypatch.setattr(SlabBatches, "__getitem__", poisoned)


def test_a_batch_without_a_finite_loss_changes_nothing_but_is_counted(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is skipped, the journal says so, and the training goes on; running statistics stay finite."""
    job = _job(prepared, tmp_path)
    _poison(monkeypatch, {(0, 0, 1), (0, 1, 2)})
    checkpoint = load_checkpoint(train_fold(job))
    assert [line["skipped"] for line in _journal(job.folder)] == [1, 1]
    assert all(tensor.isfinite().all() for tensor in checkpoint.model.values())
    assert _journal(job.folder)[-1]["training_loss"] > 0  # type: ignore[operator]


def test_a_gradient_that_is_not_finite_is_skipped_too(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the loss were finite."""
    job = _job(prepared, tmp_path, recipe=replace(RECIPE, epochs=1))
    clip, norms = torch.nn.utils.clip_grad_norm_, iter([1.0, float("inf"), 1.0, 1.0])

    def pretend(parameters: list[torch.nn.Parameter], most: float) -> torch.Tensor:
        clip(parameters, most)
        return torch.tensor(next(norms))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", pretend)
    train_fold(job)
    assert [line["skipped"] for line in _journal(job.folder)] == [1]


def test_many_batches_without_a_finite_loss_stop_with_the_cases(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the epoch and the cases, and the finished epoch stays on disk; a resume counts on."""
    job = _job(prepared, tmp_path, recipe=replace(RECIPE, batches_per_epoch=30))
    _poison(monkeypatch, {(0, 1, index) for index in range(3, 30)})
    with pytest.raises(
        KitsattnError,
        match=r"20 batches in a row had .* in epoch 2, the last on cases case_0000\d.*a lower learning rate",
    ):
        train_fold(job)
    assert load_checkpoint(job.folder / "last.safetensors").header.provenance.epoch == 1


def test_a_training_saves_within_an_epoch_and_goes_on_from_there(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, or of its validation, it ends with the bits of an uninterrupted one."""
    straight, stopped = (_job(prepared, tmp_path / name) for name in ("a", "b"))
    train_fold(straight)

    class StopError(Exception):
        pass

    for last in (2, 7):

        def stop(label: str, done: int, total: int, /, last: int = last) -> None:
            if done > last:
                raise StopError

        with pytest.raises(StopError):
            train_fold(stopped, save_every_minutes=0.0, progress=stop)
        state = load_checkpoint(stopped.folder / "last.safetensors").header.training
        assert state is not None
        assert json.loads(state)["batch"] == last % 4
    train_fold(stopped)

    one, other = (load_checkpoint(job.folder / "last.safetensors") for job in (straight, stopped))
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)
    assert all(torch.equal(one.training[name], other.training[name]) for name in one.training)
    assert one.header.training == other.header.training
    kept = ("epoch", "training_loss", "validation_loss", "validation_dice", "moving_dice", "learning_rate", "skipped")
    journals = [[[line[key] for key in kept] for line in _journal(job.folder)] for job in (straight, stopped)]
    assert journals[0] == journals[1]


SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from test_fold import job_of
from kitsattn.preprocess.store import open_dataset
from kitsattn.train.fold import train_fold

if __name__ == "__main__":
    job = job_of(open_dataset(Path(sys.argv[2])), Path(sys.argv[3]), epochs=int(sys.argv[4]))
    train_fold(job, save_every_minutes=0.002)
"""
"""Trains in a process of its own, which can be killed, and whose memory is its own."""


def job_of(prepared: PreparedDataset, folder: Path, *, epochs: int = 3) -> FoldJob:
    """Return the training of `SCRIPT`."""
    job = _job(prepared, folder, recipe=replace(RECIPE, epochs=epochs, batches_per_epoch=12))
    return replace(job, workers=1)


def _in_a_process(prepared: PreparedDataset, folder: Path, epochs: int) -> list[str]:
    """Return the command that runs `SCRIPT`."""
    script = folder.with_name("script.py")
    script.write_text(SCRIPT)
    return [sys.executable, str(script), str(Path(__file__).parent), str(prepared.folder), str(folder), str(epochs)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process_goes_on_to_the_same_bits(prepared: PreparedDataset, tmp_path: Path) -> None:
    """SIGKILL between two saves: what was done since the last one is done again, and the end is the same."""
    straight, killed = (job_of(prepared, tmp_path / name) for name in ("a", "b"))
    train_fold(straight)
    command = _in_a_process(prepared, tmp_path / "b", 3)
    last = killed.folder / "last.safetensors"
    for wanted in (5, 20):
        with subprocess.Popen(command) as process:
            try:
                while process.poll() is None and _batches_done(last) < wanted:
                    time.sleep(0.01)
                time.sleep(0.05)
            finally:
                process.kill()
        assert process.returncode == -signal.SIGKILL
    assert 20 <= _batches_done(last) < 36

    train_fold(killed)

    one, other = (load_checkpoint(job.folder / "last.safetensors") for job in (straight, killed))
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)
    assert all(torch.equal(one.training[name], other.training[name]) for name in one.training)
    assert [line["epoch"] for line in _journal(killed.folder)] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the journal has no memory on Windows")
def test_memory_does_not_grow_over_the_epochs(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Twenty epochs after the second one, the process has at most 5 % more at its peak."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(_in_a_process(prepared, tmp_path / "a", 22), check=True, env=environment)
    peaks = [line["peak_memory_bytes"] for line in _journal(tmp_path / "a" / "fold_0")]
    assert len(peaks) == 22
    assert peaks[-1] < 1.05 * peaks[1], peaks  # type: ignore[operator]


def _batches_done(last: Path) -> int:
    try:
        state = load_checkpoint(last).header.training
    except KitsattnError:  # not there yet, or another one took its place while it was read
        return 0
    assert state is not None
    return int(json.loads(state)["epoch"]) * 12 + int(json.loads(state)["batch"])


def test_a_picture_that_cannot_be_drawn_does_not_end_a_training(
    prepared: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and the training goes on."""
    job = _job(prepared, tmp_path)

    def refuse(journal: Path, picture: Path, title: str) -> None:
        msg = f"{picture} cannot be written"
        raise KitsattnError(msg)

    monkeypatch.setattr("kitsattn.train.fold.draw_journal", refuse)
    train_fold(job)
    assert len(_journal(job.folder)) == 2
    assert caplog.text.count("progress.png cannot be written") == 2


def test_a_training_without_data_saves_before_it_ends(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learnt until a batch could not be drawn is kept."""
    job = _job(prepared, tmp_path)
    draw = SlabBatches.__getitem__

    def broken(self: SlabBatches, key: tuple[int, int, int]) -> SlabBatch:
        if key == (0, 1, 2):
            msg = "something"
            raise ZeroDivisionError(msg)
        return draw(self, key)

    monkeypatch.setattr(SlabBatches, "__getitem__", broken)
    with pytest.raises(KitsattnError, match="batch 3 of epoch 2 cannot be drawn, ZeroDivisionError: something"):
        train_fold(job)
    state = load_checkpoint(job.folder / "last.safetensors").header.training
    assert state is not None
    assert (json.loads(state)["epoch"], json.loads(state)["batch"]) == (1, 2)


def test_a_training_ends_at_its_deadline_with_everything_saved(prepared: PreparedDataset, tmp_path: Path) -> None:
    """After the batch that is under way; the same call goes on."""
    job = _job(prepared, tmp_path)
    for batch in (1, 2):
        with pytest.raises(OutOfTimeError, match="fold 0 was stopped in epoch 1: its time has passed"):
            train_fold(job, deadline=time.monotonic())
        state = load_checkpoint(job.folder / "last.safetensors").header.training
        assert state is not None
        assert json.loads(state)["batch"] == batch
    train_fold(job)
    assert [line["epoch"] for line in _journal(job.folder)] == [1, 2]


def test_a_checkpoint_may_be_the_start(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Fine-tuning begins with its weights; with other classes the last layer is new."""
    start = train_fold(_job(prepared, tmp_path / "a"))
    recipe = replace(RECIPE, epochs=1, batches_per_epoch=1, learning_rate=1e-9)
    job = replace(_job(prepared, tmp_path / "b", recipe=recipe), initial_weights=start)
    trained, before = load_checkpoint(train_fold(job)).model, load_checkpoint(start).model
    for name, tensor in trained.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)

    other = replace(job, config=replace(CONFIG, classes=4), folder=tmp_path / "c")
    trained = load_checkpoint(train_fold(other)).model
    torch.testing.assert_close(trained["encoder.conv1.weight"], before["encoder.conv1.weight"], atol=1e-6, rtol=0)
    assert trained["decoder.classify.weight"].shape[0] == 4
    with pytest.raises(KitsattnError, match=r"has the shape .* leave --model and --model-settings out"):
        train_fold(replace(job, config=replace(CONFIG, encoder_width=16), folder=tmp_path / "d"))
    with pytest.raises(KitsattnError, match="is a network attention-deeplab-tiny and not"):
        train_fold(replace(job, config=replace(CONFIG, attention="none"), folder=tmp_path / "e"))


def test_published_encoder_weights_are_the_start(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Weights of a three-channel encoder are loaded by name before the first step."""
    from kitsattn.blocks.resnet import ResNetEncoder

    torch.manual_seed(7)
    published = ResNetEncoder(1, "basic", (1, 1, 1, 1), 8, 16).state_dict()
    save_file(published, tmp_path / "encoder.safetensors")
    job = replace(
        _job(prepared, tmp_path, recipe=replace(RECIPE, epochs=1, batches_per_epoch=1, learning_rate=1e-9)),
        encoder_weights=tmp_path / "encoder.safetensors",
    )
    trained = load_checkpoint(train_fold(job)).model
    name = "layer3.0.conv2.weight"
    torch.testing.assert_close(trained[f"encoder.{name}"], published[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        trained["encoder.conv1.weight"], published["conv1.weight"].repeat(1, 3, 1, 1) / 3, atol=1e-6, rtol=0
    )


def test_a_run_ends_with_the_scores_of_its_held_out_cases(prepared: PreparedDataset, tmp_path: Path) -> None:
    """Each fold predicts and scores its own cases as whole volumes; together they are the cross-validated cohort."""
    jobs = [_job(prepared, tmp_path, fold=fold) for fold in (0, 1)]
    results = train_run(jobs)
    for job, result in zip(jobs, results, strict=True):
        assert [case.case for case in result.scores.cases] == list(job.split.held_out)
        summary = json.loads((job.folder / "validation" / "summary.json").read_text())
        assert summary["mean"] == result.scores.to_json()["mean"]
        assert "SYNTHETIC" in result.report.read_text() or "synthetic" in result.report.read_text()
        for case in job.split.held_out:
            assert (job.folder / "validation" / f"{case}.nii.gz").is_file()
            assert (job.folder / "validation" / f"{case}.png").is_file()
    total = cross_validated(results)
    assert len(total.cases) == sum(len(job.split.held_out) for job in jobs)
