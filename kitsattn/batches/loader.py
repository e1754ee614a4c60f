"""2.5D batches from prepared cases, each drawn by its number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kitsattn.batches.augment import build_augmentation, seeded, source_size
from kitsattn.batches.sampler import Patch, draw_patch, is_foreground_sample
from kitsattn.batches.slabs import slab_indices, slice_step, window_overlap
from kitsattn.preprocess.store import StoredCase

BatchKey = tuple[int, int, int]
"""Number of the stream, the epoch, and the batch in the epoch."""


@dataclass(frozen=True)
class SlabBatch:
    """One batch.

    Attributes:
        images: Prepared intensities, (batch, slices, height, width), float32.
        labels: Label values of the centre slices, (batch, height, width), uint8.
        cases: Case id of each sample.
    """

    images: Tensor
    labels: Tensor
    cases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What a batch looks like.

    Attributes:
        batch_size: Samples, those of all processes together.
        patch_size: Height and width.
        slices: Slices in a slab.
        slab_step_mm: Distance of a slab's slices in mm; None takes adjacent slices.
        air: Prepared intensity of air, which pads patches that reach beyond the slice.
        seed: Seed of all batches.
        augment: Whether to augment.
        elastic_probability: How often a sample is deformed elastically as well.
        foreground_share: Share of a batch whose patch is centred on foreground.
        rank: This process among those that share each batch; it takes every sample whose number is its own modulo
            `ranks`.
        ranks: Number of these processes.
    """

    batch_size: int
    patch_size: tuple[int, int]
    slices: int
    slab_step_mm: float | None
    air: float
    seed: int
    augment: bool
    elastic_probability: float = 0.0
    foreground_share: float = 1 / 3
    rank: int = 0
    ranks: int = 1


class SlabBatches(Dataset[SlabBatch]):
    """Batches by number: (stream, epoch, index) gives the same batch in any process, at any time.

    Args:
        cases: The prepared cases to draw from.
        settings: What a batch looks like.
    """

    def __init__(self, cases: Sequence[StoredCase], settings: BatchSettings) -> None:
        """Build the augmentation; no case is read yet."""
        self.cases = cases
        self.settings = settings
        self.size = source_size(settings.patch_size) if settings.augment else settings.patch_size
        self.transform = build_augmentation(
            settings.patch_size, settings.air, elastic_probability=settings.elastic_probability
        )

    def __getitem__(self, key: BatchKey) -> SlabBatch:
        """Draw the batch of a (stream, epoch, index) key, or this process's part of it."""
        settings = self.settings
        drawn = [self._draw(key, index) for index in range(settings.rank, settings.batch_size, settings.ranks)]
        images, labels, cases = zip(*drawn, strict=True)
        return SlabBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)), cases)

    def _draw(self, key: BatchKey, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
        """Draw one sample; its number seeds it, so that it is the same whoever draws the others."""
        settings = self.settings
        sequence = np.random.SeedSequence((settings.seed, *key, index))
        patch = draw_patch(
            self.cases,
            settings.patch_size,
            foreground=is_foreground_sample(index, settings.batch_size, settings.foreground_share),
            generator=np.random.default_rng(sequence),
        )
        case = self.cases[patch.case]
        image, label = self._cut(case, patch)
        if settings.augment:
            with seeded(sequence):
                augmented = self.transform(data=image[None], seg=label[None, None].astype(np.float32))
            image, label = augmented["data"][0], augmented["seg"][0, 0]
        return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label, np.uint8), case.case_id

    def _cut(self, case: StoredCase, patch: Patch) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Read the slab (slices, *size) and the centre slice's labels (*size) of a patch."""
        settings = self.settings
        depth, height, width = case.shape
        step = slice_step(settings.slab_step_mm, case.spacing_mm[0])
        indices = slab_indices(patch.centre, depth, settings.slices, step)
        # The patch is what is left in the middle of the larger cut-out, once it has been turned and scaled.
        top, left = (
            start - (cut - kept) // 2
            for start, cut, kept in zip((patch.top, patch.left), self.size, settings.patch_size, strict=True)
        )
        rows, columns = window_overlap(top, self.size[0], height), window_overlap(left, self.size[1], width)
        image = np.full((settings.slices, *self.size), settings.air, np.float32)
        label = np.zeros(self.size, np.uint8)
        image[:, rows[1], columns[1]] = case.read_slices(indices)[:, rows[0], columns[0]]
        label[rows[1], columns[1]] = case.read_labels(patch.centre)[rows[0], columns[0]]
        return image, label
