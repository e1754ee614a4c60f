"""2.5D batches of made scans, and of the real slices that their training is validated on, by number."""

import numpy as np
import torch
from torch.utils.data import Dataset

from kitsattn.batches.loader import BatchKey, BatchSettings, SlabBatch
from kitsattn.preprocess.plan import Plan
from kitsattn.synthesis.draw import Sample, Shares, Synthesis
from kitsattn.synthesis.prepare import PreparedMaterial
from kitsattn.synthesis.slices import RealSlice, plain_slab


class MadeBatches(Dataset[SlabBatch]):
    """Batches by number: (stream, epoch, index) gives the same batch in any process, at any time.

    Args:
        material: What samples are drawn from; each process opens it at its first batch.
        shares: How often each source is drawn.
        plan: Size of a patch, and how HU are prepared.
        settings: Size of a batch, seed, and this process's part of it.
    """

    def __init__(self, material: PreparedMaterial, shares: Shares, plan: Plan, settings: BatchSettings) -> None:
        """Keep what is needed to open the material."""
        self._material, self._shares, self._plan, self._settings = material, shares, plan, settings
        self._opened: Synthesis | None = None

    def __getitem__(self, key: BatchKey) -> SlabBatch:
        """Draw the batch of a (stream, epoch, index) key, or this process's part of it."""
        if self._opened is None:
            self._opened = Synthesis(self._material.open(), self._shares, self._plan.patch_size)
        settings = self._settings
        samples = []
        for index in range(settings.rank, settings.batch_size, settings.ranks):
            sequence = np.random.SeedSequence((settings.seed, *key, index))
            samples.append(self._opened.draw(np.random.default_rng(sequence)))
        return _to_batch(samples, self._plan)

    def __getstate__(self) -> dict[str, object]:
        """Return what is sent to another process: not the opened material."""
        return {**self.__dict__, "_opened": None}


class HeldOutSlices(Dataset[SlabBatch]):
    """Batches of real slices as they are, one after the other and from the beginning again.

    Args:
        slices: The slices.
        plan: Size of a patch, and how HU are prepared.
        settings: Size of a batch, and this process's part of it.
    """

    def __init__(self, slices: tuple[RealSlice, ...], plan: Plan, settings: BatchSettings) -> None:
        """Keep the slices."""
        self._slices, self._plan, self._settings = slices, plan, settings

    def __getitem__(self, key: BatchKey) -> SlabBatch:
        """Return the batch of a (stream, epoch, index) key, or this process's part of it."""
        settings = self._settings
        samples = []
        for index in range(settings.rank, settings.batch_size, settings.ranks):
            one = self._slices[(key[2] * settings.batch_size + index) % len(self._slices)]
            image, labels = plain_slab(one, self._plan.patch_size)
            samples.append(Sample(image, labels, one.name))
        return _to_batch(samples, self._plan)


def _to_batch(samples: list[Sample], plan: Plan) -> SlabBatch:
    hu = np.clip(np.stack([sample.image for sample in samples]), *plan.clip_hu)
    images = ((hu - np.float32(plan.mean_hu)) / np.float32(plan.std_hu)).astype(np.float32)
    labels = np.stack([sample.labels for sample in samples])
    return SlabBatch(torch.from_numpy(images), torch.from_numpy(labels), tuple(sample.source for sample in samples))
