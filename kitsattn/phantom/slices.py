"""Painting the axial slices of a phantom, each on its own, so that their order and number change nothing.

Voxels are computed with additions, multiplications, divisions and square roots only, whose results are the same on
every machine; other functions are confined to tables.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kitsattn.phantom.anatomy import build_anatomy
from kitsattn.phantom.grid import Floats, Grid, Texture
from kitsattn.phantom.kidneys import KidneyShapes, label_kidney, paint_kidney, perirenal_fat
from kitsattn.phantom.outline import Outline, direction_bins
from kitsattn.phantom.patient import Patient, Purpose, stream
from kitsattn.phantom.shapes import Ellipsoid

_LOWEST_HU, _HIGHEST_HU = -1024, 3071
_DIAPHRAGM_MM = 3.0
_LEAST_FORM = np.float32(1e-9)
"""Keeps rounding from making a square negative, and the middle of an ellipsoid from dividing 0 by 0."""


class Stack:
    """The ellipsoids of one layer, ready to be painted into any slice of a grid."""

    def __init__(self, shapes: Sequence[Ellipsoid], grid: Grid) -> None:
        self._shapes = shapes
        self._y_mm, self._x_mm = grid.y_mm, grid.x_mm
        self._blur_mm = blur_mm = grid.blur_mm
        scaled = np.array([shape.axes / shape.radii_mm[:, None] for shape in shapes])
        square = np.matmul(scaled.transpose(0, 2, 1), scaled)
        # Both quadratic forms of each ellipsoid, (count, 2, 3, 3): where it is, and how steep its edge is.
        self._forms = np.stack([square, np.matmul(square * (np.array(blur_mm) ** 2), square)], axis=1)
        spread = np.array([shape.axes * shape.radii_mm[:, None] for shape in shapes])
        # Row and column z of the ellipsoid's shape matrix say how far it reaches up and how its sections shift.
        moments = np.matmul(spread.transpose(0, 2, 1), spread)
        self._centre = np.array([shape.centre_mm for shape in shapes])
        self._reach = np.sqrt(moments[:, 0, 0])
        self._shift = moments[:, 0, 1:] / moments[:, 0, :1]
        diagonal = np.stack([moments[:, 1, 1], moments[:, 2, 2]], axis=1)
        self._section = np.sqrt(np.maximum(diagonal - self._shift * moments[:, 0, 1:], 0.0))
        limits = np.array([shape.z_mm for shape in shapes])
        self._low = np.maximum(self._centre[:, 0] - self._reach, limits[:, 0]) - blur_mm[0]
        self._high = np.minimum(self._centre[:, 0] + self._reach, limits[:, 1]) + blur_mm[0]

    def paint(self, hu: Floats, z_mm: float, texture: Floats, cavity: Floats) -> None:
        """Paint what the slice at height `z_mm` cuts, in order and in place.

        Args:
            hu: (rows, columns), the slice.
            z_mm: In body coordinates.
            texture: (rows, columns), smooth noise from about -1 to 1.
            cavity: (rows, columns), the share of each voxel that is in the cavity.
        """
        chosen = np.flatnonzero((self._low < z_mm) & (z_mm < self._high))
        windows = self._windows(chosen, z_mm)
        cut = self._cut(chosen, z_mm)
        for index, (top, bottom, left, right), form in zip(chosen.tolist(), windows, cut, strict=True):
            if top == bottom or left == right:
                continue
            rows, columns = slice(top, bottom), slice(left, right)
            shape = self._shapes[index]
            share = self._share(shape, form, z_mm, rows, columns)
            if shape.in_cavity:
                share *= cavity[rows, columns]
            target = hu[rows, columns]
            tissue: Floats | np.float32 = np.float32(shape.hu)
            if shape.mottle_hu:
                tissue = texture[rows, columns] * np.float32(shape.mottle_hu) + tissue
            share *= tissue - target
            target += share

    def _windows(self, chosen: NDArray[np.intp], z_mm: float) -> list[list[int]]:
        """Return first and last row and column of the section of each chosen ellipsoid, edges included."""
        blur_z = self._blur_mm[0]
        dz = z_mm - self._centre[chosen, 0]
        height = np.maximum(np.abs(dz) - blur_z, 0.0) / self._reach[chosen]
        width = np.sqrt(np.maximum(1.0 - height * height, 0.0))[:, None]
        shift = self._shift[chosen]
        middle = self._centre[chosen, 1:] + shift * dz[:, None]
        reach = self._section[chosen] * width + np.abs(shift) * blur_z + np.array(self._blur_mm[1:])
        low, high = middle - reach, middle + reach
        rows = np.searchsorted(self._y_mm, (low[:, 0], high[:, 0]))
        columns = np.searchsorted(self._x_mm, (low[:, 1], high[:, 1]))
        windows: list[list[int]] = np.concatenate([rows, columns]).T.tolist()
        return windows

    def _cut(self, chosen: NDArray[np.intp], z_mm: float) -> Floats:
        """Return both forms of each chosen ellipsoid in the plane: (count, 6, 2), for 1, y, x, y², x² and yx."""
        forms = self._forms[chosen]
        dz = (z_mm - self._centre[chosen, 0])[:, None]
        terms = [
            forms[:, :, 0, 0] * dz * dz,
            2.0 * forms[:, :, 0, 1] * dz,
            2.0 * forms[:, :, 0, 2] * dz,
            forms[:, :, 1, 1],
            forms[:, :, 2, 2],
            2.0 * forms[:, :, 1, 2],
        ]
        return np.stack(terms, axis=1).astype(np.float32)

    def _share(self, shape: Ellipsoid, form: Floats, z_mm: float, rows: slice, columns: slice) -> Floats:
        """Return how much of each voxel the ellipsoid fills, from 0 to 1.

        With p from the centre, q = |p / r|² and f = sqrt(q), the distance to the surface in voxels is
        (f - 1) / |S grad f| = (q - f) / sqrt(g), where q and g are quadratic forms of p.
        """
        dy = self._y_mm[rows] - np.float32(shape.centre_mm[1])
        dx = self._x_mm[columns] - np.float32(shape.centre_mm[2])
        constant, y, x, yy, xx, yx = form[:, :, None]
        lines = ((yy * dy + y) * dy + constant)[:, :, None]
        forms = lines + ((xx * dx + x) * dx)[:, None, :]
        if yx[0, 0]:
            forms += (yx * dy)[:, :, None] * dx
        np.maximum(forms, _LEAST_FORM, out=forms)
        share: Floats
        share, steep = np.sqrt(forms)
        share -= forms[0]
        share /= steep
        share += np.float32(0.5)
        np.clip(share, np.float32(0.0), np.float32(1.0), out=share)
        low, high = shape.z_mm
        if math.isfinite(low) or math.isfinite(high):
            depth = min(z_mm - low, high - z_mm) / self._blur_mm[0]
            share *= np.float32(min(max(depth + 0.5, 0.0), 1.0))
        if math.isfinite(shape.above_mm):
            above = (np.float32(shape.above_mm) - self._y_mm[rows]) * np.float32(1.0 / self._blur_mm[1])
            share *= np.clip(above + np.float32(0.5), np.float32(0.0), np.float32(1.0))[:, None]
        return share


class Scene:
    """A patient on a grid, of which slices can be painted one by one.

    Args:
        patient: The recipe.
        grid: Where the voxels are.
        kidneys: Where the kidneys are.
    """

    def __init__(self, patient: Patient, grid: Grid, kidneys: KidneyShapes) -> None:
        self.patient = patient
        self._grid = grid
        self._kidneys = kidneys
        self._outline = Outline(patient)
        layers = build_anatomy(patient, self._outline)
        self._abdomen = Stack(layers["abdomen"], grid)
        self._retroperitoneum = Stack(layers["retroperitoneum"], grid)
        rng = stream(patient.seed, Purpose.TEXTURE)
        self._coarse = Texture(rng, 9.0 * patient.frame, grid)
        self._fine = Texture(rng, 3.6 * patient.frame, grid)
        y, x = np.meshgrid(grid.y_mm.astype(np.float64), grid.x_mm.astype(np.float64), indexing="ij")
        from_axis = y - self._outline.axis_y_mm
        self._bins = direction_bins(from_axis, x)
        self._radius_mm = np.sqrt(from_axis * from_axis + x * x).astype(np.float32)
        self._dome_mm = self._outline.diaphragm_mm(y, x).astype(np.float32)
        slope_y, slope_x = (
            np.gradient(self._dome_mm, step, axis=axis) for axis, step in enumerate(grid.spacing_mm[1:])
        )
        steep = (slope_y * slope_y + slope_x * slope_x) * np.float32(grid.spacing_mm[1] * grid.spacing_mm[2])
        self._dome_blur_mm = np.sqrt(steep + np.float32(grid.spacing_mm[0] ** 2 + 1.0))

    def paint_slice(self, index: int, *, cysts: bool = False) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """Return one slice and its labels, (rows, columns).

        Args:
            index: Of the slice, from the lowest.
            cysts: Whether cysts keep the label `CYST`; otherwise they count as kidney.
        """
        z_mm = float(self._grid.z_mm[index])
        coarse = self._coarse.at(z_mm)
        texture = coarse * np.float32(0.55)
        texture += self._fine.at(z_mm) * np.float32(0.75)
        hu = self._table.copy()
        cavity_mm, cavity = self._paint_trunk(hu, z_mm, texture)
        self._abdomen.paint(hu, z_mm, texture, cavity)
        self._paint_lungs(hu, z_mm, texture, cavity)
        fields = self._kidneys.fields(index, cavity_mm, coarse)
        fat = np.float32(self.patient.hu("fat"))
        for field in fields:
            target = hu[field.rows, field.columns]
            target += perirenal_fat(field) * (fat - target)
        self._retroperitoneum.paint(hu, z_mm, texture, cavity)
        labels = np.zeros(hu.shape, np.uint8)
        for field in fields:
            paint_kidney(hu, coarse, texture, field, self.patient)
            label_kidney(labels, field, cysts=cysts)
        hu += self._noise(index)
        np.rint(hu, out=hu)
        np.clip(hu, _LOWEST_HU, _HIGHEST_HU, out=hu)
        return hu.astype(np.int16), labels

    def _paint_trunk(self, hu: Floats, z_mm: float, texture: Floats) -> tuple[Floats, Floats]:
        """Paint skin, fat, and muscle wall; return the distance to the cavity and each voxel's share of it."""
        patient, layers = self.patient, self._outline.layers(z_mm)
        width = np.float32(1.0 / self._grid.blur_mm[1])

        def share_within(radii: Floats) -> tuple[Floats, Floats]:
            beyond = self._radius_mm - radii.take(self._bins)
            share = np.float32(0.5) - beyond * width
            return beyond, np.clip(share, np.float32(0.0), np.float32(1.0), out=share)

        fat = texture * np.float32(5.0) + np.float32(patient.hu("fat"))
        muscle = texture * np.float32(8.0) + np.float32(patient.hu("muscle"))
        for radii, tissue in (
            (layers.skin, np.float32(patient.hu("skin"))),
            (layers.fat, fat),
            (layers.muscle, muscle),
        ):
            _, share = share_within(radii)
            share *= tissue - hu
            hu += share
        beyond, cavity = share_within(layers.cavity)
        # Fat between the flat muscles of the flank.
        between = np.float32(1.0) - np.abs(beyond - np.float32(5.0 * patient.frame)) * np.float32(0.7)
        np.maximum(between, np.float32(0.0), out=between)
        between *= self._flank
        hu += between * (fat - hu)
        hu += cavity * (fat - hu)
        return beyond, cavity

    def _paint_lungs(self, hu: Floats, z_mm: float, texture: Floats, cavity: Floats) -> None:
        above = np.float32(z_mm) - self._dome_mm
        if float(above.max()) < -2.0 * _DIAPHRAGM_MM - self._grid.spacing_mm[0]:
            return
        lung = np.float32(self.patient.hu("lung")) + np.float32(45.0) * texture
        for shift, tissue in ((_DIAPHRAGM_MM, np.float32(self.patient.hu("muscle"))), (0.0, lung)):
            share = (above + np.float32(shift)) / self._dome_blur_mm
            share += np.float32(0.5)
            np.clip(share, np.float32(0.0), np.float32(1.0), out=share)
            share *= cavity
            share *= tissue - hu
            hu += share

    def _noise(self, index: int) -> Floats:
        """Return the slice's noise: correlated over about 1 mm, as reconstruction kernels leave it."""
        white = stream(self.patient.seed, Purpose.NOISE, index).random(self._radius_mm.shape, dtype=np.float32)
        white -= np.float32(0.5)
        spread = 1.0 / 12.0
        for axis in (0, 1):
            tail = 0.5 * min(1.0, 0.75 / self._grid.spacing_mm[1 + axis])
            white = _smooth(white, axis, np.float32(tail))
            spread *= 1.0 + 2.0 * tail * tail
        white *= self._noise_hu
        white *= np.float32(1.0 / math.sqrt(spread))
        return white

    @cached_property
    def _flank(self) -> Floats:
        """How much fat is between the muscles of the wall: most at the sides, none in front and behind."""
        sideways = self._grid.x_mm[None, :] / np.maximum(self._radius_mm, np.float32(1.0))
        return np.clip(np.float32(1.6) * sideways * sideways - np.float32(0.8), np.float32(0.0), np.float32(0.6))

    @cached_property
    def _noise_hu(self) -> Floats:
        """Standard deviation of the noise: small voxels have more, the middle of the body has most."""
        thickness, pixel = min(max(self._grid.spacing_mm[0], 1.25), 5.0), max(self._grid.spacing_mm[1], 0.8)
        level = self.patient.noise_hu * (5.0 / thickness) ** 0.4 * (0.8 / pixel) ** 0.5
        share = self._radius_mm * np.float32(1.0 / self._outline.half_width_mm)
        return np.float32(level) / (np.float32(0.85) + np.float32(0.6) * share * share)

    @cached_property
    def _table(self) -> Floats:
        """Air, and the table below the patient: a curved shell around foam."""
        air, shell, core = (np.float32(self.patient.hu(tissue)) for tissue in ("air", "table shell", "table core"))
        hu = np.full(self._radius_mm.shape, air)
        x = self._grid.x_mm[None, :].astype(np.float64)
        top = self._outline.back_mm + 5.0 - 0.0011 * x * x
        bottom = self._outline.back_mm + 34.0 - 0.0006 * x * x
        half_width = 215.0
        for inset, tissue in ((0.0, shell), (2.2, core)):
            y = self._grid.y_mm[:, None].astype(np.float64)
            depth = np.minimum(np.minimum(y - top, bottom - y), half_width - np.abs(x)) - inset
            share = np.clip(depth / self._grid.blur_mm[1] + 0.5, 0.0, 1.0).astype(np.float32)
            hu += share * (tissue - hu)
        return hu


def _smooth(values: Floats, axis: int, tail: np.float32) -> Floats:
    """Add to each value its two neighbours along an axis, weighted with `tail`; the array wraps around."""
    turned = values if axis == 0 else values.T
    smoothed = turned.copy()
    smoothed[1:] += tail * turned[:-1]
    smoothed[:-1] += tail * turned[1:]
    smoothed[0] += tail * turned[-1]
    smoothed[-1] += tail * turned[0]
    return smoothed if axis == 0 else smoothed.T
