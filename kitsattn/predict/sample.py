"""The sample CT, segmented: label map, picture with both contours, volumes, and Dice against its reference."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from kitsattn.datasets.sample_ct import SampleCT
from kitsattn.errors import KitsattnError
from kitsattn.evaluate.overlap import count_overlap
from kitsattn.evaluate.region import region_mask
from kitsattn.files import write_bytes
from kitsattn.jobs import Progress, silent
from kitsattn.labels import protocol_of
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_MODEL_NOTICE
from kitsattn.predict.case import describe_volumes
from kitsattn.predict.cases import PredictionCase
from kitsattn.predict.infer import Ensemble
from kitsattn.predict.run import predict_cases
from kitsattn.volume.formats import read_labels
from kitsattn.volume.volume import Volume

_LINE = 160
"""Characters on one line of a picture's note."""


@dataclass(frozen=True)
class SegmentedSample:
    """What a network found in the sample CT.

    Attributes:
        sample: The sample.
        output: The label map.
        picture: A sheet with the contours of the label map and of the reference.
        dice: Dice of the kidneys with their tumours by region key; the reference has no tumours to compare with.
        volumes_ml: Volume of each class by name, without background.
    """

    sample: SampleCT
    output: Path
    picture: Path
    dice: dict[str, float]
    volumes_ml: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {
            "input": str(self.sample.scan),
            "output": str(self.output),
            "picture": str(self.picture),
            "dice": self.dice,
            "volumes_ml": self.volumes_ml,
            "licence": self.sample.licence,
            "citation": self.sample.citation,
        }


def segment_sample(
    ensemble: Ensemble,
    sample: SampleCT,
    case: PredictionCase,
    scan: Callable[[], Volume],
    *,
    progress: Progress = silent,
) -> SegmentedSample:
    """Segment the sample CT, draw it and score it. Existing outputs are replaced.

    Args:
        ensemble: The networks.
        sample: The sample.
        case: Its scan and the label map to write. The picture goes to `preview`.
        scan: What `cases.read_ahead` returned for the case.
        progress: Called with the slices done.

    Raises:
        KitsattnError: If a file cannot be read or written.
    """
    picture = case.preview
    assert picture is not None
    drawing = Thread(
        target=_load_drawing, daemon=True
    )  # matplotlib takes half a second; the networks leave room for it
    drawing.start()
    plain = PredictionCase(name=case.name, source=case.source, target=case.target)
    (predicted,) = predict_cases(ensemble, [plain], overwrite=True, first_scan=scan, progress=progress)
    if isinstance(predicted, KitsattnError):
        raise predicted
    labels, reference = read_labels(case.target).array, read_labels(sample.labels).array
    kidneys = protocol_of(ensemble.headers[0].labels).regions[0]
    score = count_overlap(region_mask(labels, kidneys), region_mask(reference, kidneys)).dice
    drawing.join()
    from kitsattn.figures.overlay import overlay_sheet  # noqa: PLC0415 - see above

    notice = SYNTHETIC_MODEL_NOTICE if ensemble.synthetic else RESEARCH_NOTICE
    sheet = overlay_sheet(
        scan(),
        labels,
        reference,
        title=f"Sample CT: {describe_volumes(predicted.volumes_ml)}; kidney Dice {score:.3f}",
        note=textwrap.fill(f"{notice} CT: {sample.citation}; {sample.licence}.", _LINE),
    )
    write_bytes(picture, sheet)
    return SegmentedSample(sample, case.target, picture, {kidneys.key: score}, predicted.volumes_ml)


def _load_drawing() -> None:
    import kitsattn.figures.overlay  # noqa: F401, PLC0415 - see above
