"""Prediction of whole scans, block by block, and of files."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kitsattn import __version__
from kitsattn.datasets.kits import scan_name
from kitsattn.errors import KitsattnError
from kitsattn.files import check_target, write_json
from kitsattn.jobs import Progress, silent
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_MODEL_NOTICE
from kitsattn.predict.infer import Ensemble, predict_block, reach
from kitsattn.predict.postprocess import Postprocessing, PostprocessReport, knows_classes, postprocess
from kitsattn.predict.statistics import measure_labels
from kitsattn.preprocess.case import decide_labels, prepare_scan, restore_probabilities
from kitsattn.preprocess.intensity import check_hu, normalise
from kitsattn.volume.formats import read_scan, write_labels
from kitsattn.volume.volume import Volume
from kitsattn.words import plural

BLOCK = 32
"""Slices whose probabilities are held at once; 512 x 512 and 3 classes take 100 MB."""
DEFAULT_RULES = Postprocessing()

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one file.

    Attributes:
        source: The scan.
        target: The label map.
        volumes_ml: Volume of each class by name, background left out.
        postprocessing: What it changed; None where there was none.
        notes: What a reader should know of how the scan was read.
        synthetic: Whether the model was trained on phantoms.
    """

    source: Path
    target: Path
    volumes_ml: dict[str, float]
    postprocessing: PostprocessReport | None
    notes: tuple[str, ...]
    synthetic: bool


def predict_volume(
    ensemble: Ensemble, scan: Volume, *, batch_size: int = 4, progress: Progress = silent, label: str = "predict"
) -> Volume:
    """Predict the label map of a scan.

    Args:
        ensemble: The networks.
        scan: In HU.
        batch_size: Slabs in one forward pass.
        progress: Called after each block with the slices done.
        label: What the progress is called.

    Returns:
        Labels on the scan's own grid, uint8.
    """
    plan = ensemble.plan
    prepared = prepare_scan(scan, plan.target)
    depth, spacing = scan.geometry.shape[0], scan.geometry.spacing_mm[0]
    margin = reach(ensemble, spacing)
    labels = np.zeros(scan.geometry.shape, np.uint8)
    progress(label, 0, depth)
    for start in range(0, depth, BLOCK):
        stop = min(start + BLOCK, depth)
        first, last = max(start - margin, 0), min(stop + margin, depth)
        slices = normalise(prepared.hu(first, last), plan.mean_hu, plan.std_hu)
        centres = range(start - first, stop - first)
        try:
            probabilities = predict_block(ensemble, slices, centres, slice_spacing_mm=spacing, batch_size=batch_size)
        except torch.OutOfMemoryError as error:
            msg = (
                f"a batch of {batch_size} slices does not fit into the memory of {ensemble.device}: lower --batch-size"
            )
            raise KitsattnError(msg) from error
        labels[start:stop] = decide_labels(restore_probabilities(probabilities, prepared.placement), prepared.placement)
        progress(label, stop, depth)
    return scan.with_array(labels)


def predict_file(
    ensemble: Ensemble,
    source: Path,
    target: Path,
    *,
    series: str | None = None,
    rules: Postprocessing | None = DEFAULT_RULES,
    statistics: Path | None = None,
    batch_size: int = 4,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Prediction:
    """Predict one file.

    A label map of kidney, tumour and perhaps cyst is post-processed; one of other classes is left as it is.

    Args:
        ensemble: The networks.
        source: A scan in HU, in any format that `volume.formats` reads, a DICOM folder or archive among them.
        target: Where the label map goes; its suffix is the format.
        series: Which series of several in DICOM, by number or UID; None takes the largest of CT.
        rules: Of post-processing; None leaves the label map as the network gave it.
        statistics: Where volumes, diameters and attenuation go, as JSON; it is replaced.
        batch_size: Slabs in one forward pass.
        overwrite: Whether an existing `target` may be replaced.
        progress: Called with the slices done.

    Returns:
        What was predicted.

    Raises:
        KitsattnError: If the scan cannot be read, is not in HU, or the target cannot be written.
    """
    check_target(target, source, overwrite=overwrite)
    scan = check_hu(read_scan(source, series))
    for note in scan.notes:
        _log.warning("%s: %s", source, note)
    labels = predict_volume(
        ensemble, scan, batch_size=batch_size, progress=progress, label=f"predict {scan_name(source)}"
    )
    classes = ensemble.headers[0].labels
    report = None
    if rules is not None and knows_classes(classes):
        array, report = postprocess(labels.array, labels.geometry.spacing_mm, classes, rules=rules)
        labels = labels.with_array(array)
        if report.voxels:
            _log.info("%s: post-processing changed %s", source, _describe(report))
    write_labels(target, labels, note=provenance_note(ensemble), overwrite=overwrite)
    if statistics is not None:
        measured = measure_labels(labels, classes, scan.array)
        write_json(statistics, {"input": str(source), "output": str(target), **measured.to_json()})
    counts = np.bincount(labels.array.ravel(), minlength=ensemble.classes)
    names = {value: name for name, value in classes.items()}
    volumes = {names[value]: float(counts[value]) * scan.geometry.voxel_ml for value in range(1, ensemble.classes)}
    _log.info("%s -> %s: %s", source, target, ", ".join(f"{name} {ml:.1f} ml" for name, ml in volumes.items()))
    return Prediction(source, target, volumes, report, labels.notes, ensemble.synthetic)


def _describe(report: PostprocessReport) -> str:
    """Say which rules changed how much."""
    steps = [f"{plural(step.voxels, 'voxel')} ({step.name})" for step in report.steps if step.voxels]
    return ", ".join(steps)


def provenance_note(ensemble: Ensemble) -> str:
    """Return what a label map's header says of its making, as JSON text."""
    first = ensemble.headers[0]
    note = {
        "made_by": f"kitsattn {__version__}",
        "use": RESEARCH_NOTICE,
        "labels": dict(first.labels),
        "model": first.model,
        "checkpoints": [path.name for path in ensemble.paths],
        "training_data": first.provenance.dataset,
        "synthetic": ensemble.synthetic,
    }
    return json.dumps({**note, "warning": SYNTHETIC_MODEL_NOTICE} if ensemble.synthetic else note)
