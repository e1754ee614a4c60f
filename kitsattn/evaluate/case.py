"""Scores of one case: every evaluated region of a predicted label map against its reference."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.detection import Detection, match_lesions
from kitsattn.evaluate.region import RegionPair, region_mask
from kitsattn.evaluate.scoring import Scoring
from kitsattn.labels import BACKGROUND, CYST, KITS19, ScoringProtocol, check_labels
from kitsattn.volume.formats import read_labels
from kitsattn.volume.geometry import Geometry, Triple
from kitsattn.volume.volume import Volume
from kitsattn.volume.voxels import foreground_box
from kitsattn.words import name_some
from kitsattn.workspace import RAW_DESCRIPTION

_log = logging.getLogger(__name__)

_MOST_UNKNOWN = 20
"""A file with more unknown values than these is not a label map."""


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case.

    Attributes:
        case: The case's id.
        regions: Region key to metric key to value, e.g. `{"tumour": {"dice": 0.85}}`; NaN where it is not defined.
        lesions: Key of each region of lesions to those that were found and missed; empty where they were not counted.
        turned: Whether the prediction's file has the axes in another order or direction than the reference's.
    """

    case: str
    regions: Mapping[str, Mapping[str, float]]
    lesions: Mapping[str, Detection] = field(default_factory=dict)
    turned: bool = False


def score_case(case_id: str, prediction: Path | None, reference: Path, scoring: Scoring) -> CaseScores:
    """Read two label maps and score them.

    Args:
        case_id: The name of the case in the scores.
        prediction: The predicted label map, in any orientation of the reference's grid. None stands for a
            prediction that is missing, and counts as all background, as in KiTS19. Values that the protocol does not
            know count as background too, as the KiTS19 rules have it, and are logged; many of them are an error.
        reference: The reference label map, with no values that the protocol does not know.
        scoring: What to score, and how.

    Returns:
        Its scores.

    Raises:
        KitsattnError: If a file cannot be read or is not a label map, if the two are on different grids, or if the
            reference holds labels that the protocol does not know.
    """
    protocol = scoring.protocol
    truth = read_labels(reference, contiguous=False)
    if prediction is None:
        predicted = truth.with_array(np.zeros_like(truth.array))
    else:
        predicted = read_labels(prediction, contiguous=False)
        difference = predicted.geometry.difference(truth.geometry)
        if difference is not None:
            msg = (
                f"{prediction} ({_describe(predicted.geometry)}) is not on the grid of its reference {reference}"
                f" ({_describe(truth.geometry)}): {difference}; predict from the scan that the reference was drawn on"
            )
            raise KitsattnError(msg)
    labels, true = _crop(predicted.array, truth.array)
    _check_reference(true, protocol, reference)
    if prediction is not None:
        _check_prediction(labels, protocol, prediction)
    scores = score_labels(case_id, labels, true, truth.geometry.spacing_mm, scoring)
    return replace(scores, turned=_file_axes(predicted) != _file_axes(truth))


def score_labels(
    case_id: str,
    prediction: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    spacing_mm: Triple,
    scoring: Scoring,
) -> CaseScores:
    """Score two label maps that are on the same grid.

    Args:
        case_id: The name of the case in the scores.
        prediction: Label values, (z, y, x).
        reference: Label values, (z, y, x).
        spacing_mm: Distance of the voxels along z, y, x.
        scoring: What to score, and how.

    Returns:
        Its scores.
    """
    prediction, reference = _crop(prediction, reference)
    regions: dict[str, dict[str, float]] = {}
    lesions: dict[str, Detection] = {}
    for region in scoring.protocol.regions:
        pair = RegionPair(
            region,
            region_mask(prediction, region),
            region_mask(reference, region),
            spacing_mm,
            scoring.definition,
            scoring.limit_mm(region),
        )
        computed = [one for metric in scoring.metrics for one in (*metric.parts, metric)]
        regions[region.key] = {one.key: one.compute(pair) for one in computed}
        if scoring.lesions and region.lesions:
            lesions[region.key] = match_lesions(pair)
    return CaseScores(case_id, regions, lesions)


def _crop(
    prediction: NDArray[np.integer[Any]], reference: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
    """Cut label maps to the box where either is labelled, a tenth of a scan: all regions are there.

    What is cut already is not copied again.
    """
    box = tuple(_join(*sides) for sides in zip(foreground_box(prediction), foreground_box(reference), strict=True))
    return np.ascontiguousarray(prediction[box]), np.ascontiguousarray(reference[box])


def _check_reference(labels: NDArray[np.integer[Any]], protocol: ScoringProtocol, path: Path) -> None:
    found = _values(labels)
    if protocol == KITS19 and found - set(protocol.labels.values()) == {CYST}:
        msg = f"{path} holds the label 3, which KiTS19 does not have and KiTS23 calls cyst: add --protocol kits23"
        raise KitsattnError(msg)
    try:
        check_labels(found, protocol.labels, str(path))
    except KitsattnError as error:
        msg = f"{error}; the labels of other data are named in {RAW_DESCRIPTION} beside them"
        raise KitsattnError(msg) from None


def _check_prediction(labels: NDArray[np.integer[Any]], protocol: ScoringProtocol, path: Path) -> None:
    unknown = _values(labels) - set(protocol.labels.values())
    if len(unknown) > _MOST_UNKNOWN:
        msg = f"{path} holds {len(unknown)} values that are not labels: give a label map, not a scan"
        raise KitsattnError(msg)
    if unknown:
        known = ", ".join(f"{value} {name}" for name, value in protocol.labels.items() if value != BACKGROUND)
        shown = name_some(map(str, sorted(unknown)))
        _log.warning("%s holds the labels [%s], which count as background: scored are %s", path, shown, known)


def _values(labels: NDArray[np.integer[Any]]) -> set[int]:
    found: set[int] = set()
    for one_slice in labels:
        found.update(np.flatnonzero(np.bincount(one_slice.ravel())).tolist())
    return found


def _join(one: slice, other: slice) -> slice:
    """Return the smallest slice that holds two, of which one may be empty."""
    held = [side for side in (one, other) if side.start < side.stop]
    return slice(min(side.start for side in held), max(side.stop for side in held)) if held else one


def _file_axes(volume: Volume) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return which axis of its file each of a volume's axes is, and whether it runs the other way there."""
    assert volume.source is not None
    return volume.source.order, volume.source.flipped


def _describe(geometry: Geometry) -> str:
    voxels = " x ".join(str(size) for size in geometry.shape)
    spacing = " x ".join(f"{step:.4g}" for step in geometry.spacing_mm)
    origin = ", ".join(f"{position:.4g}" for position in geometry.origin_mm)
    return f"{voxels} voxels of {spacing} mm, first voxel at ({origin}) mm along z, y, x"
