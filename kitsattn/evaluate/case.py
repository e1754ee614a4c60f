"""Scores of one case: every evaluated region of a predicted label map against its reference."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.metrics import DICE, Metric, measure_region
from kitsattn.labels import BACKGROUND, CYST, KITS19, ScoringProtocol, check_labels
from kitsattn.volume.formats import read_labels
from kitsattn.volume.geometry import Geometry, Triple

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case.

    Attributes:
        case: The case's id.
        regions: Region key to metric key to value, e.g. `{"tumour": {"dice": 0.85}}`; NaN where it is not defined.
    """

    case: str
    regions: Mapping[str, Mapping[str, float]]


def score_case(
    case_id: str,
    prediction: Path | None,
    reference: Path,
    *,
    protocol: ScoringProtocol = KITS19,
    metrics: Sequence[Metric] = (DICE,),
) -> CaseScores:
    """Read two label maps and score the regions of a protocol.

    Args:
        case_id: The name of the case in the scores.
        prediction: The predicted label map, in any orientation of the reference's grid. None stands for a
            prediction that is missing, and counts as all background, as in KiTS19. Values that the protocol does not
            know count as background too, as the KiTS19 rules have it, and are logged.
        reference: The reference label map, with no values that the protocol does not know.
        protocol: Which labels there are, and what to score.
        metrics: What to score them by.

    Returns:
        The metrics of each region.

    Raises:
        KitsattnError: If a file cannot be read, if the two lie on different grids, or if the reference holds
            labels that the protocol does not know.
    """
    truth = read_labels(reference)
    spacing_mm = truth.geometry.spacing_mm
    _check_reference(_values(truth.array), protocol, reference)
    if prediction is None:
        nothing = np.zeros_like(truth.array)
        return score_labels(case_id, nothing, truth.array, spacing_mm, protocol=protocol, metrics=metrics)
    predicted = read_labels(prediction)
    difference = predicted.geometry.difference(truth.geometry)
    if difference is not None:
        msg = (
            f"{prediction} ({_describe(predicted.geometry)}) is not on the grid of its reference {reference}"
            f" ({_describe(truth.geometry)}): {difference}; predict from the scan that the reference was drawn on"
        )
        raise KitsattnError(msg)
    unknown = _values(predicted.array) - set(protocol.labels.values())
    if unknown:
        known = ", ".join(f"{value} {name}" for name, value in protocol.labels.items() if value != BACKGROUND)
        _log.warning(
            "%s holds the labels %s, which count as background: scored are %s", prediction, sorted(unknown), known
        )
    return score_labels(case_id, predicted.array, truth.array, spacing_mm, protocol=protocol, metrics=metrics)


def score_labels(
    case_id: str,
    prediction: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    spacing_mm: Triple,
    *,
    protocol: ScoringProtocol = KITS19,
    metrics: Sequence[Metric] = (DICE,),
) -> CaseScores:
    """Score two label maps that lie on the same grid.

    Args:
        case_id: The name of the case in the scores.
        prediction: Label values, (z, y, x).
        reference: Label values, (z, y, x).
        spacing_mm: Distance of the voxels along z, y, x.
        protocol: Names the regions to score.
        metrics: What to score them by.

    Returns:
        The metrics of each region.
    """
    return CaseScores(
        case_id,
        {region.key: measure_region(prediction, reference, region, spacing_mm, metrics) for region in protocol.regions},
    )


def _check_reference(found: set[int], protocol: ScoringProtocol, path: Path) -> None:
    if protocol == KITS19 and found - set(protocol.labels.values()) == {CYST}:
        msg = f"{path} holds the label 3, which KiTS19 does not have and KiTS23 calls cyst: add --protocol kits23"
        raise KitsattnError(msg)
    check_labels(found, protocol.labels, str(path))


def _values(labels: NDArray[np.integer[Any]]) -> set[int]:
    found: set[int] = set()
    for one_slice in labels:
        found.update(np.flatnonzero(np.bincount(one_slice.ravel())).tolist())
    return found


def _describe(geometry: Geometry) -> str:
    voxels = " x ".join(str(size) for size in geometry.shape)
    spacing = " x ".join(f"{step:.4g}" for step in geometry.spacing_mm)
    origin = ", ".join(f"{position:.4g}" for position in geometry.origin_mm)
    return f"{voxels} voxels of {spacing} mm, first voxel at ({origin}) mm along z, y, x"
