"""The training of one fold, read from top to bottom."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
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
_DICE_MEMORY = 0.9
"""Weight of the past in the moving average of the validation Dice, as in nnU-Net."""

_TRAINING, _VALIDATION = 0, 1

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
        encoder_weights: Published weights of the encoder by torchvision's names; None starts from chance.
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
    encoder_weights: Mapping[str, Tensor] | None = None

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
        return _train_fold(job, resume=resume, progress=progress)
    finally:
        torch.set_num_threads(threads)


def default_workers(device: torch.device) -> int:
    """Return how many processes should draw batches: all cores but one for a GPU, one core's worth for a CPU."""
    spare = available_cores() - 1
    return min(1, spare) if device.type == "cpu" else spare


def _train_fold(job: FoldJob, *, resume: bool, progress: Progress) -> Path:
    """Read from top to bottom: start or resume, then epochs of training, validation, journal, checkpoints."""
    learner = _start(job)
    last = job.folder / LAST
    if resume and last.exists():
        _resume(job, learner, last)
        _log.info("fold %d: resuming after epoch %d of %d", job.fold, learner.epoch, job.recipe.epochs)
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
        trained = time.perf_counter()
        training_loss = float(np.mean(losses))
        validation_loss, dice = _validate(job, learner, batches)
        learning_rate = float(learner.optimizer.param_groups[0]["lr"])
        finished = learner.schedule.step(training_loss)
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
        # The journal last: a line in it means that the checkpoint of that epoch is there.
        _save(job, learner, dice, improved=improved)
        append_record(job.folder / JOURNAL, record)
        _log.info("fold %d: %s", job.fold, _sentence(record, recipe.epochs))
        if finished:
            break
    return job.folder / BEST


def _start(job: FoldJob) -> _Learner:
    torch.manual_seed(job.seed)
    model = build_model(job.model, job.config)
    if job.encoder_weights is not None:
        encoder = cast("ResNetEncoder", model.get_submodule("encoder"))
        _log.info("encoder weights: %s", encoder.load_published(job.encoder_weights))
    model = to_device(model, job.device)
    recipe = job.recipe
    optimizer = Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    return _Learner(model, optimizer, build_schedule(recipe, optimizer), scaler)


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
    labels = batch.labels.to(job.device, non_blocking=True)
    learner.optimizer.zero_grad(set_to_none=True)
    with mixed_precision(job.device, job.precision):
        logits = learner.model(images)
    loss = segmentation_loss(logits, labels)
    value = float(loss.detach())
    if not np.isfinite(value):
        cases = ", ".join(sorted(set(batch.cases)))
        msg = (
            f"the training loss became {value} in epoch {learner.epoch + 1} on cases {cases}: "
            "look at these cases, lower the learning rate, or train with --precision fp32; the last epoch is saved"
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
        labels = batch.labels.to(job.device)
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


def _resume(job: FoldJob, learner: _Learner, last: Path) -> None:
    """Put the state of `last` into a fresh learner."""
    checkpoint = load_checkpoint(last)
    header = checkpoint.header
    if header.training is None:
        msg = f"{last} holds no training state: add --restart to begin again"
        raise KitsattnError(msg)
    state = training_state_from_json(header.training, str(last))
    # More epochs than before is the one change that leaves the batches and steps so far as they were.
    recipe = {**to_json(job.recipe), "epochs": state.recipe.get("epochs")}
    wanted: dict[str, tuple[object, object]] = {
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
    learner.model.load_state_dict(dict(checkpoint.model))
    restore_optimizer(learner.optimizer, checkpoint.training, state.optimizer_groups)
    learner.schedule.load_state_dict(dict(state.schedule))
    if state.scaler:
        learner.scaler.load_state_dict(dict(state.scaler))
    learner.epoch, learner.best, learner.moving_dice = state.epoch, state.best, state.moving_dice


def _sentence(record: EpochRecord, epochs: int) -> str:
    values = asdict(record)
    dice = ", ".join(f"{key} {value:.3f}" for key, value in record.validation_dice.items())
    return (
        "epoch {epoch} of {epochs}: loss {training_loss:.3f}, validation {validation_loss:.3f}, Dice {dice}, "
        "{images_per_second:.0f} images/s, {seconds:.0f} s"
    ).format(**values, epochs=epochs, dice=dice)
