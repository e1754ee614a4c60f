"""The steps of one case: read its scan, predict it, write the label map and what else was asked for."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.files import check_target, write_bytes, write_json
from kitsattn.jobs import Progress, silent
from kitsattn.labels import BACKGROUND
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_MODEL_NOTICE
from kitsattn.predict.cases import DICOM_SUFFIX, PredictionCase
from kitsattn.predict.credits import credits_of
from kitsattn.predict.infer import Ensemble, Inference
from kitsattn.predict.postprocess import Postprocessing, PostprocessReport, knows_classes, postprocess
from kitsattn.predict.scan import CERTAIN, predict_volume
from kitsattn.predict.statistics import measure_labels
from kitsattn.version import __version__
from kitsattn.volume.ct import check_ct
from kitsattn.volume.dicom.segmentation import check_source, write_segmentation
from kitsattn.volume.formats import read_labels, read_scan, write_labels
from kitsattn.volume.hu import check_hu
from kitsattn.volume.nifti import write_probabilities
from kitsattn.volume.volume import Volume
from kitsattn.words import plural

DEFAULT_RULES = Postprocessing()

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one case.

    Attributes:
        case: The case.
        volumes_ml: Volume of each class by name, background left out.
        postprocessing: What it changed; None where there was none.
        notes: What a reader should know of how the scan was read.
        synthetic: Whether the model was trained on phantoms.
        picture: Slices with contours as WebP; None where it was not asked for.
    """

    case: PredictionCase
    volumes_ml: dict[str, float]
    postprocessing: PostprocessReport | None
    notes: tuple[str, ...]
    synthetic: bool
    picture: bytes | None = None


def read_case(case: PredictionCase, *, overwrite: bool, scan: Callable[[], Volume] | None = None) -> Volume:
    """Read the scan of a case.

    Args:
        case: The case.
        overwrite: Whether an existing target may be replaced.
        scan: What `cases.read_ahead` gave; None reads the scan now.

    Raises:
        KitsattnError: If it cannot be read, is not in HU, or the target exists and may not be replaced, or is DICOM and
            the scan is not.
    """
    check_target(case.target, case.source, overwrite=overwrite)
    if case.target.suffix.lower() == DICOM_SUFFIX:
        check_source(case.source, case.series)
    read = scan() if scan else read_scan(case.source, case.series)
    return log_notes(check_ct(read, assume_hu=case.assume_hu), case.source)


def log_notes(scan: Volume, name: object) -> Volume:
    """Log the notes of a scan, and return it."""
    for note in scan.notes:
        _log.warning("%s: %s", name, note)
    return scan


def recall_case(ensemble: Ensemble, case: PredictionCase) -> Prediction:
    """Return what was predicted for a case in an earlier run, from its label map.

    Raises:
        KitsattnError: If scan or label map cannot be read, or they do not belong together.
    """
    scan = check_hu(read_scan(case.source, case.series), assume=case.assume_hu)
    labels = read_labels(case.target)
    difference = scan.geometry.difference(labels.geometry)
    if difference is not None:
        msg = f"{case.target} is not the label map of {case.source} ({difference}): --overwrite replaces it"
        raise KitsattnError(msg)
    picture = _small_picture(case.name, scan, labels) if case.pictured else None
    volumes = _volumes_ml(ensemble, labels)
    return Prediction(case, volumes, None, (*labels.notes, "Predicted earlier."), ensemble.synthetic, picture)


def predict_scan(
    ensemble: Ensemble,
    case: PredictionCase,
    scan: Volume,
    inference: Inference | None = None,
    *,
    locator: Ensemble | None = None,
    progress: Progress = silent,
) -> tuple[Volume, NDArray[np.uint16] | None]:
    """Predict the scan of a case as `predict_volume` does, with the probabilities where they are to be written."""
    keep = case.probabilities is not None
    label = f"predict {case.name}"
    return predict_volume(
        ensemble, scan, inference, locator=locator, keep_probabilities=keep, progress=progress, label=label
    )


def follow_rules(
    ensemble: Ensemble, labels: Volume, rules: Postprocessing | None
) -> tuple[Volume, PostprocessReport | None]:
    """Post-process a label map, and say what changed; without rules, or of other classes, it is left as it is."""
    classes = ensemble.headers[0].labels
    if rules is None or not knows_classes(classes):
        return labels, None
    array, report = postprocess(labels.array, labels.geometry.spacing_mm, classes, rules=rules)
    return labels.with_array(array), report


def write_case(
    ensemble: Ensemble,
    case: PredictionCase,
    scan: Volume,
    predicted: tuple[Volume, NDArray[np.uint16] | None],
    *,
    rules: Postprocessing | None,
    overwrite: bool,
) -> Prediction:
    """Post-process the label map of a case, write what was asked for, and the label map last.

    A label map of kidney, tumour and perhaps cyst is post-processed; one of other classes is left as it is.

    Args:
        ensemble: The networks that made it.
        case: The case.
        scan: Its scan.
        predicted: Label map and probabilities, as `predict_volume` returns them.
        rules: Of post-processing; None leaves the label map as the network gave it.
        overwrite: Whether an existing target may be replaced.

    Raises:
        KitsattnError: If a file cannot be written.
    """
    labels, probabilities = predicted
    classes = ensemble.headers[0].labels
    labels, report = follow_rules(ensemble, labels, rules)
    if report is not None and report.voxels:
        _log.info("%s: post-processing changed %s", case.source, _describe(report))
    note = provenance_note(ensemble, assumed_hu=case.assume_hu)
    if case.probabilities is not None:
        assert probabilities is not None
        write_probabilities(case.probabilities, labels, probabilities, unit=CERTAIN, note=note)
    if case.statistics is not None:
        measured = measure_labels(labels, classes, scan.array).to_json()
        write_json(case.statistics, {"input": str(case.source), "output": str(case.target), **measured})
    volumes = _volumes_ml(ensemble, labels)
    if case.preview is not None:
        from kitsattn.figures.overlay import overlay_sheet  # noqa: PLC0415 - matplotlib takes a second

        notice = SYNTHETIC_MODEL_NOTICE if ensemble.synthetic else RESEARCH_NOTICE
        title = f"{case.name}: {describe_volumes(volumes)}"
        sheet = overlay_sheet(scan, labels.array, None, title=title, note=notice, parts=knows_classes(classes))
        write_bytes(case.preview, sheet)
    picture = _small_picture(case.name, scan, labels) if case.pictured else None
    # Last: where it is, all is.
    if case.target.suffix.lower() == DICOM_SUFFIX:
        model = ensemble.headers[0].model
        write_segmentation(
            case.target, labels, case.source, case.series, classes=classes, model=model, note=note, overwrite=overwrite
        )
    else:
        write_labels(case.target, labels, classes=classes, note=note, overwrite=overwrite)
    return Prediction(case, volumes, report, labels.notes, ensemble.synthetic, picture)


def _volumes_ml(ensemble: Ensemble, labels: Volume) -> dict[str, float]:
    classes = {name: value for name, value in ensemble.headers[0].labels.items() if value != BACKGROUND}
    # Slice by slice, without a mask as large as the scan.
    voxels = {name: sum(np.count_nonzero(one == value) for one in labels.array) for name, value in classes.items()}
    return {name: count * labels.geometry.voxel_ml for name, count in voxels.items()}


def describe_volumes(volumes_ml: Mapping[str, float]) -> str:
    """Return the volumes as one phrase."""
    return ", ".join(f"{name} {ml:.1f} ml" for name, ml in volumes_ml.items())


def provenance_note(ensemble: Ensemble, *, assumed_hu: bool = False) -> str:
    """Return what a label map's header says of its making, as JSON text.

    Args:
        ensemble: The networks that made it.
        assumed_hu: Whether the scan's values were taken as HU without a check, which is then recorded.
    """
    first, made = ensemble.headers[0], credits_of(ensemble)
    note = {
        "made_by": f"kitsattn {__version__}",
        "use": RESEARCH_NOTICE,
        "labels": dict(first.labels),
        "model": first.model,
        "checkpoints": [path.name for path in ensemble.paths],
        "training_data": first.provenance.dataset,
        "synthetic": ensemble.synthetic,
        "model_name": made.name,
        "quality": made.quality,
        "licence": made.licence,
        "sources": [asdict(source) for source in made.sources],
    }
    if assumed_hu:
        note["assumed_hu"] = True
    return json.dumps({**note, "warning": SYNTHETIC_MODEL_NOTICE} if ensemble.synthetic else note)


def _small_picture(name: str, scan: Volume, labels: Volume) -> bytes:
    from kitsattn.preprocess.preview import draw_preview  # noqa: PLC0415 - see above

    return draw_preview(scan.array, labels.array, spacing_mm=scan.geometry.spacing_mm, case_id=name)


def _describe(report: PostprocessReport) -> str:
    """Say which rules changed how much."""
    steps = [f"{plural(step.voxels, 'voxel')} ({step.name})" for step in report.steps if step.voxels]
    return ", ".join(steps)
