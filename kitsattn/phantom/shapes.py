"""What the organs of a phantom are built from: ellipsoids in body coordinates, alone or in chains.

Body coordinates are (z, y, x) in mm, growing to Superior, Posterior and Left, from the centre of the second lumbar
vertebra. Measures are those of an average adult, taken from general anatomical knowledge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kitsattn.phantom.outline import Outline
from kitsattn.phantom.patient import Patient, Purpose, stream
from kitsattn.volume.geometry import Triple

Layer = Literal["abdomen", "retroperitoneum"]
"""Painted before the perirenal fat, and after it."""

_UPRIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_SHORTEST_LINK_MM = 9.0
_NEARLY_UPRIGHT = 0.95
_EVERYWHERE = (-np.inf, np.inf)

_SPINE_Z_MM = (-190.0, -150.0, -110.0, -60.0, 0.0, 60.0, 120.0, 220.0, 320.0)
_SPINE_Y_MM = (48.0, 26.0, 4.0, -5.0, 0.0, 6.0, 14.0, 24.0, 20.0)
"""Lordosis of the loin, sacrum and kyphosis of the chest: how far posterior the vertebral bodies' centres are."""


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """A solid of one mean Hounsfield value.

    Attributes:
        centre_mm: In body coordinates.
        radii_mm: Semi-axes.
        axes: Row i is the unit vector, (z, y, x), of semi-axis i.
        hu: Mean value.
        mottle_hu: Amplitude of its heterogeneity.
        z_mm: The range of heights that it is cut to.
        above_mm: It fills only what is anterior of this y, as gas does in a patient who is on the back.
        in_cavity: Whether it is cut to the abdominal cavity.
    """

    centre_mm: NDArray[np.float64]
    radii_mm: NDArray[np.float64]
    axes: NDArray[np.float64]
    hu: float
    mottle_hu: float = 0.0
    z_mm: tuple[float, float] = _EVERYWHERE
    above_mm: float = np.inf
    in_cavity: bool = False


class Builder:
    """Collects the ellipsoids of one patient; every measure it takes is that of an average adult."""

    def __init__(self, patient: Patient, outline: Outline) -> None:
        self.patient = patient
        self.outline = outline
        self.rng = stream(patient.seed, Purpose.ANATOMY)
        self.layers: dict[Layer, list[Ellipsoid]] = {"abdomen": [], "retroperitoneum": []}

    def abdominal(self, point: ArrayLike) -> NDArray[np.float64]:
        """Return where an organ's point is in this patient: fat moves the organs of the abdomen outwards."""
        z, y, x = np.asarray(point, dtype=np.float64)
        stretch_y = self.outline.stretch_front if y < 0 else 1.0
        return np.array([z, y * stretch_y, x * self.outline.stretch_side]) * self.patient.frame

    def on_spine(self, point: ArrayLike) -> NDArray[np.float64]:
        """Return where a point given relative to the vertebral bodies' centres is in this patient."""
        z, y, x = np.asarray(point, dtype=np.float64)
        return np.array([z, y + spine_y(z), x]) * self.patient.frame

    def organ(
        self,
        tissue: str,
        centre: Triple,
        radii: Triple,
        *,
        turn_deg: float = 0.0,
        mottle_hu: float = 3.0,
        above: float = np.inf,
        size: float = 1.0,
    ) -> None:
        """Add an abdominal organ; `turn_deg` turns it in the axial plane, from Left towards Posterior."""
        fit = np.array([1.0, self.outline.stretch_front, self.outline.stretch_side])
        self.layers["abdomen"].append(
            Ellipsoid(
                self.abdominal(centre),
                np.array(radii) * size * self.patient.frame * np.sqrt(fit),
                _turned(turn_deg),
                self.patient.hu(tissue),
                mottle_hu,
                above_mm=above,
                in_cavity=True,
            )
        )

    def part(
        self,
        tissue: str,
        centre: Triple,
        radii: Triple,
        *,
        turn_deg: float = 0.0,
        mottle_hu: float = 3.0,
        z: tuple[float, float] = _EVERYWHERE,
        hu: float | None = None,
    ) -> None:
        """Add a part of the frame, given relative to the vertebral bodies' centres; `z` cuts it to a range."""
        frame = self.patient.frame
        self.layers["retroperitoneum"].append(
            Ellipsoid(
                self.on_spine(centre),
                np.array(radii) * frame,
                _turned(turn_deg),
                self.patient.hu(tissue) if hu is None else hu,
                mottle_hu,
                z_mm=(z[0] * frame, z[1] * frame),
            )
        )

    def tube(
        self,
        tissue: str,
        points: Sequence[NDArray[np.float64]],
        radii: ArrayLike,
        *,
        layer: Layer = "retroperitoneum",
        flat: float = 1.0,
        mottle_hu: float = 3.0,
    ) -> None:
        """Add a tube along points in body coordinates, as overlapping ellipsoids.

        Args:
            tissue: What it is made of.
            points: At least two.
            radii: One for all, or one a point.
            layer: When it is painted.
            flat: Its radius upwards, relative to that sideways: above 1 for the ribs' upright section.
            mottle_hu: Amplitude of its heterogeneity.
        """
        frame = self.patient.frame
        each = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(points))
        path = np.array(points)
        length = np.concatenate(([0.0], np.cumsum(_norm(np.diff(path, axis=0)))))
        # Thin tubes need no more links than their bends ask for.
        step = max(1.05 * float(each.max()) * max(flat, 1.0), _SHORTEST_LINK_MM) * frame
        count = max(2, round(float(length[-1]) / step) + 1)
        at = np.linspace(0.0, length[-1], count)
        centres = np.stack([np.interp(at, length, path[:, axis]) for axis in range(3)], axis=1)
        for _ in range(2):
            centres[1:-1] = 0.5 * centres[1:-1] + 0.25 * (centres[:-2] + centres[2:])
        tangents = np.gradient(centres, axis=0)
        half = 1.55 * length[-1] / (count - 1)
        for centre, tangent, radius in zip(centres, tangents, np.interp(at, length, each), strict=True):
            axes = _along(tangent)
            radii_mm = np.array([max(half, radius * frame), radius * frame * flat, radius * frame])
            self.layers[layer].append(
                Ellipsoid(centre, radii_mm, axes, self.patient.hu(tissue), mottle_hu, in_cavity=layer == "abdomen")
            )


def spine_y(z: float) -> float:
    """Return how far posterior the vertebral bodies' centres are at height `z`, in an average adult's mm."""
    return float(np.interp(z, _SPINE_Z_MM, _SPINE_Y_MM))


def _turned(degrees: float) -> NDArray[np.float64]:
    axes = np.array(_UPRIGHT)
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    axes[1:, 1:] = [[cosine, -sine], [sine, cosine]]
    return axes


def _along(tangent: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return axes whose first is the tangent and whose second is as upright as can be."""
    first = tangent / _norm(tangent)
    upright = np.array([1.0, 0.0, 0.0]) if abs(first[0]) < _NEARLY_UPRIGHT else np.array([0.0, 1.0, 0.0])
    second = upright - first * np.sum(upright * first)
    second /= _norm(second)
    return np.stack([first, second, _cross(first, second)])


def _cross(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cross product; for two vectors this is 15 times as fast as numpy's."""
    (a, b, c), (d, e, f) = one.tolist(), other.tolist()
    return np.array([b * f - c * e, c * d - a * f, a * e - b * d])


def _norm(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length: NDArray[np.float64] = np.sqrt(np.sum(vectors * vectors, axis=-1))
    return length
