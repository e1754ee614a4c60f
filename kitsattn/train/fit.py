"""How many samples a batch may have: as many as one training step fits into memory."""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from kitsattn.batches.loader import SlabBatch
from kitsattn.checkpoint.header import read_header
from kitsattn.checkpoint.state import training_state_from_json
from kitsattn.machine import available_memory
from kitsattn.ranks import Ranks
from kitsattn.train.job import FoldJob
from kitsattn.train.learner import fresh, train_batch
from kitsattn.train.names import LAST

_FEWEST, _MOST = 2, 64
"""The ASPP's image pooling is normalised over two samples or more; more than 64 are not what a recipe was made for."""
_GPU_SHARE, _CPU_SHARE = 0.9, 0.5
"""Of what is free: a GPU's memory is measured, a CPU's estimated from what is kept for the backward pass."""

_log = logging.getLogger(__name__)


def choose_batch_size(job: FoldJob, *, resume: bool) -> int:
    """Return the samples of a batch of all processes together, the most that fit; a resumed training keeps its own.

    Args:
        job: The training; the batch size of its recipe is not used.
        resume: Whether it continues from `last.safetensors` if that exists.

    Raises:
        KitsattnError: If that checkpoint cannot be read.
    """
    last = job.folder / LAST
    if resume and last.exists():
        header, _ = read_header(last)
        if header.training is not None:
            return int(training_state_from_json(header.training, str(last)).recipe["batch_size"])
    fits = -int(job.ranks.all_reduce_max([-largest_batch(job)])[0])
    _log.info("batch size: %d samples, the most that fit (up to %d a process)", fits * job.ranks.size, _MOST)
    return fits * job.ranks.size


def largest_batch(job: FoldJob) -> int:
    """Return how many samples one process can train on at once, from 2 to 64.

    Memory grows with them in a straight line, which two trial steps give; on a GPU a third one proves it.
    """
    job = replace(job, ranks=Ranks(device=job.device))  # the others may need another number of trials
    few, more = _FEWEST, 2 * _FEWEST
    free = _free_bytes(job.device)
    try:
        small = step_bytes(job, few)
        each = (step_bytes(job, more) - small) / (more - few)
    except torch.OutOfMemoryError:
        return _FEWEST
    samples = max(_FEWEST, min(_MOST, few + int((free - small) / max(each, 1.0))))
    while job.device.type == "cuda" and samples > _FEWEST:
        try:
            step_bytes(job, samples)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            samples = max(_FEWEST, samples - max(1, samples // 8))
        else:
            break
    return samples


def step_bytes(job: FoldJob, samples: int) -> int:
    """Return the memory of one training step: on a GPU the measured peak, else what is kept between its two passes.

    Raises:
        torch.OutOfMemoryError: If a GPU has too little.
    """
    learner = fresh(job)
    height, width = job.plan.patch_size
    batch = SlabBatch(
        torch.randn(samples, job.config.slices, height, width),
        torch.randint(job.config.classes, (samples, height, width), dtype=torch.uint8),
        ("trial",) * samples,
    )
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
        train_batch(job, learner, batch)
        return torch.cuda.max_memory_allocated(job.device)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        train_batch(job, learner, batch)
    for tensor in learner.model.parameters():
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    copies = 4 + (learner.average is not None)  # weights, gradients, two moments, their average
    return sum(kept.values()) + copies * sum(tensor.nbytes for tensor in learner.model.parameters())


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return int(_CPU_SHARE * available_memory())
    free, _ = torch.cuda.mem_get_info(device)
    return int(_GPU_SHARE * (free + torch.cuda.memory_reserved(device)))
