"""Prediction of a whole scan, block by block: probabilities of all its slices are never held unless asked for."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.jobs import Progress, silent
from kitsattn.labels import BACKGROUND
from kitsattn.predict.infer import Ensemble, Inference, predict_block, reach
from kitsattn.preprocess.case import PreparedScan, decide_labels, prepare_scan, restore_probabilities
from kitsattn.preprocess.intensity import normalise
from kitsattn.volume.components import KIDNEY_ML
from kitsattn.volume.volume import Volume

BLOCK = 16
"""Slices whose probabilities are held at once; 512 x 512 and 3 classes take 50 MB."""
CERTAIN = 65535
"""Probability 1 as it is kept, in uint16."""

_COARSE_MM = 10.0
"""How far apart the slices are that a fast prediction looks at first."""
_BATCH_CPU, _BATCH_GPU = 2, 16

_log = logging.getLogger(__name__)


@dataclass
class _Task:
    """A scan on its way to a label map.

    Attributes:
        ensemble: The networks.
        prepared: The scan.
        inference: How the networks are run.
        labels: (z, y, x), background where nothing was predicted yet.
        probabilities: (classes, z, y, x) in units of 1 / `CERTAIN`; None where they are not kept.
        batch_size: Slabs in one forward pass, so far.
        done: Slices that were predicted.
    """

    ensemble: Ensemble
    prepared: PreparedScan
    inference: Inference
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.uint16] | None
    batch_size: int
    done: set[int] = field(default_factory=set)

    def predict(self, centres: Sequence[int]) -> None:
        """Predict some slices, few enough to be held at once."""
        scan, plan = self.prepared.scan, self.ensemble.plan
        depth, spacing = scan.geometry.shape[0], scan.geometry.spacing_mm[0]
        margin = reach(self.ensemble, spacing)
        first, last = max(centres[0] - margin, 0), min(centres[-1] + 1 + margin, depth)
        slices = normalise(self.prepared.hu(first, last), plan.mean_hu, plan.std_hu)
        probabilities = self._run(slices, [centre - first for centre in centres], spacing)
        placement = self.prepared.placement
        restored = restore_probabilities(probabilities, placement)
        self.labels[centres] = decide_labels(restored, placement)
        if self.probabilities is not None:
            y0, y1, x0, x1 = placement.box
            for number, kept in enumerate(self.probabilities):
                kept[centres, y0:y1, x0:x1] = np.rint(restored[number] * CERTAIN)
        self.done.update(centres)

    def _run(self, slices: NDArray[np.float32], centres: Sequence[int], spacing_mm: float) -> NDArray[np.float32]:
        """Run the networks; where their own choice of batch does not fit, take half of it from here on."""
        while True:
            try:
                return predict_block(
                    self.ensemble,
                    slices,
                    centres,
                    slice_spacing_mm=spacing_mm,
                    batch_size=self.batch_size,
                    flips=self.inference.flips,
                    overlap=self.inference.overlap,
                )
            except torch.OutOfMemoryError as error:
                device = self.ensemble.device
                if self.batch_size == 1:
                    msg = f"not even one slice fits into the memory of {device}: name --device cpu"
                    raise KitsattnError(msg) from error
                if self.inference.batch_size is not None:
                    msg = f"a batch of {self.batch_size} slices does not fit into the memory of {device}: "
                    raise KitsattnError(msg + "lower --batch-size, or leave it out") from error
            self.batch_size //= 2
            _log.info("batches of %d slices from here on: more do not fit into memory", self.batch_size)


def predict_volume(
    ensemble: Ensemble,
    scan: Volume,
    inference: Inference | None = None,
    *,
    keep_probabilities: bool = False,
    progress: Progress = silent,
    label: str = "predict",
) -> tuple[Volume, NDArray[np.uint16] | None]:
    """Predict the label map of a scan.

    A fast prediction looks at slices 10 mm apart first. If it finds at least 20 ml there, what a small kidney has, it
    goes on with the slices between the lowest and the highest finding and 20 mm around them, and takes the others for
    background. What it predicts is what it would predict otherwise; what is missed lies between two of its first slices
    and more than 20 mm from all else. If it finds less, it predicts all slices.

    Args:
        ensemble: The networks.
        scan: In HU.
        inference: How they are run; None as `Inference` has it.
        keep_probabilities: Whether the probabilities are returned, which takes 2 bytes for each class and voxel.
        progress: Called after each block with the slices done.
        label: What the progress is called.

    Returns:
        Labels on the scan's own grid, uint8; and the probabilities on it, (classes, z, y, x) in units of 1 / `CERTAIN`.

    Raises:
        KitsattnError: If a batch does not fit into memory.
    """
    inference = inference or Inference()
    shape = scan.geometry.shape
    probabilities = None
    if keep_probabilities:
        probabilities = np.zeros((ensemble.classes, *shape), np.uint16)
        probabilities[BACKGROUND] = CERTAIN
    batch_size = inference.batch_size or (_BATCH_GPU if ensemble.device.type == "cuda" else _BATCH_CPU)
    prepared = prepare_scan(scan, ensemble.plan.target)
    task = _Task(ensemble, prepared, inference, np.zeros(shape, np.uint8), probabilities, batch_size)
    progress(label, 0, shape[0])
    for centres in _choose_slices(task):
        task.predict(centres)
        progress(label, len(task.done), shape[0])
    progress(label, shape[0], shape[0])
    return scan.with_array(task.labels), probabilities


def _choose_slices(task: _Task) -> Iterator[list[int]]:
    """Yield the slices to predict next, looking at what was found in the last ones where the prediction is fast."""
    geometry = task.prepared.scan.geometry
    depth = geometry.shape[0]
    step = round(_COARSE_MM / geometry.spacing_mm[0]) if task.inference.fast else 1
    if step > 1:
        coarse = range(step // 2, depth, step)
        yield from _blocks(coarse)
        found = [z for z in coarse if task.labels[z].any()]
        if np.count_nonzero(task.labels[found]) * step * geometry.voxel_ml >= KIDNEY_ML:
            while wanted := _around(found, step, depth, task.done):
                yield from _blocks(wanted)
                found = [z for z in task.done if task.labels[z].any()]
            _log.info("%d of %d slices were predicted, those around the kidneys", len(task.done), depth)
            return
        _log.info("all slices are predicted: a look at every %d found no kidney", step)
    yield from _blocks([z for z in range(depth) if z not in task.done])


def _around(found: Sequence[int], step: int, depth: int, done: set[int]) -> list[int]:
    """Return the slices not done yet from two steps below the lowest finding to two above the highest."""
    low, high = max(min(found) - 2 * step, 0), min(max(found) + 2 * step + 1, depth)
    return [z for z in range(low, high) if z not in done]


def _blocks(centres: Sequence[int]) -> Iterator[list[int]]:
    """Divide slices, in their order, into blocks that span few enough to be held at once."""
    block: list[int] = []
    for centre in centres:
        if block and (len(block) == BLOCK or centre - block[0] >= 2 * BLOCK):
            yield block
            block = []
        block.append(centre)
    if block:
        yield block
