"""The training of one fold, read from top to bottom."""

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn
from torch.optim import Adam, Optimizer

from kitsattn import __version__
from kitsattn.batches.loader import BatchKey, BatchSettings, SlabBatch, SlabBatches, load_batches
from kitsattn.checkpoint.file import Checkpoint, load_checkpoint, save_checkpoint
from kitsattn.checkpoint.header import Header, Provenance
from kitsattn.checkpoint.state import (
    TrainingState,
    optimizer_state,
    restore_optimizer,
    training_state_from_json,
    training_state_to_json,
)
from kitsattn.checkpoint.weights import read_weights
from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.jobs import Progress, available_cores, silent
from kitsattn.kernels.precision import Precision, mixed_precision, to_device
from kitsattn.labels import KITS19_REGIONS, Region
from kitsattn.models import build_model
from kitsattn.models.registry import ModelConfig
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.train.folds import Split
from kitsattn.train.journal import EpochRecord, append_record, truncate_journal
from kitsattn.train.losses import segmentation_loss
from kitsattn.train.recipe import Recipe
from kitsattn.train.schedule import Schedule, build_schedule

if TYPE_CHECKING:
    from kitsattn.blocks.resnet import ResNetEncoder

BEST = "best.safetensors"
LAST = "last.safetensors"
JOURNAL = "journal.jsonl"
VALIDATION = "validation"
_DICE_MEMORY = 0.9
"""Weight of the past in the moving average of the validation Dice, as in nnU-Net."""

_TRAINING, _VALIDATION = 0, 1
_MOST_WORKERS = 12
"""nnU-Net's number; each worker holds two batches in shared memory."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """Everything that decides the training of one fold.

    Attributes:
        dataset: The prepared data set.
        split: Which cases to learn from and which are held out.
        fold: Number of the fold.
        folds: Number of folds.
        model: Registered name of the network.
        config: Its settings.
        recipe_name: Name of the recipe, for the checkpoint.
        recipe: Numbers of the training.
        seed: Seed of weights and batches.
        device: Where to train.
        precision: Number format of convolutions and matrix products; weights and losses stay fp32.
        workers: Processes that draw batches; 0 draws in the training process.
        folder: Where checkpoints and journal go.
        encoder_weights: File of published weights of the encoder by torchvision's names; None starts from chance.
    """

    dataset: PreparedDataset
    split: Split
    fold: int
    folds: int
    model: str
    config: ModelConfig
    recipe_name: str
    recipe: Recipe
    seed: int
    device: torch.device
    precision: Precision
    workers: int
    folder: Path
    encoder_weights: Path | None = None

    @property
    def plan(self) -> Plan:
        """The data set's plan, with the recipe's patch size where it has one of its own."""
        size = self.recipe.patch_size
        return self.dataset.plan if size is None else replace(self.dataset.plan, patch_size=size)


@dataclass
class _Learner:
    """What changes while a fold is trained."""

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    epoch: int = 0
    best: float | None = None
    moving_dice: float | None = None
    finished: bool = False


def train_fold(job: FoldJob, *, resume: bool = True, progress: Progress = silent) -> Path:
    """Train one fold.

    Args:
        job: What to train.
        resume: Whether to go on from `last.safetensors` where it is there.
        progress: Called after each batch with the batches done.

    Returns:
        The best checkpoint.

    Raises:
        KitsattnError: If a checkpoint to resume from does not fit, a loss is not finite, or the disk is full.
    """
    threads = torch.get_num_threads()
    if job.device.type == "cpu":
        # The batch processes have their cores: threads that wait for each other on a core that is taken
        # slow a step of small tensors down up to tenfold.
        torch.set_num_threads(max(1, min(threads, available_cores() - job.workers)))
    try:
        with _interruptible_between_batches() as check_interrupt:
            return _train_fold(job, check_interrupt, resume=resume, progress=progress)
    except torch.OutOfMemoryError as error:
        msg = (
            f"fold {job.fold} does not fit into the memory of {job.device} ({str(error).splitlines()[0]}): "
            "lower --batch-size, or train in bf16; the last finished epoch is saved"
        )
        raise KitsattnError(msg) from error
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _interruptible_between_batches() -> Iterator[Callable[[], None]]:
    """Hold a Ctrl-C back until the function that is given is called, so that no step is torn; a second ends at once."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: None  # only the main thread may say what a signal does, and a background job ignores it
        return
    asked = False

    def note(signal_number: int, frame: FrameType | None) -> None:
        del signal_number, frame
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def default_workers(device: torch.device) -> int:
    """Return how many processes should draw batches: all cores but one, at most 12, for a GPU, one for a CPU."""
    return min(_MOST_WORKERS if device.type != "cpu" else 1, available_cores() - 1)


def _train_fold(job: FoldJob, check_interrupt: Callable[[], None], *, resume: bool, progress: Progress) -> Path:
    """Read from top to bottom: start or resume, then epochs of training, validation, journal, checkpoints."""
    last = job.folder / LAST
    if resume and last.exists():
        learner = _resume(job, last)
        _log.info("fold %d: resuming after epoch %d of %d", job.fold, learner.epoch, job.recipe.epochs)
    else:
        _forget(job.folder)
        learner = _start(job)
        _load_encoder(job, learner)
    if learner.finished:
        return job.folder / BEST
    job.folder.mkdir(parents=True, exist_ok=True)
    truncate_journal(job.folder / JOURNAL, learner.epoch)

    recipe = job.recipe
    batches = _load(job, learner.epoch)
    total = recipe.epochs * recipe.batches_per_epoch
    label = f"fold {job.fold}"
    for epoch in range(learner.epoch, recipe.epochs):
        started, waited, losses = time.perf_counter(), 0.0, []
        learner.model.train()
        for index in range(recipe.batches_per_epoch):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            losses.append(_train_batch(job, learner, batch))
            progress(label, epoch * recipe.batches_per_epoch + index + 1, total)
            check_interrupt()
        trained = time.perf_counter()
        training_loss = float(np.mean(losses))
        validation_loss, dice = _validate(job, learner, batches)
        learning_rate = float(learner.optimizer.param_groups[0]["lr"])
        learner.finished = learner.schedule.step(training_loss)
        improved = _account(learner, float(np.mean(list(dice.values()))))
        assert learner.moving_dice is not None
        record = EpochRecord(
            epoch=learner.epoch,
            training_loss=training_loss,
            validation_loss=validation_loss,
            validation_dice=dice,
            moving_dice=learner.moving_dice,
            learning_rate=learning_rate,
            images_per_second=recipe.batches_per_epoch * recipe.batch_size / (trained - started),
            waiting_share=waited / (trained - started),
            seconds=time.perf_counter() - started,
        )
        # `last` at the end: whatever a crash leaves before it is written anew when the epoch is repeated.
        append_record(job.folder / JOURNAL, record)
        _save(job, learner, dice, improved=improved)
        _log.info("fold %d: %s", job.fold, _sentence(record, recipe.epochs))
        if learner.finished:
            break
    return job.folder / BEST


def _start(job: FoldJob) -> _Learner:
    torch.manual_seed(job.seed)
    model = build_model(job.model, job.config)
    model = to_device(model, job.device)
    recipe = job.recipe
    optimizer = Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    return _Learner(model, optimizer, build_schedule(recipe, optimizer), scaler)


def _load_encoder(job: FoldJob, learner: _Learner) -> None:
    """Put published weights into the encoder of a fresh network."""
    if job.encoder_weights is not None:
        encoder = cast("ResNetEncoder", learner.model.get_submodule("encoder"))
        _log.info("encoder: %s", encoder.load_published(read_weights(job.encoder_weights)))


def _forget(folder: Path) -> None:
    """Remove what an earlier training left, so that nothing of it is taken for the new one's."""
    for name in (LAST, BEST, JOURNAL):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / VALIDATION, ignore_errors=True)


def _load(job: FoldJob, epoch: int) -> Iterator[SlabBatch]:
    """Return the iterator over all training and validation batches from `epoch` on."""
    plan, recipe = job.plan, job.recipe
    settings = BatchSettings(
        batch_size=recipe.batch_size,
        patch_size=plan.patch_size,
        slices=job.config.slices,
        slab_step_mm=job.config.slab_step_mm,
        air=plan.air,
        seed=job.seed,
        augment=recipe.augment,
    )
    streams = [
        SlabBatches([job.dataset.open_case(case) for case in job.split.train], settings),
        SlabBatches([job.dataset.open_case(case) for case in job.split.held_out], replace(settings, augment=False)),
    ]
    keys: list[BatchKey] = []
    for number in range(epoch, recipe.epochs):
        keys += [(_TRAINING, number, index) for index in range(recipe.batches_per_epoch)]
        keys += [(_VALIDATION, 0, index) for index in range(recipe.validation_batches)]
    return load_batches(streams, keys, workers=job.workers, pin_memory=job.device.type == "cuda")


def _train_batch(job: FoldJob, learner: _Learner, batch: SlabBatch) -> float:
    """Take one step; return the loss."""
    images = batch.images.to(job.device, memory_format=torch.channels_last, non_blocking=True)
    labels = batch.labels.to(job.device, non_blocking=True).long()
    learner.optimizer.zero_grad(set_to_none=True)
    with mixed_precision(job.device, job.precision):
        logits = learner.model(images)
    loss = segmentation_loss(logits, labels)
    value = float(loss.detach())
    if not np.isfinite(value):
        cases = ", ".join(sorted(set(batch.cases)))
        msg = (
            f"the training loss became {value} in epoch {learner.epoch + 1} on cases {cases}: "
            "look at these cases, or begin again with --restart, a lower learning rate or --precision fp32"
        )
        raise KitsattnError(msg)
    learner.scaler.scale(loss).backward()
    learner.scaler.unscale_(learner.optimizer)
    nn.utils.clip_grad_norm_(learner.model.parameters(), job.recipe.gradient_clip)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    return value


@torch.no_grad()
def _validate(job: FoldJob, learner: _Learner, batches: Iterator[SlabBatch]) -> tuple[float, dict[str, float]]:
    """Return the mean loss and the Dice of each region over all pixels of the validation batches."""
    learner.model.eval()
    regions = evaluated_regions(job.dataset.labels)
    counts = {region.key: np.zeros(3) for region in regions}
    losses = []
    for _ in range(job.recipe.validation_batches):
        batch = next(batches)
        labels = batch.labels.to(job.device).long()
        with mixed_precision(job.device, job.precision):
            logits = learner.model(batch.images.to(job.device, memory_format=torch.channels_last))
        losses.append(float(segmentation_loss(logits, labels)))
        predicted = logits.argmax(dim=1)
        for region in regions:
            members = torch.tensor(region.labels, device=job.device)
            found, true = torch.isin(predicted, members), torch.isin(labels, members)
            counts[region.key] += [float((found & true).sum()), float(found.sum()), float(true.sum())]
    dice = {key: 1.0 if not found + true else 2 * both / (found + true) for key, (both, found, true) in counts.items()}
    return float(np.mean(losses)), dice


def evaluated_regions(labels: Mapping[str, int]) -> tuple[Region, ...]:
    """Return the regions that are watched in training: KiTS19's, cysts counting as kidney where the data has them."""
    extra = tuple(value for name, value in labels.items() if name == "cyst")
    kidney, tumour = KITS19_REGIONS
    return (Region(kidney.key, kidney.labels + extra), tumour)


def _account(learner: _Learner, dice: float) -> bool:
    """Count a finished epoch; return whether the moving average of the Dice is the best so far."""
    kept = dice if learner.moving_dice is None else learner.moving_dice
    learner.epoch += 1
    learner.moving_dice = _DICE_MEMORY * kept + (1 - _DICE_MEMORY) * dice
    improved = learner.best is None or learner.moving_dice > learner.best
    if improved:
        learner.best = learner.moving_dice
    return improved


def _save(job: FoldJob, learner: _Learner, dice: Mapping[str, float], *, improved: bool) -> None:
    """Write `last` with the training state, and where the epoch is the best so far, `best` without it."""
    tensors, groups = optimizer_state(learner.optimizer)
    state = TrainingState(
        epoch=learner.epoch,
        best=learner.best,
        moving_dice=learner.moving_dice,
        schedule=learner.schedule.state_dict(),
        scaler=learner.scaler.state_dict(),
        optimizer_groups=groups,
        recipe=to_json(job.recipe),
        train_cases=job.split.train,
        held_out_cases=job.split.held_out,
        finished=learner.finished,
    )
    header = Header(
        model=job.model,
        config=to_json(job.config),
        plan=to_json(job.plan),
        labels=dict(job.dataset.labels),
        provenance=Provenance(
            kitsattn=__version__,
            torch=torch.__version__,
            dataset=job.dataset.name,
            synthetic=job.dataset.synthetic,
            licence=job.dataset.licence,
            citation=job.dataset.citation,
            recipe=job.recipe_name,
            precision=job.precision,
            fold=job.fold,
            folds=job.folds,
            seed=job.seed,
            epoch=learner.epoch,
            scores=dict(dice),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    weights = learner.model.state_dict()
    if improved:
        save_checkpoint(job.folder / BEST, Checkpoint(header, weights, {}))
    resumable = replace(header, training=training_state_to_json(state))
    save_checkpoint(job.folder / LAST, Checkpoint(resumable, weights, tensors))


def _resume(job: FoldJob, last: Path) -> _Learner:
    """Return the learner whose state `last` holds."""
    checkpoint = load_checkpoint(last)
    header = checkpoint.header
    if header.training is None:
        msg = f"{last} holds no training state: add --restart to begin again"
        raise KitsattnError(msg)
    state = training_state_from_json(header.training, str(last))
    recipe = to_json(job.recipe)
    if job.recipe.schedule == "plateau":  # another end changes nothing of what is done; a polynomial depends on it
        recipe["epochs"] = state.recipe.get("epochs")
    wanted: dict[str, tuple[object, object]] = {
        "data set": (job.dataset.name, header.provenance.dataset),
        "split into cases": ((job.split.train, job.split.held_out), (state.train_cases, state.held_out_cases)),
        "model": (job.model, header.model),
        "model settings": (to_json(job.config), dict(header.config)),
        "preprocessing plan": (to_json(job.plan), dict(header.plan)),
        "recipe": (recipe, dict(state.recipe)),
        "seed": (job.seed, header.provenance.seed),
    }
    for name, (asked, found) in wanted.items():
        if asked != found:
            msg = f"{last} was trained with another {name}: add --restart to begin again, or name another --run"
            raise KitsattnError(msg)
    learner = _start(job)
    learner.model.load_state_dict(dict(checkpoint.model))
    restore_optimizer(learner.optimizer, checkpoint.training, state.optimizer_groups)
    learner.schedule.load_state_dict(dict(state.schedule))
    if state.scaler:
        learner.scaler.load_state_dict(dict(state.scaler))
    learner.epoch, learner.best, learner.moving_dice = state.epoch, state.best, state.moving_dice
    learner.finished = state.finished
    return learner


def _sentence(record: EpochRecord, epochs: int) -> str:
    values = asdict(record)
    dice = ", ".join(f"{key} {value:.3f}" for key, value in record.validation_dice.items())
    return (
        "epoch {epoch} of {epochs}: loss {training_loss:.3f}, validation {validation_loss:.3f}, Dice {dice}, "
        "{images_per_second:.0f} images/s, {seconds:.0f} s"
    ).format(**values, epochs=epochs, dice=dice)
