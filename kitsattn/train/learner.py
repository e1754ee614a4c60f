"""What changes while a fold is trained: weights, their average, optimiser, counters; one step, saving, resuming."""

import copy
import logging
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, Optimizer

from kitsattn.batches.loader import SlabBatch
from kitsattn.blocks.normalization import synchronize_batch_norm
from kitsattn.blocks.resnet import ResNetEncoder
from kitsattn.checkpoint.file import Checkpoint, load_checkpoint, save_checkpoint
from kitsattn.checkpoint.header import Header, Provenance, TrainingSource
from kitsattn.checkpoint.state import (
    Counters,
    TrainingState,
    optimizer_state,
    restore_optimizer,
    training_state_from_json,
    training_state_to_json,
)
from kitsattn.checkpoint.weights import load_initial, read_weights
from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.models import build_model, model_entry
from kitsattn.precision import mixed_precision, to_device
from kitsattn.train.job import FoldJob
from kitsattn.train.losses import segmentation_loss
from kitsattn.train.names import BEST, EMA, JOURNAL, LAST, PROGRESS, TENSORBOARD, VALIDATION
from kitsattn.train.recipe import Recipe
from kitsattn.train.schedule import Schedule, build_schedule
from kitsattn.train.starter import describe_sources
from kitsattn.version import __version__
from kitsattn.words import name_some

_MOST_SKIPPED = 20
"""So many batches in a row without a finite loss and gradient end a training. A gradient scaler that begins at 2^16
needs 16 to come down to 1."""
_AVERAGE = "ema/"
_DIFFERENCES_SHOWN = 3

_log = logging.getLogger(__name__)


@dataclass
class Learner:
    """What changes while a fold is trained.

    Attributes:
        model: The network.
        parallel: What computes its gradients: itself, or PyTorch's wrapper that takes their mean over the processes.
        average: A network with the moving average of its weights and buffers; None where the recipe has none.
        optimizer: Changes the weights.
        schedule: Sets the learning rate.
        scaler: Scales the loss in fp16.
        buffers: The network's buffers of before the batch that is under way.
        counters: How far the training is.
        dice: Validation Dice of the last epoch by region key.
    """

    model: nn.Module
    parallel: nn.Module
    average: nn.Module | None
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    buffers: list[Tensor]
    counters: Counters = field(default_factory=Counters)
    dice: Mapping[str, float] = field(default_factory=dict)

    @property
    def shipped(self) -> nn.Module:
        """The network that is validated and becomes `best`."""
        return self.model if self.average is None else self.average

    def close_epoch(self, dice: Mapping[str, float]) -> bool:
        """Count an epoch with its validation Dice; return whether their moving average is the best so far."""
        self.dice = dice
        self.counters, improved = self.counters.after_epoch(dice)
        return improved


def start_learner(job: FoldJob) -> Learner:
    """Return a new network, random or with the weights that the user gives, with everything that trains it."""
    learner = fresh(job)
    if job.initial_weights is not None:
        _log.info("weights: %s", load_initial(learner.model, job.model, job.initial_weights))
    if job.encoder_weights is not None:
        encoder = getattr(learner.model, "encoder", None)
        if not isinstance(encoder, ResNetEncoder):
            msg = f"the network {job.model} has no ResNet encoder: leave --encoder-weights out"
            raise KitsattnError(msg)
        _log.info("encoder: %s", encoder.load_published(read_weights(job.encoder_weights)))
    if learner.average is not None:
        learner.average.load_state_dict(learner.model.state_dict())
    return learner


def forget(folder: Path) -> None:
    """Remove what an earlier training left, so that nothing of it is taken for the new one's."""
    for name in (LAST, BEST, EMA, JOURNAL, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    for name in (VALIDATION, TENSORBOARD):
        shutil.rmtree(folder / name, ignore_errors=True)


def train_batch(job: FoldJob, learner: Learner, batch: SlabBatch) -> None:
    """Take one step, unless loss or gradient are not finite: then the batch changes nothing, and is counted.

    Raises:
        KitsattnError: If too many batches in a row changed nothing.
    """
    recipe = job.recipe
    images = batch.images.to(job.device, memory_format=torch.channels_last, non_blocking=True)
    labels = batch.labels.to(job.device, non_blocking=True).long()
    learner.schedule.before_batch(learner.counters.epoch * recipe.batches_per_epoch + learner.counters.batch)
    learner.optimizer.zero_grad(set_to_none=True)
    buffers = list(learner.model.buffers())
    torch._foreach_copy_(learner.buffers, buffers)  # one launch for hundreds of small tensors
    with mixed_precision(job.device, job.precision):
        logits = learner.parallel(images)
    loss = batch_loss(job, logits, labels)
    value = job.ranks.all_reduce_sum([float(loss.detach())])[0] / job.ranks.size
    finite = math.isfinite(value)
    if finite:
        learner.scaler.scale(loss).backward()
        learner.scaler.unscale_(learner.optimizer)
        norm = nn.utils.clip_grad_norm_(learner.model.parameters(), recipe.gradient_clip)
        finite = math.isfinite(float(norm))
        if finite or learner.scaler.is_enabled():  # a scaler skips the step itself, and lowers its scale for the next
            learner.scaler.step(learner.optimizer)
            learner.scaler.update()
    if finite:
        learner.counters = learner.counters.after_step(value)
        if learner.average is not None:
            assert recipe.ema_decay is not None
            done = learner.counters.epoch * recipe.batches_per_epoch + learner.counters.batch
            _move_average(learner.average, learner.model, min(recipe.ema_decay, (1 + done) / (10 + done)))
        return
    torch._foreach_copy_(buffers, learner.buffers)  # running statistics have seen the batch
    learner.counters = learner.counters.after_skipped_step()
    cases = ", ".join(sorted(set(batch.cases)))
    counters = learner.counters
    _log.debug("fold %d: batch %d of epoch %d is skipped: %s", job.fold, counters.batch + 1, counters.epoch + 1, cases)
    if counters.skipped_in_a_row == _MOST_SKIPPED:
        msg = (
            f"{_MOST_SKIPPED} batches in a row had no finite loss or gradient in epoch {counters.epoch + 1}, "
            f"the last on cases {cases}: look at these cases, or begin again with --restart, a lower learning rate or "
            "--precision fp32"
        )
        raise KitsattnError(msg)


def batch_loss(job: FoldJob, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the recipe's loss of this process's part of a batch; the mean over the processes is the batch's."""
    regions = job.protocol.regions if job.recipe.dice_over == "regions" else ()
    return segmentation_loss(logits, labels, regions, job.ranks.group, class_weights=job.recipe.class_weights)


@torch.no_grad()
def _move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move averaged weights and running statistics towards the network's; what is counted is copied."""
    ours, theirs = average.state_dict(), model.state_dict()
    floating = [name for name, tensor in ours.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([ours[name] for name in floating], [theirs[name] for name in floating], 1 - decay)
    for name in ours.keys() - set(floating):
        ours[name].copy_(theirs[name])


def fresh(job: FoldJob) -> Learner:
    """Return a randomly initialised network, with everything that trains it."""
    torch.manual_seed(job.seed)
    model = build_model(job.model, job.config)
    if job.ranks.size > 1 and job.recipe.sync_batch_norm:
        model = synchronize_batch_norm(model, job.device)
    model = to_device(model, job.device)
    average = None
    if job.recipe.ema_decay is not None:
        average = copy.deepcopy(model).requires_grad_(requires_grad=False).eval()
    parallel: nn.Module = model
    if job.ranks.size > 1:
        parallel = DistributedDataParallel(
            model,
            device_ids=[job.device] if job.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    optimizer = _optimizer(job.recipe, model)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == "fp16")
    buffers = [buffer.clone() for buffer in model.buffers()]
    return Learner(model, parallel, average, optimizer, build_schedule(job.recipe, optimizer), scaler, buffers)


def _optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    if recipe.optimizer == "adam":
        return Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "sgd":
        return SGD(
            model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )
    groups: list[dict[str, Any]] = [
        {"params": [one for one in model.parameters() if one.ndim > 1]},
        {"params": [one for one in model.parameters() if one.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def save(job: FoldJob, learner: Learner, *, epoch_ended: bool = False, improved: bool = False) -> None:
    """Write `last` with the training state; at the end of an epoch `ema` too, and `best` where it is the best so far.

    Of several processes the first one writes.
    """
    if not job.ranks.is_main:
        return
    tensors, groups = optimizer_state(learner.optimizer)
    if learner.average is not None:
        tensors |= {_AVERAGE + name: tensor for name, tensor in learner.average.state_dict().items()}
    state = TrainingState(
        **asdict(learner.counters),
        schedule=learner.schedule.state_dict(),
        scaler=learner.scaler.state_dict(),
        optimizer_groups=groups,
        recipe=to_json(job.recipe),
        train_cases=job.split.train,
        held_out_cases=job.split.held_out,
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
            epoch=learner.counters.epoch,
            scores=dict(learner.dice),
            sources=_sources(job),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    if improved:
        save_checkpoint(job.folder / BEST, Checkpoint(header, learner.shipped.state_dict(), {}))
    if epoch_ended and learner.average is not None:
        save_checkpoint(job.folder / EMA, Checkpoint(header, learner.average.state_dict(), {}))
    resumable = replace(header, training=training_state_to_json(state))
    save_checkpoint(job.folder / LAST, Checkpoint(resumable, learner.model.state_dict(), tensors))


def _sources(job: FoldJob) -> tuple[TrainingSource, ...]:
    return () if job.made is None else describe_sources(job.made)


def _counts(sources: Sequence[TrainingSource]) -> dict[str, str]:
    """Return how many items of each collection a training draws from."""
    return {source.name: f"{source.count} {source.unit}" for source in sources}


def resume_learner(job: FoldJob, last: Path) -> Learner:
    """Return the learner whose state `last` holds.

    Raises:
        KitsattnError: If it holds none, or that of another training; what differs is listed.
    """
    checkpoint = load_checkpoint(last)
    header = checkpoint.header
    if header.training is None:
        msg = f"{last} holds no training state: add --restart to begin again"
        raise KitsattnError(msg)
    state = training_state_from_json(header.training, str(last))
    recipe = to_json(job.recipe)
    if job.recipe.schedule == "plateau":  # another end changes nothing of what is done; a polynomial depends on it
        recipe["epochs"] = state.recipe.get("epochs")
    compared: dict[str, tuple[object, object]] = {
        "data set": (header.provenance.dataset, job.dataset.name),
        "data": (_counts(header.provenance.sources), _counts(_sources(job))),
        "training cases": (tuple(state.train_cases), tuple(job.split.train)),
        "held-out cases": (tuple(state.held_out_cases), tuple(job.split.held_out)),
        "model": (header.model, job.model),
        "model settings": (_read_settings(header, last), to_json(job.config)),
        "preprocessing plan": (dict(header.plan), to_json(job.plan)),
        "recipe": (dict(state.recipe), recipe),
        "seed": (header.provenance.seed, job.seed),
    }
    differences = [
        difference for name, (then, now) in compared.items() if then != now for difference in _differ(name, then, now)
    ]
    if differences:
        shown = "; ".join(differences[:_DIFFERENCES_SHOWN])
        more = f"; and {len(differences) - _DIFFERENCES_SHOWN} more" if len(differences) > _DIFFERENCES_SHOWN else ""
        msg = f"{last} is of another training ({shown}{more}): add --restart to begin again, or name another --run-name"
        raise KitsattnError(msg)
    learner = fresh(job)
    learner.model.load_state_dict(dict(checkpoint.model))
    if learner.average is not None:
        kept = {
            name.removeprefix(_AVERAGE): tensor
            for name, tensor in checkpoint.training.items()
            if name.startswith(_AVERAGE)
        }
        learner.average.load_state_dict(kept)
    restore_optimizer(learner.optimizer, checkpoint.training, state.optimizer_groups)
    learner.schedule.load_state_dict(dict(state.schedule))
    if state.scaler:
        learner.scaler.load_state_dict(dict(state.scaler))
    learner.counters = state.counters
    learner.dice = header.provenance.scores
    return learner


def _read_settings(header: Header, last: Path) -> Mapping[str, object]:
    """Return the network's settings in a checkpoint, with the defaults of settings that came later."""
    return to_json(model_entry(header.model).read_config(header.config, str(last)))


def _differ(name: str, then: object, now: object) -> Iterable[str]:
    """Say how two values differ: mappings by key, lists of cases by what only one of them has."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):
                yield f"{name}: {key} was {then.get(key)} and is {now.get(key)}"
    elif isinstance(then, tuple) and isinstance(now, tuple):
        gone, new = sorted(set(then) - set(now)), sorted(set(now) - set(then))
        if gone or new:
            yield f"{name}: {name_some(gone) or 'none'} gone, {name_some(new) or 'none'} new"
        else:
            yield f"{name} are in another order"
    else:
        yield f"{name} was {then} and is {now}"
