"""Measurements of a label map: volumes, attenuation, places and diameters, by class, component and kidney."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from kitsattn.errors import KitsattnError
from kitsattn.labels import BACKGROUND, check_labels
from kitsattn.volume.components import KIDNEY_ML, Voxels, find_components, find_voxels
from kitsattn.volume.geometry import Geometry, Triple
from kitsattn.volume.volume import Volume

Side = Literal["left", "right", "midline"]
Floats = NDArray[np.float64]

_LEAST_KIDNEY_ML = 1.0
"""Of kidney tissue in an object that is listed as a kidney. Each of 86 label maps of KiTS19 has two of them."""

_ACROSS = 0.25
"""Share of kidney tissue on the other side of the midline that makes a kidney cross it.

Of 172 kidneys of KiTS19 none has any there if the midline is between the two; one has 22 % and one 9 % beyond the
middle of the image, large tumours having pushed them.
"""

_LEAST_APART_MM = 50.0
_MOST_OFF_MM = 40.0
"""In 86 label maps of KiTS19 the centres of the two kidneys are at least 76 mm apart from left to right, and the point
between them at most 25 mm from the middle of the image."""

_BODY_HU = -300

_LEFT = 2
"""World axes are (Superior, Posterior, Left)."""

_CONVENTIONS = {
    "volume": "voxels times the volume of one voxel",
    "component": "voxels of one class that share a face, an edge or a corner",
    "kidney": "kidney and masses that are connected, with 1 ml of kidney tissue or more; the largest first",
    "side": "the patient's, by three quarters of the kidney tissue; midline if neither side has them; null if there is "
    "no kidney tissue in the object",
    "sd_hu": "of the population, divided by the number of voxels",
    "longest_axial_diameter": "longest distance between the middles of outer pixel edges within one slice; of a class, "
    "its largest component's",
    "mm": "the patient's coordinates, growing to left, posterior and superior (LPS, as in DICOM); boxes hold the whole "
    "voxels",
    "voxels": "indices from 0, the first and the last; z grows to superior, y to posterior, x to left, whatever order "
    "the file has",
}


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What was measured of some voxels; None where there are none, or no scan for the attenuation.

    Attributes:
        voxels: How many there are.
        volume_ml: Their volume.
        mean_hu: Mean of the scan over them.
        sd_hu: Standard deviation of the population; 0 for one voxel.
        longest_axial_diameter_mm: The longest distance in one slice between middles of outer pixel edges.
        centroid_mm: World (Superior, Posterior, Left) of the mean of their centres.
        first_voxel: The lowest indices z, y, x.
        last_voxel: The highest, inclusive.
        low_mm: The lowest world coordinates of the box of `first_voxel` to `last_voxel`, whole voxels.
        high_mm: The highest.
    """

    voxels: int
    volume_ml: float
    mean_hu: float | None = None
    sd_hu: float | None = None
    longest_axial_diameter_mm: float | None = None
    centroid_mm: Triple | None = None
    first_voxel: tuple[int, int, int] | None = None
    last_voxel: tuple[int, int, int] | None = None
    low_mm: Triple | None = None
    high_mm: Triple | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values; world axes by name, in the order of DICOM."""
        box_mm = _spans(("left", "posterior", "superior"), _reverse(self.low_mm), _reverse(self.high_mm))
        centroid = _reverse(self.centroid_mm)
        return {
            "voxels": self.voxels,
            "volume_ml": self.volume_ml,
            "mean_hu": self.mean_hu,
            "sd_hu": self.sd_hu,
            "longest_axial_diameter_mm": self.longest_axial_diameter_mm,
            "centroid_mm": centroid and dict(zip(("left", "posterior", "superior"), centroid, strict=True)),
            "bounding_box_mm": box_mm,
            "bounding_box_voxels": _spans(("z", "y", "x"), self.first_voxel, self.last_voxel),
        }


@dataclass(frozen=True)
class ComponentStatistics:
    """One connected component of a class.

    Attributes:
        side: Of the kidney that it belongs to; None if it is connected to no kidney tissue.
        measurements: Of its voxels.
    """

    side: Side | None
    measurements: Measurements

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"side": self.side, **self.measurements.to_json()}


@dataclass(frozen=True)
class ClassStatistics:
    """One class.

    Attributes:
        measurements: Of all its voxels; the diameter is the longest of a component.
        components: The largest first.
    """

    measurements: Measurements
    components: tuple[ComponentStatistics, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**self.measurements.to_json(), "components": [component.to_json() for component in self.components]}


@dataclass(frozen=True)
class KidneyStatistics:
    """One kidney with the masses that are connected to it.

    Attributes:
        side: Where it is.
        measurements: Of kidney and masses together.
        volumes_ml: Volume of each class in it, by name.
    """

    side: Side
    measurements: Measurements
    volumes_ml: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"side": self.side, "volumes_ml": dict(self.volumes_ml), **self.measurements.to_json()}


@dataclass(frozen=True)
class LabelStatistics:
    """What was measured of a label map.

    Attributes:
        spacing_mm: Distance between voxel centres along z, y, x.
        midline_left_mm: The world coordinate, growing to the patient's left, that parts left from right.
        midline_from: What it was found from: between the two kidneys, the middle of the body, or of the image.
        kidneys: The largest first.
        classes: Class name to its statistics, without background.
    """

    spacing_mm: Triple
    midline_left_mm: float
    midline_from: Literal["kidneys", "body", "image"]
    kidneys: tuple[KidneyStatistics, ...]
    classes: Mapping[str, ClassStatistics]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, with a sentence on each convention."""
        return {
            "spacing_mm": dict(zip(("z", "y", "x"), self.spacing_mm, strict=True)),
            "midline": {"left_mm": self.midline_left_mm, "from": self.midline_from},
            "kidneys": [kidney.to_json() for kidney in self.kidneys],
            "classes": {name: statistics.to_json() for name, statistics in self.classes.items()},
            "conventions": _CONVENTIONS,
        }


def measure_labels(
    labels: Volume, classes: Mapping[str, int], scan: Iterable[NDArray[Any]] | None = None
) -> LabelStatistics:
    """Measure a label map, by class, by connected component (26 neighbours) and by kidney.

    A kidney is an object, a connected component of all classes together, with 1 ml of kidney tissue or more. Left and
    right are the patient's, in world coordinates, so that flips and rotations of the grid change nothing. The midline
    is between the two largest kidneys if each has 20 ml of tissue, they are 50 mm apart and the point between them is
    within 40 mm of the body's middle. Otherwise (one kidney, a horseshoe kidney, both on one side) the body's middle
    is the midline: the median over the slices with foreground of the centre of what is above -300 HU; without a scan,
    the middle of the image. A kidney is on the side where three quarters of its kidney tissue are, else `midline`: a
    tumour that grows across does not move it.

    The longest axial diameter is measured in a slice of the array, as RECIST does on axial slices; in an oblique scan
    that is the oblique plane. Between the middles of outer pixel edges, an ellipse of 8 pixels is 0.3 pixels too long
    and one of 120 pixels 0.7; between pixel centres they would be 0.6 and 0.3 too short, and one voxel 0.

    Args:
        labels: The label map.
        classes: Class name to value, background included. Sides are found if one of them is `kidney`.
        scan: The scan's slices in HU in the order of z, an array or an iterator; read once. None for no attenuation.

    Returns:
        The measurements.

    Raises:
        KitsattnError: If the map has a value that is not a class, or scan and map have different shapes.
    """
    geometry = labels.geometry
    voxels = find_voxels(labels.array)
    check_labels(np.unique(voxels.values).tolist(), classes, "the label map")
    hu, body_left_mm = (None, None) if scan is None else _read_scan(scan, voxels, geometry)
    foreground = _Foreground(voxels, hu, geometry)
    objects = find_components(voxels.places)
    pieces = objects.split(np.arange(len(voxels.values)))
    kidney = classes.get("kidney", BACKGROUND)
    tissue = [_left_mm(voxels.places[piece[voxels.values[piece] == kidney]], geometry) for piece in pieces]
    midline, found_from = _find_midline(tissue, body_left_mm, geometry)
    sides = [_side(left_mm, midline) for left_mm in tissue]
    kidneys = [
        KidneyStatistics(side, foreground.measure(piece), foreground.volumes_ml(piece, classes))
        for piece, left_mm, side in zip(pieces, tissue, sides, strict=True)
        if side is not None and len(left_mm) * geometry.voxel_ml >= _LEAST_KIDNEY_ML
    ]
    kidneys.sort(key=lambda kidney: -kidney.measurements.voxels)
    by_class = {}
    for name, value in classes.items():
        if value != BACKGROUND:
            chosen = np.flatnonzero(voxels.values == value)
            parts = find_components(voxels.places[chosen]).split(chosen)
            components = [
                ComponentStatistics(sides[objects.numbers[part[0]]], foreground.measure(part)) for part in parts
            ]
            by_class[name] = foreground.summarise(chosen, components)
    return LabelStatistics(geometry.spacing_mm, midline, found_from, tuple(kidneys), by_class)


@dataclass(frozen=True, eq=False)
class _Foreground:
    """What is measured: the foreground's voxels, the scan's values there if there is a scan, and the grid."""

    voxels: Voxels
    hu: Floats | None
    geometry: Geometry

    def measure(self, piece: NDArray[np.int_]) -> Measurements:
        """Measure connected voxels, given by their positions in the list."""
        return self._measure(piece, _longest_axial_mm(self.voxels.places[piece], self.geometry.spacing_mm))

    def summarise(self, chosen: NDArray[np.int_], components: list[ComponentStatistics]) -> ClassStatistics:
        """Measure a class, whose diameter is that of a component: two kidneys have none together."""
        components = sorted(components, key=lambda component: -component.measurements.voxels)
        if not components:
            return ClassStatistics(Measurements(voxels=0, volume_ml=0.0), ())
        longest = max(component.measurements.longest_axial_diameter_mm or 0.0 for component in components)
        return ClassStatistics(self._measure(chosen, longest), tuple(components))

    def volumes_ml(self, piece: NDArray[np.int_], classes: Mapping[str, int]) -> dict[str, float]:
        """Return the volume of each class, background left out."""
        counts = np.bincount(self.voxels.values[piece], minlength=max(classes.values()) + 1)
        volumes = {name: float(counts[value]) * self.geometry.voxel_ml for name, value in classes.items()}
        return {name: ml for name, ml in volumes.items() if classes[name] != BACKGROUND}

    def _measure(self, piece: NDArray[np.int_], longest_axial_diameter_mm: float) -> Measurements:
        places = self.voxels.places[piece]
        low, high = places.min(axis=0), places.max(axis=0)
        corners = np.array(list(product(*zip(low - 0.5, high + 0.5, strict=True))))
        corners_mm = _world(corners, self.geometry)
        hu = None if self.hu is None else self.hu[piece]
        return Measurements(
            voxels=len(places),
            volume_ml=len(places) * self.geometry.voxel_ml,
            mean_hu=None if hu is None else float(hu.mean()),
            sd_hu=None if hu is None else float(hu.std()),
            longest_axial_diameter_mm=longest_axial_diameter_mm,
            centroid_mm=_triple(_world(places.mean(axis=0), self.geometry)),
            first_voxel=(int(low[0]), int(low[1]), int(low[2])),
            last_voxel=(int(high[0]), int(high[1]), int(high[2])),
            low_mm=_triple(corners_mm.min(axis=0)),
            high_mm=_triple(corners_mm.max(axis=0)),
        )


def _read_scan(scan: Iterable[NDArray[Any]], voxels: Voxels, geometry: Geometry) -> tuple[Floats, float | None]:
    """Return the scan's values at the voxels, and the world coordinate of the body's middle where there are voxels."""
    depth, *plane = geometry.shape
    begin = np.searchsorted(voxels.places[:, 0], np.arange(depth + 1))
    hu = np.empty(len(voxels.values))
    centres, read = [], 0
    for z, hu_slice in enumerate(scan):
        read = z + 1
        if read > depth or list(hu_slice.shape) != plane:
            break
        _, y, x = voxels.places[begin[z] : begin[read]].T
        if len(y):
            hu[begin[z] : begin[read]] = hu_slice[y, x]
            body = hu_slice > _BODY_HU
            rows, columns = body.sum(axis=1), body.sum(axis=0)
            if rows.any():
                centres.append((z, *(np.average(np.arange(len(side)), weights=side) for side in (rows, columns))))
    else:
        if read == depth:
            middle = float(np.median(_left_mm(np.array(centres), geometry))) if centres else None
            return hu, middle
    msg = (
        f"the scan has other slices than the label map of shape (z, y, x) {geometry.shape}: give the scan it belongs to"
    )
    raise KitsattnError(msg)


def _find_midline(
    tissue: Sequence[Floats], body_left_mm: float | None, geometry: Geometry
) -> tuple[float, Literal["kidneys", "body", "image"]]:
    """Return the midline by the rule in `measure_labels`, and what it was found from.

    Args:
        tissue: World coordinates to the left of each object's kidney tissue.
        body_left_mm: The same of the body's middle, None if it is not known.
        geometry: The grid.
    """
    middle = body_left_mm
    if middle is None:
        middle = float(_left_mm((np.array(geometry.shape) - 1) / 2, geometry))
    if len(tissue) > 1:
        smaller, larger = sorted(tissue, key=len)[-2:]
        if len(smaller) * geometry.voxel_ml >= KIDNEY_ML:
            one, other = float(smaller.mean()), float(larger.mean())
            if abs(one - other) >= _LEAST_APART_MM and abs((one + other) / 2 - middle) <= _MOST_OFF_MM:
                return (one + other) / 2, "kidneys"
    return middle, "image" if body_left_mm is None else "body"


def _side(left_mm: Floats, midline: float) -> Side | None:
    """Return on which side of the midline kidney tissue is; None for none."""
    if not len(left_mm):
        return None
    share = float((left_mm > midline).mean())
    if share > 1 - _ACROSS:
        return "left"
    return "right" if share < _ACROSS else "midline"


def _longest_axial_mm(places: NDArray[np.int32], spacing_mm: Triple) -> float:
    """Return the longest distance in one slice between middles of outer pixel edges, in mm.

    Args:
        places: (voxels, 3), the indices z, y, x; sorted, at least one.
        spacing_mm: Distance between voxel centres along z, y, x.
    """
    starts = np.append(True, np.diff(places[:, :2], axis=0).any(axis=1))
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(places)) - 1
    # The farthest pixels of a slice are among the first and last of its rows.
    ends = np.concatenate([places[first], places[last]])
    plane = np.array(spacing_mm[1:])
    slices = [ends[ends[:, 0] == z, 1:] * plane for z in np.unique(ends[:, 0])]
    extents = [float(np.hypot(*(np.ptp(points, axis=0) + plane))) for points in slices]
    longest = 0.0
    for place in np.argsort(extents)[::-1]:
        if extents[place] <= longest:
            break
        longest = max(longest, _longest_mm(slices[place], plane))
    return longest


def _longest_mm(centres: Floats, pixel: Floats) -> float:
    edges = np.array([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]]) * pixel
    points = (centres[:, None] + edges).reshape(-1, 2)
    return float(pdist(points[ConvexHull(points).vertices]).max())


def _world(places: NDArray[Any], geometry: Geometry) -> Floats:
    """Return world (Superior, Posterior, Left) of indices (…, 3)."""
    matrix = np.array(geometry.direction) * np.array(geometry.spacing_mm)
    world: Floats = places @ matrix.T + np.array(geometry.origin_mm)
    return world


def _left_mm(places: NDArray[Any], geometry: Geometry) -> Floats:
    world: Floats = _world(places, geometry)[..., _LEFT]
    return world


def _triple(values: Floats) -> Triple:
    return (float(values[0]), float(values[1]), float(values[2]))


def _reverse(values: Triple | None) -> Triple | None:
    return values and (values[2], values[1], values[0])


def _spans(names: Sequence[str], low: Sequence[float] | None, high: Sequence[float] | None) -> dict[str, Any] | None:
    """Pair the lower and higher bounds along named axes."""
    if low is None or high is None:
        return None
    return {name: [first, last] for name, first, last in zip(names, low, high, strict=True)}
