"""Prediction of a whole scan, block by block: probabilities of all its slices are never held unless asked for."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

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
"""Distance of the slices in a first look for kidneys."""
_MARGIN_MM = 30.0
"""How far below and above the kidneys that a locator found slices are predicted.

A tumour may reach beyond the kidney tissue that the locator recognises.
"""
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
        report: Called with the slices done and the slices in all.
        done: Slices that were predicted.
    """

    ensemble: Ensemble
    prepared: PreparedScan
    inference: Inference
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.uint16] | None
    batch_size: int
    report: Callable[[int, int], None]
    done: set[int] = field(default_factory=set)

    def predict(self, centres: Sequence[int]) -> None:
        """Predict some slices, block by block."""
        for block in _blocks(centres):
            self._predict_block(block)
            self.done.update(block)
            self.report(len(self.done), len(self.labels))

    def found(self) -> list[int]:
        """Return the slices in which something was found."""
        return [z for z in sorted(self.done) if self.labels[z].any()]

    def _predict_block(self, centres: Sequence[int]) -> None:
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
                    tta=self.inference.tta,
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
    locator: Ensemble | None = None,
    keep_probabilities: bool = False,
    progress: Progress = silent,
    label: str = "predict",
) -> tuple[Volume, NDArray[np.uint16] | None]:
    """Predict the label map of a scan.

    A fast prediction looks at slices 10 mm apart first. If it finds at least 20 ml there, what a small kidney has, it
    goes on with the slices between the lowest and the highest finding and 20 mm around them, and takes the others for
    background. What it predicts is what it would predict otherwise; what is missed is between two of its first slices
    and more than 20 mm from all else. If it finds less, it predicts all slices.

    With a locator, other, smaller networks look at the slices 10 mm apart, on a scan that is prepared by their own
    plan. The networks then predict the slices between the lowest and the highest finding and 30 mm around them, go on
    around their own findings as a fast prediction does, and take the other slices for background. If the locator finds
    less than 20 ml, they predict all slices.

    Args:
        ensemble: The networks.
        scan: In HU.
        inference: How they are run; None for the defaults of `Inference`.
        locator: Networks that find the kidneys first; None predicts all slices, or as `inference.fast` says.
        keep_probabilities: Whether the probabilities are returned, which takes 2 bytes for each class and voxel.
        progress: Called after each block with the slices done.
        label: What the progress is called.

    Returns:
        Labels on the scan's own grid, uint8; and the probabilities on it, (classes, z, y, x) in units of 1 / `CERTAIN`.

    Raises:
        KitsattnError: If a batch does not fit into memory, or if both a locator and `inference.fast` are given.
    """
    inference = inference or Inference()
    if locator is not None and inference.fast:
        msg = "a fast prediction finds the kidneys with its own networks: leave out either `fast` or the locator"
        raise KitsattnError(msg)
    shape = scan.geometry.shape
    wanted = range(shape[0])
    if locator is not None:
        report = partial(progress, f"{label}: find kidneys")
        coarse = Inference(batch_size=inference.batch_size, tta="none")
        wanted = _locate(_start(locator, scan, coarse, None, report))
    probabilities = None
    if keep_probabilities:
        probabilities = np.zeros((ensemble.classes, *shape), np.uint16)
        probabilities[BACKGROUND] = CERTAIN
    task = _start(ensemble, scan, inference, probabilities, partial(progress, label))
    if not (inference.fast and _look(task)):
        task.predict([z for z in wanted if z not in task.done])
    _extend(task)
    if len(task.done) < shape[0]:
        _log.info("%d of %d slices were predicted, those around the kidneys", len(task.done), shape[0])
    progress(label, shape[0], shape[0])
    return scan.with_array(task.labels), probabilities


def _start(
    ensemble: Ensemble,
    scan: Volume,
    inference: Inference,
    probabilities: NDArray[np.uint16] | None,
    report: Callable[[int, int], None],
) -> _Task:
    """Prepare a scan for some networks; nothing is predicted yet."""
    batch_size = inference.batch_size or (_BATCH_GPU if ensemble.device.type == "cuda" else _BATCH_CPU)
    prepared = prepare_scan(scan, ensemble.plan.target)
    labels = np.zeros(scan.geometry.shape, np.uint8)
    task = _Task(ensemble, prepared, inference, labels, probabilities, batch_size, report)
    task.report(0, len(labels))
    return task


def _locate(task: _Task) -> range:
    """Return the slices around the kidneys: all slices if a first look finds no kidney."""
    geometry = task.prepared.scan.geometry
    depth = geometry.shape[0]
    found = _look(task)
    task.report(depth, depth)
    if not found:
        return range(depth)
    margin = math.ceil(_MARGIN_MM / geometry.spacing_mm[0])
    return range(max(min(found) - margin, 0), min(max(found) + margin + 1, depth))


def _look(task: _Task) -> list[int]:
    """Predict slices far apart.

    Returns:
        Those in which something was found; none if all findings together are smaller than a small kidney.
    """
    geometry = task.prepared.scan.geometry
    step = _coarse_step(task)
    task.predict(range(step // 2, geometry.shape[0], step))
    if np.count_nonzero(task.labels) * step * geometry.voxel_ml < KIDNEY_ML:
        _log.info("a look at slices %.3g mm apart found no kidney", step * geometry.spacing_mm[0])
        return []
    return task.found()


def _extend(task: _Task) -> None:
    """Predict the slices around all findings, until nothing new is found."""
    while wanted := _around(task.found(), _coarse_step(task), len(task.labels), task.done):
        task.predict(wanted)


def _coarse_step(task: _Task) -> int:
    """Return how many slices apart a first look is."""
    return max(1, round(_COARSE_MM / task.prepared.scan.geometry.spacing_mm[0]))


def _around(found: Sequence[int], step: int, depth: int, done: set[int]) -> list[int]:
    """Return the slices not done yet from two steps below the lowest finding to two above the highest."""
    if not found:
        return []
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
