"""The layers of a phantom's trunk: skin, fascia, muscle wall and cavity as radii around an axis, and the diaphragm."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kitsattn.phantom.patient import Patient, Purpose, stream

DIRECTIONS = 2048
"""How many directions the radii are tabulated in: 0.6 mm apart at the skin."""

_ANGLE = (np.arange(DIRECTIONS) + 0.5) * (2.0 * np.pi / DIRECTIONS) - np.pi
_COSINE, _SINE = np.cos(_ANGLE), np.sin(_ANGLE)
_IN_FRONT = _SINE < 0
"""Directions: 0 is Left, a quarter turn is Posterior."""

_AXIS_Y_MM = -25.0
_SIDE_MM, _FRONT_MM, _BACK_MM = 133.0, 84.0, 71.0
_FASCIA_BACK_MM = 108.0
_SKIN_MM = 1.8

_HEIGHTS_MM = (-260.0, -160.0, -40.0, 60.0, 140.0, 300.0)
_WIDTH_AT = (1.00, 1.02, 0.97, 1.00, 0.99, 0.96)
_DEPTH_AT = (0.92, 0.95, 0.98, 1.00, 0.97, 0.92)
"""Hips, waist and chest: width and depth relative to the upper abdomen."""


@dataclass(frozen=True)
class Layers:
    """The trunk at one height, as radii in mm around the axis, one per direction, (DIRECTIONS,) float32.

    Attributes:
        skin: Where the air begins.
        fat: Where the skin begins.
        fascia: Where the subcutaneous fat begins; the muscles of the back are inside.
        muscle: Where the muscle wall ends.
        cavity: Where the abdominal or thoracic cavity ends.
    """

    skin: NDArray[np.float32]
    fat: NDArray[np.float32]
    fascia: NDArray[np.float32]
    muscle: NDArray[np.float32]
    cavity: NDArray[np.float32]


class Outline:
    """The trunk of one patient.

    Attributes:
        axis_y_mm: Body coordinate y of the axis that the radii are measured from; its x is 0.
        stretch_side: How much wider the cavity is than that of a lean patient of the same frame.
        stretch_front: The same to anterior.
    """

    def __init__(self, patient: Patient) -> None:
        frame = patient.frame
        self._patient = patient
        self._side_mm = _SIDE_MM * frame + patient.visceral_mm
        self._front_mm = _FRONT_MM * frame + 1.3 * patient.visceral_mm
        self.axis_y_mm = _AXIS_Y_MM * frame
        self.stretch_side = self._side_mm / (_SIDE_MM * frame)
        self.stretch_front = (self._front_mm - self.axis_y_mm) / ((_FRONT_MM - _AXIS_Y_MM) * frame)
        rng = stream(patient.seed, Purpose.OUTLINE)
        self._wave = [
            (order, rng.uniform(0.3, 1.1), rng.uniform(0.0, 2.0 * np.pi), rng.uniform(-0.02, 0.02))
            for order in (2, 3, 4, 5, 7)
        ]

    @property
    def half_width_mm(self) -> float:
        """Half the greatest width of the body."""
        return self._side_mm * max(_WIDTH_AT) + 13.0 * self._patient.frame + self._patient.subcutaneous_mm

    @property
    def back_mm(self) -> float:
        """Body coordinate y of the back."""
        return self.axis_y_mm + _FASCIA_BACK_MM * self._patient.frame + 0.8 * self._patient.subcutaneous_mm

    def layers(self, z_mm: float) -> Layers:
        """Return the trunk's layers at a height in body coordinates."""
        frame = self._patient.frame
        width = float(np.interp(z_mm / frame, _HEIGHTS_MM, _WIDTH_AT))
        depth = float(np.interp(z_mm / frame, _HEIGHTS_MM, _DEPTH_AT))
        side, front = self._side_mm * width, self._front_mm * depth
        cavity = np.where(_IN_FRONT, _superellipse(side, front, 2.15), _superellipse(side, _BACK_MM * frame, 2.9))
        fascia = np.where(
            _IN_FRONT,
            _superellipse(side + 13.0 * frame, front + 11.0 * frame, 2.15),
            _superellipse(side + 13.0 * frame, _FASCIA_BACK_MM * frame, 2.4),
        )
        # The white line between the straight muscles, and the furrow over the spine.
        midline = np.exp(-((_COSINE / 0.03) ** 2))
        muscle = np.minimum(cavity + frame * (11.5 - 2.5 * _SINE * _SINE - 5.0 * midline * _IN_FRONT), fascia)
        share = 0.85 + 0.15 * np.cos(2.0 * _ANGLE) - 0.2 * np.exp(-((_COSINE / 0.35) ** 2)) * ~_IN_FRONT
        fat = self._patient.subcutaneous_mm * share
        for order, amplitude, phase, pitch in self._wave:
            fat = fat + amplitude * np.cos(order * _ANGLE + phase + pitch * z_mm)
        fat = np.maximum(fat, 2.5) - 5.0 * frame * np.exp(-((_COSINE / 0.12) ** 2)) * ~_IN_FRONT
        skin = fascia + fat + _SKIN_MM
        return Layers(*(radii.astype(np.float32) for radii in (skin, skin - _SKIN_MM, fascia, muscle, cavity)))

    def diaphragm_mm(self, y_mm: NDArray[np.float64], x_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the height of the diaphragm's two domes; where the mediastinum is, above any chest.

        Args:
            y_mm: Body coordinates, of any shape.
            x_mm: Of the same shape.
        """
        frame = self._patient.frame
        heights = []
        for top, x in ((126.0, -62.0), (114.0, 62.0)):
            across = (x_mm / (frame * self.stretch_side) - x) / 80.0
            along = (np.where(y_mm < 0, y_mm / self.stretch_front, y_mm) / frame + 42.0) / 95.0
            square = across * across + along * along
            heights.append((top - 66.0 * square * square) * frame)
        beside = np.abs(x_mm - 4.0 * frame) / frame
        half_width = 14.0 + 18.0 * np.exp(-(((y_mm / frame + 45.0) / 32.0) ** 2))
        mediastinum = 600.0 * np.clip((half_width + 6.0 - beside) / 14.0, 0.0, 1.0)
        return np.maximum(heights[0], heights[1]) + mediastinum


def _superellipse(side: float, depth: float, exponent: float) -> NDArray[np.float64]:
    radii: NDArray[np.float64] = (np.abs(_COSINE / side) ** exponent + np.abs(_SINE / depth) ** exponent) ** (
        -1.0 / exponent
    )
    return radii


def direction_bins(y_mm: NDArray[np.float64], x_mm: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return which tabulated direction each point is in, seen from the axis at (0, 0)."""
    turns = (np.arctan2(y_mm, x_mm) + np.pi) * (DIRECTIONS / (2.0 * np.pi))
    return np.clip(np.floor(turns), 0, DIRECTIONS - 1).astype(np.int32)
