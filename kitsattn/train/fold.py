"""The training of one fold, read from top to bottom."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kitsattn.batches.loader import BatchKey, BatchSettings, SlabBatch, SlabBatches
from kitsattn.batches.made import HeldOutSlices, MadeBatches
from kitsattn.batches.processes import load_batches
from kitsattn.errors import KitsattnError
from kitsattn.jobs import Progress, silent
from kitsattn.precision import mixed_precision
from kitsattn.ranks import lost_rank
from kitsattn.threads import threads_beside_others
from kitsattn.train.fit import largest_batch
from kitsattn.train.job import FoldJob
from kitsattn.train.journal import EpochRecord, append_record, draw_journal, peak_memory, truncate_journal
from kitsattn.train.learner import Learner, batch_loss, forget, resume_learner, save, start_learner, train_batch
from kitsattn.train.names import BEST, JOURNAL, LAST, PROGRESS
from kitsattn.train.watch import Watch, signals_held_back

if TYPE_CHECKING:
    from torch.utils.data import Dataset

_TRAINING, _VALIDATION = 0, 1

EPOCH_LOGGER = "kitsattn.train.epochs"
"""Says a sentence an epoch; where epochs are shown as a table, its messages can be left out."""

_log = logging.getLogger(__name__)
_epochs = logging.getLogger(EPOCH_LOGGER)

EpochEnd = Callable[[FoldJob, EpochRecord], None]
"""Called when an epoch has ended and is saved."""


def ignore(job: FoldJob, record: EpochRecord) -> None:
    """Do nothing: the default at the end of an epoch."""


def train_fold(
    job: FoldJob,
    *,
    resume: bool = True,
    save_every_minutes: float = 5.0,
    deadline: float | None = None,
    progress: Progress = silent,
    epoch_end: EpochEnd = ignore,
) -> Path:
    """Train one fold.

    Args:
        job: What to train.
        resume: Whether to continue from `last.safetensors` if it exists.
        save_every_minutes: How much of an epoch is lost at most when the process is killed.
        deadline: When to save and stop, as a time of `time.monotonic`; None trains to the end.
        progress: Called after each batch with the batches done.
        epoch_end: Called after each epoch, in the first of several processes.

    Returns:
        The best checkpoint.

    Raises:
        KitsattnError: If a checkpoint to resume from does not fit, too many losses in a row are not finite, the disk
            is full, or another process of the training has ended.
        OutOfTimeError: If the deadline has passed; everything is saved.
        Interrupted: If the process was asked to stop, by Ctrl-C or SIGTERM; everything is saved.
    """
    try:
        with _threads(job, progress) as adapting, signals_held_back(alone=job.ranks.size == 1) as asked:
            _train(
                job,
                Watch(f"fold {job.fold}", job.ranks, asked, save_every_minutes, deadline),
                adapting,
                epoch_end,
                resume=resume,
            )
        return job.folder / BEST
    except torch.OutOfMemoryError:
        size = job.recipe.batch_size
        failure = f"fold {job.fold} with --batch-size {size} does not fit into the memory of {job.device}"
    except RuntimeError as error:
        if not lost_rank(error):
            raise
        msg = f"process {job.ranks.rank} of {job.ranks.size} has lost another one, whose own message says why"
        raise KitsattnError(msg) from error
    # Out here the error is gone, and with it the network that did not fit.
    fits = min(largest_batch(job) * job.ranks.size, size - job.ranks.size)
    msg = f"{failure}: --batch-size {fits} does, or train another --model; what was saved last is kept"
    raise KitsattnError(msg)


def _threads(job: FoldJob, progress: Progress) -> AbstractContextManager[Progress]:
    """On a CPU, let each thread have a core that neither a process that draws batches nor anybody else has."""
    threads = torch.get_num_threads()
    if job.device.type != "cpu":
        return threads_beside_others(progress, threads, watch=False)
    most = max(1, min(threads, job.ranks.cores - job.workers))
    return threads_beside_others(progress, most)


def _begin(job: FoldJob, *, resume: bool) -> Learner:
    """Resume, or start."""
    if job.recipe.batch_size % job.ranks.size:
        nearest = max(1, round(job.recipe.batch_size / job.ranks.size)) * job.ranks.size
        msg = (
            f"a batch of {job.recipe.batch_size} samples cannot be shared alike by {job.ranks.size} processes: "
            f"set --batch-size {nearest}"
        )
        raise KitsattnError(msg)
    last = job.folder / LAST
    resumed = resume and last.exists()
    job.ranks.barrier()  # all have looked before the first one removes anything
    if resumed:
        learner = resume_learner(job, last)
        within = f" and {learner.counters.batch} batches" if learner.counters.batch else ""
        _log.info(
            "fold %d: resuming after %d of %d epochs%s", job.fold, learner.counters.epoch, job.recipe.epochs, within
        )
    else:
        if job.ranks.is_main:
            forget(job.folder)
        learner = start_learner(job)
    if job.ranks.is_main and not learner.counters.finished:
        job.folder.mkdir(parents=True, exist_ok=True)
        truncate_journal(job.folder / JOURNAL, learner.counters.epoch)
    return learner


def _train(job: FoldJob, watch: Watch, progress: Progress, epoch_end: EpochEnd, *, resume: bool) -> None:
    """Begin, then train epoch by epoch."""
    learner = _begin(job, resume=resume)
    if learner.counters.finished:
        return
    watch.save = partial(save, job, learner)
    with closing(_load(job, learner, watch)) as batches:
        while learner.counters.epoch < job.recipe.epochs and not learner.counters.finished:
            _train_epoch(job, learner, batches, watch, progress=progress, epoch_end=epoch_end)
    job.ranks.barrier()  # the best checkpoint is there for all


def _train_epoch(
    job: FoldJob,
    learner: Learner,
    batches: Iterator[SlabBatch],
    watch: Watch,
    *,
    progress: Progress,
    epoch_end: EpochEnd,
) -> None:
    """Train on what is left of an epoch; end it with validation, journal, checkpoints."""
    recipe, epoch = job.recipe, learner.counters.epoch
    watch.epoch = epoch + 1
    total = recipe.epochs * recipe.batches_per_epoch
    started, waited, first = time.perf_counter(), 0.0, learner.counters.batch
    learner.schedule.before_batch(epoch * recipe.batches_per_epoch)
    learning_rate = float(learner.optimizer.param_groups[0]["lr"])
    learner.model.train()
    while learner.counters.batch < recipe.batches_per_epoch:
        asked = time.perf_counter()
        batch = watch.next(batches)
        waited += time.perf_counter() - asked
        train_batch(job, learner, batch)
        learner.counters = learner.counters.after_batch()
        progress(f"fold {job.fold}", epoch * recipe.batches_per_epoch + learner.counters.batch, total)
        watch.check()
    trained = max(time.perf_counter() - started, 1e-9)  # nothing, where only the validation was to do
    training_loss = float(np.mean(learner.counters.losses)) if learner.counters.losses else math.nan
    skipped = recipe.batches_per_epoch - len(learner.counters.losses)
    validation_loss, dice = _validate(job, learner, batches, watch)
    learner.counters = replace(learner.counters, finished=learner.schedule.after_epoch(training_loss))
    improved = learner.close_epoch(dice)
    assert learner.counters.moving_dice is not None
    record = EpochRecord(
        epoch=learner.counters.epoch,
        training_loss=training_loss,
        validation_loss=validation_loss,
        validation_dice=learner.dice,
        moving_dice=learner.counters.moving_dice,
        learning_rate=learning_rate,
        images_per_second=(recipe.batches_per_epoch - first) * recipe.batch_size / trained,
        waiting_share=waited / trained,
        seconds=time.perf_counter() - started,
        skipped=skipped,
        peak_memory_bytes=peak_memory(job.device),
    )
    if job.ranks.is_main:
        # `last` at the end: whatever a crash leaves before it is written again when the epoch is repeated.
        append_record(job.folder / JOURNAL, record)
        save(job, learner, epoch_ended=True, improved=improved)
        _draw_progress(job)
        epoch_end(job, record)
        _epochs.info("fold %d: %s", job.fold, _sentence(record, recipe.epochs))


def _load(job: FoldJob, learner: Learner, watch: Watch) -> Generator[SlabBatch, None, None]:
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
        elastic_probability=recipe.elastic_probability,
        foreground_share=recipe.foreground_share,
        rank=job.ranks.rank,
        ranks=job.ranks.size,
    )
    streams: list[Dataset[SlabBatch]]
    if job.made is None or recipe.shares is None:
        streams = [
            SlabBatches([job.dataset.open_case(case) for case in job.split.train], settings),
            SlabBatches([job.dataset.open_case(case) for case in job.split.held_out], replace(settings, augment=False)),
        ]
    else:
        made, held_out = MadeBatches(job.made, recipe.shares, plan, settings), job.made.data.held_out_slices
        # Without real slices, made scans validate: keys of validation batches differ, and so do their samples.
        streams = [made, HeldOutSlices(held_out, plan, settings) if held_out else made]
    keys: list[BatchKey] = []
    for number in range(learner.counters.epoch, recipe.epochs):
        first = learner.counters.batch if number == learner.counters.epoch else 0
        keys += [(_TRAINING, number, index) for index in range(first, recipe.batches_per_epoch)]
        keys += [(_VALIDATION, 0, index) for index in range(recipe.validation_batches)]
    pin_memory = job.device.type == "cuda"
    return load_batches(streams, keys, workers=job.workers, pin_memory=pin_memory, waiting=watch.wait)


@torch.no_grad()
def _validate(
    job: FoldJob, learner: Learner, batches: Iterator[SlabBatch], watch: Watch
) -> tuple[float, dict[str, float]]:
    """Return the mean loss over the validation batches, and the Dice of each region over all their pixels."""
    model = learner.shipped.eval()
    regions = job.protocol.regions
    counts = {region.key: np.zeros(3) for region in regions}
    losses = []
    for _ in range(job.recipe.validation_batches):
        batch = watch.next(batches)
        labels = batch.labels.to(job.device).long()
        with mixed_precision(job.device, job.precision):
            logits = model(batch.images.to(job.device, memory_format=torch.channels_last))
        losses.append(float(batch_loss(job, logits, labels)))
        predicted = logits.argmax(dim=1)
        for region in regions:
            members = torch.tensor(region.labels, device=job.device)
            found, true = torch.isin(predicted, members), torch.isin(labels, members)
            counts[region.key] += [float((found & true).sum()), float(found.sum()), float(true.sum())]
        watch.check()
    dice = {}
    for key, own in counts.items():
        both, found_pixels, true_pixels = job.ranks.all_reduce_sum(own.tolist())
        dice[key] = 1.0 if not found_pixels + true_pixels else 2 * both / (found_pixels + true_pixels)
    return job.ranks.all_reduce_sum([float(np.mean(losses))])[0] / job.ranks.size, dice


def _draw_progress(job: FoldJob) -> None:
    """Draw the curves; a training does not end for want of its picture."""
    synthetic = ", SYNTHETIC phantoms" if job.dataset.synthetic else ""
    try:
        draw_journal(job.folder / JOURNAL, job.folder / PROGRESS, f"{job.dataset.name}, fold {job.fold}{synthetic}")
    except KitsattnError as error:
        _log.warning("%s", error)


def _sentence(record: EpochRecord, epochs: int) -> str:
    values = asdict(record)
    dice = ", ".join(f"{key} {value:.3f}" for key, value in record.validation_dice.items())
    skipped = f", {record.skipped} batches skipped" if record.skipped else ""
    return (
        "epoch {epoch} of {epochs}: loss {training_loss:.3f}, validation {validation_loss:.3f}, Dice {dice}, "
        "{images_per_second:.0f} images/s, {seconds:.0f} s{without}"
    ).format(**values, epochs=epochs, dice=dice, without=skipped)
