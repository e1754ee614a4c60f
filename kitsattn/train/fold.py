"""The training of one fold, read from top to bottom."""

import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
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
from kitsattn.checkpoint.weights import load_initial, read_weights
from kitsattn.config import to_json
from kitsattn.errors import Interrupted, KitsattnError
from kitsattn.jobs import Progress, available_cores, silent
from kitsattn.kernels.precision import Precision, mixed_precision, to_device
from kitsattn.labels import KITS19_REGIONS, Region
from kitsattn.models import build_model
from kitsattn.models.registry import ModelConfig
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.train.folds import Split
from kitsattn.train.journal import EpochRecord, append_record, draw_journal, peak_memory, truncate_journal
from kitsattn.train.losses import segmentation_loss
from kitsattn.train.recipe import Recipe
from kitsattn.train.schedule import Schedule, build_schedule

if TYPE_CHECKING:
    from kitsattn.blocks.resnet import ResNetEncoder

BEST = "best.safetensors"
LAST = "last.safetensors"
JOURNAL = "journal.jsonl"
PROGRESS = "progress.png"
VALIDATION = "validation"
_DICE_MEMORY = 0.9
"""Weight of the past in the moving average of the validation Dice, as in nnU-Net."""

_TRAINING, _VALIDATION = 0, 1
_MOST_WORKERS = 12
"""nnU-Net's number; each worker holds two batches in shared memory."""
_MOST_SKIPPED = 20
"""So many batches in a row without a finite loss and gradient end a training. A gradient scaler that begins at 2^16
needs 16 to come down to 1."""

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
        initial_weights: Checkpoint whose weights are the start (fine-tuning); None starts from chance.
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
    initial_weights: Path | None = None

    @property
    def plan(self) -> Plan:
        """The data set's plan, with the recipe's patch size where it has one of its own."""
        size = self.recipe.patch_size
        return self.dataset.plan if size is None else replace(self.dataset.plan, patch_size=size)


@dataclass
class _Learner:
    """What changes while a fold is trained; `buffers` are the network's of before the batch that is under way."""

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    buffers: list[torch.Tensor]
    epoch: int = 0
    batch: int = 0
    losses: list[float] = field(default_factory=list)
    skipped_in_a_row: int = 0
    dice: Mapping[str, float] = field(default_factory=dict)
    best: float | None = None
    moving_dice: float | None = None
    finished: bool = False


def train_fold(
    job: FoldJob,
    *,
    resume: bool = True,
    save_every_minutes: float = 5.0,
    deadline: float | None = None,
    progress: Progress = silent,
) -> Path:
    """Train one fold.

    Args:
        job: What to train.
        resume: Whether to go on from `last.safetensors` where it is there.
        save_every_minutes: How much of an epoch is lost at most when the process is killed.
        deadline: When to save and stop, as a time of `time.monotonic`; None trains to the end.
        progress: Called after each batch with the batches done.

    Returns:
        The best checkpoint.

    Raises:
        KitsattnError: If a checkpoint to resume from does not fit, too many losses in a row are not finite, or the disk
            is full.
        OutOfTimeError: If the deadline has passed; everything is saved.
        Interrupted: If the process was told to stop, by Ctrl-C or SIGTERM; everything is saved.
    """
    threads = torch.get_num_threads()
    if job.device.type == "cpu":
        # The batch processes have their cores: threads that wait for each other on a core that is taken
        # slow a step of small tensors down up to tenfold.
        torch.set_num_threads(max(1, min(threads, available_cores() - job.workers)))
    try:
        with _signals_held_back() as asked:
            watch = _Watch(job, asked, save_every_minutes, deadline)
            return _train_fold(job, watch, resume=resume, progress=progress)
    except torch.OutOfMemoryError as error:
        msg = (
            f"fold {job.fold} does not fit into the memory of {job.device} ({str(error).splitlines()[0]}): "
            "lower --batch-size, or train in bf16; the last finished epoch is saved"
        )
        raise KitsattnError(msg) from error
    finally:
        torch.set_num_threads(threads)


class OutOfTimeError(Exception):
    """The time that a training was given has passed, and it has saved where it is."""


class _Watch:
    """What may save or end a training between two batches: the time since the last save, a deadline, a signal, data.

    Args:
        job: What is trained.
        asked: Returns the signal that asked to stop, if one did.
        save_every_minutes: See `train_fold`.
        deadline: See `train_fold`.
    """

    def __init__(
        self, job: FoldJob, asked: Callable[[], int | None], save_every_minutes: float, deadline: float | None
    ) -> None:
        """Start the clock."""
        self._job = job
        self._asked = asked
        self._interval = 60 * save_every_minutes
        self._deadline = math.inf if deadline is None else deadline
        self._saved = time.monotonic()

    def next(self, batches: Iterator[SlabBatch], learner: "_Learner") -> SlabBatch:
        """Return the next batch; save before the training ends because there is none."""
        try:
            return next(batches)
        except KitsattnError:
            if learner.batch or learner.epoch:
                _save(self._job, learner)
            raise

    def check(self, learner: "_Learner") -> None:
        """Save if it is time to, and raise if it is time to stop."""
        now = time.monotonic()
        number, late = self._asked(), now > self._deadline
        if number is not None or late or now - self._saved > self._interval:
            _save(self._job, learner)
            self._saved = time.monotonic()
        if number is not None:
            raise Interrupted(number)
        if late:
            msg = f"fold {self._job.fold} was stopped in epoch {learner.epoch + 1}: its time has passed"
            raise OutOfTimeError(msg)


@contextmanager
def _signals_held_back() -> Iterator[Callable[[], int | None]]:
    """Hold Ctrl-C and SIGTERM back until they are asked for, so that no step is torn; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # only the main thread may say what a signal does
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if came:
            raise Interrupted(number)
        came.append(number)

    # A background job ignores Ctrl-C, and goes on doing so.
    held = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, note) for one in held}
    try:
        yield lambda: came[0] if came else None
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def default_workers(device: torch.device) -> int:
    """Return how many processes should draw batches: all cores but one, at most 12, for a GPU, one for a CPU."""
    return min(_MOST_WORKERS if device.type != "cpu" else 1, available_cores() - 1)


def _train_fold(job: FoldJob, watch: _Watch, *, resume: bool, progress: Progress) -> Path:
    """Read from top to bottom: start or resume, then epochs of training, validation, journal, checkpoints."""
    last = job.folder / LAST
    if resume and last.exists():
        learner = _resume(job, last)
        within = f" and {learner.batch} batches" if learner.batch else ""
        _log.info("fold %d: resuming after %d of %d epochs%s", job.fold, learner.epoch, job.recipe.epochs, within)
    else:
        _forget(job.folder)
        learner = _start(job)
        _load_weights(job, learner)
    if learner.finished:
        return job.folder / BEST
    job.folder.mkdir(parents=True, exist_ok=True)
    truncate_journal(job.folder / JOURNAL, learner.epoch)

    recipe = job.recipe
    batches = _load(job, learner)
    total = recipe.epochs * recipe.batches_per_epoch
    for epoch in range(learner.epoch, recipe.epochs):
        started, waited, first = time.perf_counter(), 0.0, learner.batch
        learner.model.train()
        while learner.batch < recipe.batches_per_epoch:
            asked = time.perf_counter()
            batch = watch.next(batches, learner)
            waited += time.perf_counter() - asked
            _train_batch(job, learner, batch)
            learner.batch += 1
            progress(f"fold {job.fold}", epoch * recipe.batches_per_epoch + learner.batch, total)
            watch.check(learner)
        trained = max(time.perf_counter() - started, 1e-9)  # nothing, where only the validation was to do
        training_loss = float(np.mean(learner.losses)) if learner.losses else math.nan
        skipped = recipe.batches_per_epoch - len(learner.losses)
        validation_loss = _validate(job, learner, batches, watch)
        learning_rate = float(learner.optimizer.param_groups[0]["lr"])
        learner.finished = learner.schedule.step(training_loss)
        improved = _account(learner)
        assert learner.moving_dice is not None
        record = EpochRecord(
            epoch=learner.epoch,
            training_loss=training_loss,
            validation_loss=validation_loss,
            validation_dice=learner.dice,
            moving_dice=learner.moving_dice,
            learning_rate=learning_rate,
            images_per_second=(recipe.batches_per_epoch - first) * recipe.batch_size / trained,
            waiting_share=waited / trained,
            seconds=time.perf_counter() - started,
            skipped=skipped,
            peak_memory_bytes=peak_memory(job.device),
        )
        # `last` at the end: whatever a crash leaves before it is written anew when the epoch is repeated.
        append_record(job.folder / JOURNAL, record)
        _save(job, learner, improved=improved)
        _draw_progress(job)
        _log.info("fold %d: %s", job.fold, _sentence(record, recipe.epochs))
        if learner.finished:
            break
    return job.folder / BEST


def _draw_progress(job: FoldJob) -> None:
    """Draw the curves; a training does not end for want of its picture."""
    synthetic = ", SYNTHETIC phantoms" if job.dataset.synthetic else ""
    try:
        draw_journal(job.folder / JOURNAL, job.folder / PROGRESS, f"{job.dataset.name}, fold {job.fold}{synthetic}")
    except KitsattnError as error:
        _log.warning("%s", error)


def _start(job: FoldJob) -> _Learner:
    torch.manual_seed(job.seed)
    model = build_model(job.model, job.config)
    model = to_device(model, job.device)
    recipe = job.recipe
    optimizer = Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    buffers = [buffer.clone() for buffer in model.buffers()]
    return _Learner(model, optimizer, build_schedule(recipe, optimizer), scaler, buffers)


def _load_weights(job: FoldJob, learner: _Learner) -> None:
    """Put the weights that a user gives into a fresh network."""
    if job.initial_weights is not None:
        _log.info("weights: %s", load_initial(learner.model, job.model, job.initial_weights))
    if job.encoder_weights is not None:
        encoder = cast("ResNetEncoder", learner.model.get_submodule("encoder"))
        _log.info("encoder: %s", encoder.load_published(read_weights(job.encoder_weights)))


def _forget(folder: Path) -> None:
    """Remove what an earlier training left, so that nothing of it is taken for the new one's."""
    for name in (LAST, BEST, JOURNAL, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / VALIDATION, ignore_errors=True)


def _load(job: FoldJob, learner: _Learner) -> Iterator[SlabBatch]:
    """Return the iterator over all training and validation batches that are still to come."""
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
    for number in range(learner.epoch, recipe.epochs):
        first = learner.batch if number == learner.epoch else 0
        keys += [(_TRAINING, number, index) for index in range(first, recipe.batches_per_epoch)]
        keys += [(_VALIDATION, 0, index) for index in range(recipe.validation_batches)]
    return load_batches(streams, keys, workers=job.workers, pin_memory=job.device.type == "cuda")


def _train_batch(job: FoldJob, learner: _Learner, batch: SlabBatch) -> None:
    """Take one step, unless loss or gradient are not finite: then the batch changes nothing, and is counted."""
    images = batch.images.to(job.device, memory_format=torch.channels_last, non_blocking=True)
    labels = batch.labels.to(job.device, non_blocking=True).long()
    learner.optimizer.zero_grad(set_to_none=True)
    buffers = list(learner.model.buffers())
    torch._foreach_copy_(learner.buffers, buffers)  # one launch for hundreds of small tensors
    with mixed_precision(job.device, job.precision):
        logits = learner.model(images)
    loss = segmentation_loss(logits, labels)
    value = float(loss.detach())
    finite = math.isfinite(value)
    if finite:
        learner.scaler.scale(loss).backward()
        learner.scaler.unscale_(learner.optimizer)
        norm = nn.utils.clip_grad_norm_(learner.model.parameters(), job.recipe.gradient_clip)
        finite = math.isfinite(float(norm))
        if finite or learner.scaler.is_enabled():  # a scaler skips the step itself, and lowers its scale for the next
            learner.scaler.step(learner.optimizer)
            learner.scaler.update()
    if finite:
        learner.losses.append(value)
        learner.skipped_in_a_row = 0
        return
    torch._foreach_copy_(buffers, learner.buffers)  # running statistics have seen the batch
    learner.skipped_in_a_row += 1
    cases = ", ".join(sorted(set(batch.cases)))
    _log.debug("fold %d: batch %d of epoch %d is skipped: %s", job.fold, learner.batch + 1, learner.epoch + 1, cases)
    if learner.skipped_in_a_row == _MOST_SKIPPED:
        msg = (
            f"{_MOST_SKIPPED} batches in a row had no finite loss or gradient in epoch {learner.epoch + 1}, the last "
            f"on cases {cases}: look at these cases, or begin again with --restart, a lower learning rate or "
            "--precision fp32"
        )
        raise KitsattnError(msg)


@torch.no_grad()
def _validate(job: FoldJob, learner: _Learner, batches: Iterator[SlabBatch], watch: _Watch) -> float:
    """Return the mean loss over the validation batches, and keep the Dice of each region over all their pixels."""
    learner.model.eval()
    regions = evaluated_regions(job.dataset.labels)
    counts = {region.key: np.zeros(3) for region in regions}
    losses = []
    for _ in range(job.recipe.validation_batches):
        batch = watch.next(batches, learner)
        labels = batch.labels.to(job.device).long()
        with mixed_precision(job.device, job.precision):
            logits = learner.model(batch.images.to(job.device, memory_format=torch.channels_last))
        losses.append(float(segmentation_loss(logits, labels)))
        predicted = logits.argmax(dim=1)
        for region in regions:
            members = torch.tensor(region.labels, device=job.device)
            found, true = torch.isin(predicted, members), torch.isin(labels, members)
            counts[region.key] += [float((found & true).sum()), float(found.sum()), float(true.sum())]
        watch.check(learner)
    learner.dice = {
        key: 1.0 if not found + true else 2 * both / (found + true) for key, (both, found, true) in counts.items()
    }
    return float(np.mean(losses))


def evaluated_regions(labels: Mapping[str, int]) -> tuple[Region, ...]:
    """Return the regions that are watched in training: KiTS19's, cysts counting as kidney where the data has them."""
    extra = tuple(value for name, value in labels.items() if name == "cyst")
    kidney, tumour = KITS19_REGIONS
    return (Region(kidney.key, kidney.labels + extra), tumour)


def _account(learner: _Learner) -> bool:
    """Count a finished epoch; return whether the moving average of the Dice is the best so far."""
    dice = float(np.mean(list(learner.dice.values())))
    kept = dice if learner.moving_dice is None else learner.moving_dice
    learner.epoch += 1
    learner.batch, learner.losses = 0, []
    learner.moving_dice = _DICE_MEMORY * kept + (1 - _DICE_MEMORY) * dice
    improved = learner.best is None or learner.moving_dice > learner.best
    if improved:
        learner.best = learner.moving_dice
    return improved


def _save(job: FoldJob, learner: _Learner, *, improved: bool = False) -> None:
    """Write `last` with the training state, and where the epoch is the best so far, `best` without it."""
    tensors, groups = optimizer_state(learner.optimizer)
    state = TrainingState(
        epoch=learner.epoch,
        batch=learner.batch,
        losses=tuple(learner.losses),
        skipped_in_a_row=learner.skipped_in_a_row,
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
            scores=dict(learner.dice),
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
    learner.batch, learner.losses, learner.skipped_in_a_row = state.batch, list(state.losses), state.skipped_in_a_row
    learner.dice = header.provenance.scores
    learner.finished = state.finished
    return learner


def _sentence(record: EpochRecord, epochs: int) -> str:
    values = asdict(record)
    dice = ", ".join(f"{key} {value:.3f}" for key, value in record.validation_dice.items())
    skipped = f", {record.skipped} batches skipped" if record.skipped else ""
    return (
        "epoch {epoch} of {epochs}: loss {training_loss:.3f}, validation {validation_loss:.3f}, Dice {dice}, "
        "{images_per_second:.0f} images/s, {seconds:.0f} s{without}"
    ).format(**values, epochs=epochs, dice=dice, without=skipped)
