"""The kidneys of a phantom and their masses, drawn or from a label map: distances to their surfaces, and painting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.labels import BACKGROUND, CYST, KIDNEY, TUMOUR
from kitsattn.phantom.grid import Floats, Grid
from kitsattn.phantom.patient import Kidney, Mass, Patient
from kitsattn.volume.geometry import Triple

PERIRENAL_FAT_MM = 7.0
_INDENT_MM = 5.0
_MARGIN_MM = 12.0
_BEND = 0.17
"""How far a kidney's poles curve to the middle, as a share of half its length."""
_CORTEX_MM, _HALF_THICKNESS_MM = 7.0, 23.0
"""Of the kidneys of a label map."""
_MEDULLA_SHARE = 0.55
_SINUS_SHARE = 0.72
"""Depth, as a share of the half thickness, at which the renal sinus begins."""


@dataclass(frozen=True)
class MassField:
    """A mass in one slice.

    Attributes:
        look: Its tissue; None for a cyst.
        radius_mm: Its size.
        label: Its label value.
        distance_mm: To its surface, negative inside.
        blur_mm: Width of its edge.
    """

    look: Mass | None
    radius_mm: float
    label: int
    distance_mm: Floats
    blur_mm: Floats | float


@dataclass(frozen=True)
class KidneyField:
    """A kidney in one slice; all arrays have the shape of the window (rows, columns).

    Attributes:
        rows: Of the slice, where the kidney, its masses and the fat around them are.
        columns: Likewise.
        cortex_mm: Thickness of the cortex.
        half_thickness_mm: Depth of the kidney's middle.
        distance_mm: To the surface of the kidney, masses aside; negative inside.
        depth_mm: Below the capsule, the hilum aside; positive inside.
        inside: Which voxels are kidney, where no mass is.
        blur_mm: Width of the kidney's edge.
        masses: Later ones are over earlier ones.
    """

    rows: slice
    columns: slice
    cortex_mm: float
    half_thickness_mm: float
    distance_mm: Floats
    depth_mm: Floats
    inside: NDArray[np.bool_]
    blur_mm: Floats | float
    masses: tuple[MassField, ...]


class KidneyShapes(Protocol):
    """Where the kidneys are."""

    def fields(self, index: int, cavity_mm: Floats, relief: Floats) -> list[KidneyField]:
        """Return the kidneys that slice `index` cuts.

        Args:
            index: Of the slice.
            cavity_mm: (rows, columns), distance to the wall of the cavity, negative inside.
            relief: (rows, columns), smooth noise from about -1 to 1 that makes surfaces uneven.
        """


class DrawnKidneys:
    """The kidneys of a recipe."""

    def __init__(self, patient: Patient, grid: Grid) -> None:
        self._kidneys = patient.kidneys
        self._grid = grid

    def fields(self, index: int, cavity_mm: Floats, relief: Floats) -> list[KidneyField]:
        """Return the kidneys that slice `index` cuts; see `KidneyShapes`."""
        fields = (self._field(kidney, index, cavity_mm, relief) for kidney in self._kidneys)
        return [field for field in fields if field is not None]

    def _field(self, kidney: Kidney, index: int, cavity_mm: Floats, relief: Floats) -> KidneyField | None:
        low, high = _extent(kidney)
        height = float(self._grid.z_mm[index])
        rows = slice(*np.searchsorted(self._grid.y_mm, (low[1], high[1])).tolist())
        columns = slice(*np.searchsorted(self._grid.x_mm, (low[2], high[2])).tolist())
        if not low[0] < height < high[0] or rows.start == rows.stop or columns.start == columns.stop:
            return None
        z, y, x = kidney.centre_mm
        dy = (self._grid.y_mm[rows] - np.float32(y))[:, None]
        dx = (self._grid.x_mm[columns] - np.float32(x))[None, :]
        axes = kidney_axes(kidney)
        point = [
            np.float32(axis[0] * (height - z)) + dy * np.float32(axis[1]) + dx * np.float32(axis[2]) for axis in axes
        ]
        relief = relief[rows, columns]
        wall = cavity_mm[rows, columns] - np.float32(_INDENT_MM)
        masses = self._mass_fields(kidney, point, relief, wall)
        length, breadth, thickness = kidney.radii_mm
        straight = point[1] + np.float32(_BEND / length) * point[0] * point[0]
        blur_mm = self._grid.blur_mm
        capsule, blur = _to_ellipsoid((point[0], straight, point[2]), kidney.radii_mm, axes, blur_mm)
        capsule += relief
        notch = (0.3 * length, 0.6 * breadth, 0.3 * thickness)
        hilum, _ = _to_ellipsoid((point[0], straight + np.float32(breadth), point[2]), notch, axes, blur_mm)
        distance = np.maximum(capsule, -hilum)
        return KidneyField(rows, columns, kidney.cortex_mm, thickness, distance, -capsule, distance < 0, blur, masses)

    def _mass_fields(
        self, kidney: Kidney, point: Sequence[Floats], relief: Floats, wall: Floats
    ) -> tuple[MassField, ...]:
        fields = []
        axes = kidney_axes(kidney)
        labelled = [(CYST, mass) for mass in kidney.cysts] + [(TUMOUR, mass) for mass in kidney.tumours]
        for label, mass in labelled:
            moved = [along - np.float32(at) for along, at in zip(point, mass_centre(kidney, mass), strict=True)]
            distance, blur = _to_ellipsoid(moved, mass.radii_mm, axes, self._grid.blur_mm)
            radius = float(np.mean(mass.radii_mm))
            if label == TUMOUR:
                distance += np.float32(min(0.1 * radius, 2.5)) * relief
            # A mass dents the wall of the abdomen, it does not grow through it.
            look = mass if label == TUMOUR else None
            fields.append(MassField(look, radius, label, np.maximum(distance, wall), blur))
        return tuple(fields)


class LabelledKidneys:
    """The kidneys of a label map, which they follow voxel by voxel.

    Args:
        labels: (z, y, x): 0 background, 1 kidney, 2 tumour, 3 cyst.
        grid: Where its voxels are.
        tumour: The tissue of its tumours.
    """

    def __init__(self, labels: NDArray[np.uint8], grid: Grid, tumour: Mass) -> None:
        self._labels = labels
        self._spacing_mm = grid.spacing_mm
        self._blur_mm = grid.blur_mm[1]
        self._middle = int(np.searchsorted(grid.x_mm, 0.0))
        self._tumour = tumour
        volume_mm3 = np.count_nonzero(labels == TUMOUR) * float(np.prod(grid.spacing_mm))
        self._tumour_radius_mm = float(np.clip((0.75 * volume_mm3 / np.pi) ** (1.0 / 3.0), 5.0, 60.0))

    def fields(self, index: int, cavity_mm: Floats, relief: Floats) -> list[KidneyField]:
        """Return one field for each side of the slice that has labels; see `KidneyShapes`."""
        del cavity_mm, relief
        labels = self._labels[index]
        width = labels.shape[1]
        sides = (slice(0, self._middle), slice(self._middle, width))
        windows = (self._window(labels, side) for side in sides)
        return [self._field(labels, *window) for window in windows if window is not None]

    def _window(self, labels: NDArray[np.uint8], side: slice) -> tuple[slice, slice] | None:
        """Return the window of what is labelled on one side, with a margin, or None if nothing is."""
        found = labels[:, side] != BACKGROUND
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        if not len(rows):
            return None
        row_margin, column_margin = (int(np.ceil(_MARGIN_MM / spacing)) for spacing in self._spacing_mm[1:])
        top, bottom = max(rows[0] - row_margin, 0), rows[-1] + 1 + row_margin
        left = max(side.start + columns[0] - column_margin, side.start)
        right = min(side.start + columns[-1] + 1 + column_margin, side.stop)
        return slice(int(top), int(min(bottom, labels.shape[0]))), slice(int(left), int(right))

    def _field(self, slice_labels: NDArray[np.uint8], rows: slice, columns: slice) -> KidneyField:
        labels = slice_labels[rows, columns]
        masses = tuple(
            MassField(tissue, self._tumour_radius_mm, label, self._signed(labels == label), self._blur_mm)
            for label, tissue in ((CYST, None), (TUMOUR, self._tumour))
            if (labels == label).any()
        )
        kidney = (labels == KIDNEY) | (labels == CYST)
        depth = ndimage.distance_transform_edt(kidney, sampling=self._spacing_mm[1:]).astype(np.float32)
        distance = self._signed(labels != BACKGROUND)
        return KidneyField(
            rows, columns, _CORTEX_MM, _HALF_THICKNESS_MM, distance, depth, labels == KIDNEY, self._blur_mm, masses
        )

    def _signed(self, mask: NDArray[np.bool_]) -> Floats:
        """Return the distance to the mask's edge in mm, negative inside."""
        sampling = self._spacing_mm[1:]
        half = 0.5 * min(sampling)
        outside = ndimage.distance_transform_edt(~mask, sampling=sampling)
        inside = ndimage.distance_transform_edt(mask, sampling=sampling)
        return np.where(mask, half - inside, outside - half).astype(np.float32)


def paint_kidney(hu: Floats, coarse: Floats, texture: Floats, field: KidneyField, patient: Patient) -> None:
    """Paint a kidney and its masses into a slice, in place.

    Args:
        hu: (rows, columns), the slice.
        coarse: (rows, columns), smooth noise that places the pyramids of the medulla.
        texture: (rows, columns), finer noise.
        field: Where the kidney is.
        patient: Whose kidney it is.
    """
    window = (field.rows, field.columns)
    target, coarse, texture = hu[window], coarse[window], texture[window]
    depth = field.depth_mm
    cortex, medulla = patient.hu("renal cortex"), patient.hu("renal medulla")
    pyramids = _ramp(depth - np.float32(field.cortex_mm), 2.5) * np.clip(_MEDULLA_SHARE + 3.0 * coarse, 0.0, 1.0)
    sinus = _ramp(depth - np.float32(_SINUS_SHARE * field.half_thickness_mm) + 3.0 * texture, 3.0)
    inside = cortex + np.float32(medulla - cortex) * pyramids
    inside += sinus * (0.75 * np.float32(patient.hu("urine") + 12.0) + 0.25 * np.float32(cortex) - inside)
    inside += 5.0 * texture
    target += _ramp(-field.distance_mm, field.blur_mm) * (inside - target)
    for mass in field.masses:
        tissue = _mass_hu(mass, coarse, texture, patient)
        target += _ramp(-mass.distance_mm, mass.blur_mm) * (tissue - target)


def _mass_hu(mass: MassField, coarse: Floats, texture: Floats, patient: Patient) -> Floats | np.float32:
    look, radius = mass.look, np.float32(mass.radius_mm)
    if look is None:
        return np.float32(patient.hu("cyst"))
    tissue = np.float32(look.solid_hu(patient.phase)) + np.float32(look.mottle_hu) * texture
    if look.necrosis:
        ragged = np.float32(min(0.3 * mass.radius_mm, 6.0)) * coarse
        core = ragged - mass.distance_mm - np.float32(1.0 - look.necrosis) * radius
        tissue += _ramp(core, 4.0) * (np.float32(patient.hu("necrosis")) - tissue)
    return tissue


def label_kidney(labels: NDArray[np.uint8], field: KidneyField, *, cysts: bool) -> None:
    """Write a kidney and its masses into a slice of a label map, in place.

    Args:
        labels: (rows, columns), the slice.
        field: Where the kidney is.
        cysts: Whether cysts keep a label of their own; otherwise they count as kidney, as in KiTS19.
    """
    target = labels[field.rows, field.columns]
    target[field.inside] = KIDNEY
    for mass in field.masses:
        target[mass.distance_mm < 0] = mass.label if cysts or mass.label != CYST else KIDNEY


def perirenal_fat(field: KidneyField) -> Floats:
    """Return how much of each voxel of a kidney's window is taken by the kidney, its masses and the fat around."""
    distance = field.distance_mm
    for mass in field.masses:
        distance = np.minimum(distance, mass.distance_mm)
    return _ramp(np.float32(PERIRENAL_FAT_MM) - distance, 4.0)


def kidney_axes(kidney: Kidney) -> NDArray[np.float64]:
    """Return a kidney's axes, (3, 3): rows along its length (up), breadth (lateral) and thickness (anterior)."""
    medial, back, turn = np.radians(kidney.tilt_deg)
    length = np.array([1.0, np.tan(back), -kidney.side * np.tan(medial)])
    length /= np.sqrt(np.sum(length * length))
    lateral = np.array([0.0, np.sin(turn), kidney.side * np.cos(turn)])
    lateral -= length * np.sum(length * lateral)
    lateral /= np.sqrt(np.sum(lateral * lateral))
    anterior = np.cross(length, lateral)
    return np.stack([length, lateral, -anterior if anterior[1] > 0 else anterior])


def _extent(kidney: Kidney) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lowest and the highest (z, y, x) that a kidney, its masses and the fat around them reach."""
    axes, centre = kidney_axes(kidney), np.array(kidney.centre_mm)
    balls = [(np.zeros(3), 1.2 * max(kidney.radii_mm))]
    balls += [(axes.T @ mass_centre(kidney, mass), 1.2 * max(mass.radii_mm)) for mass in kidney.masses]
    low = centre + np.min([at - reach for at, reach in balls], axis=0) - _MARGIN_MM
    high = centre + np.max([at + reach for at, reach in balls], axis=0) + _MARGIN_MM
    return low, high


def mass_centre(kidney: Kidney, mass: Mass) -> NDArray[np.float64]:
    """Return the centre of a mass along the kidney's axes, in mm from the kidney's centre."""
    direction, radii = np.array(mass.direction), np.array(kidney.radii_mm)
    surface = direction / np.sqrt(np.sum((direction / radii) ** 2))
    surface[1] -= _BEND / radii[0] * surface[0] ** 2
    centre: NDArray[np.float64] = surface + direction * mass.offset * float(np.mean(mass.radii_mm))
    return centre


def _to_ellipsoid(
    point: Sequence[Floats], radii_mm: Triple, axes: NDArray[np.float64], blur_mm: Triple
) -> tuple[Floats, Floats]:
    """Return about how far points are from an ellipsoid's surface, and how wide the grid blurs it there.

    With f = |p / r| the distance is (f - 1) / |grad f|, exact at the surface to first order.
    """
    scaled = [along * np.float32(1.0 / radius) for along, radius in zip(point, radii_mm, strict=True)]
    square = scaled[0] * scaled[0] + scaled[1] * scaled[1] + scaled[2] * scaled[2]
    slope = [along * np.float32(1.0 / radius) for along, radius in zip(scaled, radii_mm, strict=True)]
    steep = slope[0] * slope[0] + slope[1] * slope[1] + slope[2] * slope[2] + np.float32(1e-9)
    upwards = slope[0] * np.float32(axes[0, 0]) + slope[1] * np.float32(axes[1, 0]) + slope[2] * np.float32(axes[2, 0])
    upwards *= upwards
    upwards /= steep
    across = np.float32(blur_mm[1] * blur_mm[2])
    blur = np.sqrt(across + upwards * (np.float32(blur_mm[0] ** 2) - across))
    return (square - np.sqrt(square)) / np.sqrt(steep), blur


def _ramp(inside_mm: Floats, width_mm: Floats | float) -> Floats:
    """Return 0 outside, 1 inside, and a slope of `width_mm` between."""
    share = inside_mm / (np.float32(width_mm) if isinstance(width_mm, float) else width_mm)
    share += np.float32(0.5)
    return np.clip(share, np.float32(0.0), np.float32(1.0), out=share)
