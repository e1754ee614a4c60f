"""What a phantom patient is made of: Hounsfield values, and a recipe drawn from a seed. Synthetic, no real patient."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.volume.geometry import Triple

Phase = Literal["plain", "arterial", "portal", "excretory"]
"""Without contrast medium; about 30 s, 80 s and 8 min after it."""


class Purpose(IntEnum):
    """What random numbers are drawn for; each purpose has a stream of its own."""

    RECIPE = 0
    ANATOMY = 1
    OUTLINE = 2
    TEXTURE = 3
    NOISE = 4
    FIELD_OF_VIEW = 5
    TUMOUR_TISSUE = 6
    CASE = 7


_COLUMN: Mapping[Phase, int] = {"plain": 0, "arterial": 1, "portal": 2, "excretory": 3}

_ANY_PHASE: Mapping[str, float] = {
    "air": -1000,
    "lung": -850,
    "fat": -105,
    "skin": 10,
    "gas": -950,
    "bile": 8,
    "stool": -20,
    "chyme": 25,
    "oral contrast": 260,
    "cyst": 8,
    "necrosis": 20,
    "disc": 90,
    "canal": 28,
    "cartilage": 110,
    "trabecular bone": 190,
    "cortical bone": 620,
    "calcification": 700,
    "table shell": 60,
    "table core": -880,
}

_BY_PHASE: Mapping[str, tuple[float, float, float, float]] = {
    "muscle": (52, 56, 62, 60),
    "liver": (56, 72, 112, 92),
    "spleen": (48, 125, 122, 95),
    "pancreas": (40, 105, 95, 75),
    "bowel wall": (38, 85, 82, 65),
    "adrenal": (25, 60, 70, 50),
    "artery": (42, 290, 150, 100),
    "vein": (42, 110, 150, 102),
    "portal vein": (42, 105, 165, 105),
    "heart": (42, 210, 145, 100),
    "renal cortex": (35, 200, 182, 145),
    "renal medulla": (32, 92, 168, 150),
    "urine": (4, 6, 14, 480),
}
"""One value per phase, in the order of `_COLUMN`."""

_ENHANCEMENT: Mapping[Phase, float] = {"plain": 0.0, "arterial": 1.0, "portal": 0.85, "excretory": 0.5}
"""How much of its greatest enhancement a renal tumour shows."""

_TUMOUR_PLAIN_HU = 35.0

_ROOM_BEHIND_MM, _ROOM_INSIDE_MM = 16.0, 22.0
"""The greatest radius of a tumour behind the kidney, and of one whose middle is in the kidney."""
_LEAST_LATERAL = 0.1


def tissue_hu(tissue: str, phase: Phase) -> float:
    """Return the mean Hounsfield value of a tissue.

    The values are of the size that radiology text books tabulate for healthy adults; they vary widely between people,
    scanners and injections, and stand for no measurement.

    Args:
        tissue: A name from the tables of this module.
        phase: The contrast phase.
    """
    if tissue in _ANY_PHASE:
        return _ANY_PHASE[tissue]
    return _BY_PHASE[tissue][_COLUMN[phase]]


@dataclass(frozen=True)
class Mass:
    """A tumour or cyst of a kidney, placed in the kidney's own frame.

    Attributes:
        direction: Unit vector from the kidney's centre towards the mass, along its length (upper pole), breadth
            (lateral) and thickness (anterior).
        offset: How far the centre of the mass is outside the kidney's surface, as a share of its radius;
            below 0 the mass is endophytic, above 0 exophytic.
        radii_mm: Semi-axes along the kidney's length, breadth and thickness.
        enhancement_hu: Greatest enhancement of the solid part; 0 for a cyst.
        mottle_hu: Amplitude of the heterogeneity.
        necrosis: Radius of the necrotic core as a share of the mass; 0 for none.
    """

    direction: Triple
    offset: float
    radii_mm: Triple
    enhancement_hu: float = 0.0
    mottle_hu: float = 0.0
    necrosis: float = 0.0

    def solid_hu(self, phase: Phase) -> float:
        """Return the mean value of the tumour outside its necrotic core."""
        return _TUMOUR_PLAIN_HU + _ENHANCEMENT[phase] * self.enhancement_hu


@dataclass(frozen=True)
class Kidney:
    """A kidney with its masses.

    Attributes:
        side: -1 for the right kidney (low x), +1 for the left.
        centre_mm: (z, y, x) in body coordinates, whose origin is the centre of the second lumbar vertebra.
        radii_mm: Semi-axes along its length, breadth and thickness.
        tilt_deg: How far the upper pole leans medially, leans to posterior, and how far the hilum turns to anterior.
        cortex_mm: Thickness of the cortex.
        tumours: Solid tumours, label `TUMOUR`.
        cysts: Cysts.
    """

    side: int
    centre_mm: Triple
    radii_mm: Triple
    tilt_deg: Triple
    cortex_mm: float
    tumours: tuple[Mass, ...] = ()
    cysts: tuple[Mass, ...] = ()

    @property
    def masses(self) -> tuple[Mass, ...]:
        """Cysts and tumours."""
        return (*self.cysts, *self.tumours)


@dataclass(frozen=True)
class Patient:
    """The recipe of one phantom; the same recipe always gives the same voxels.

    Attributes:
        seed: What anatomy, textures and noise are drawn from.
        phase: The contrast phase.
        frame: Size of the skeleton and the organs; 1 is an average adult.
        visceral_mm: Fat inside the abdomen: how much wider than lean the cavity is, on each side.
        subcutaneous_mm: Fat below the skin.
        age: In years; bones lose density and arteries gain calcium with it.
        noise_hu: Standard deviation of the noise in the middle of a slice of 5 mm.
        kidneys: Two, seldom one.
    """

    seed: int
    phase: Phase
    frame: float
    visceral_mm: float
    subcutaneous_mm: float
    age: float
    noise_hu: float
    kidneys: tuple[Kidney, ...]

    def hu(self, tissue: str) -> float:
        """Return the mean Hounsfield value of a tissue in this patient's phase."""
        return tissue_hu(tissue, self.phase)


def draw_patient(seed: int, *, phase: Phase | None = None) -> Patient:
    """Draw a recipe: always with at least one tumour, as in KiTS19, whose scans are all enhanced.

    Args:
        seed: Equal seeds give equal recipes.
        phase: The contrast phase; None draws arterial or portal, as KiTS19 has them.

    Raises:
        KitsattnError: If the seed is negative.
    """
    rng = stream(seed, Purpose.RECIPE)
    frame = float(rng.uniform(0.92, 1.06))
    visceral_mm = float(rng.uniform(0.0, 20.0))
    drawn_phase: Phase = "arterial" if chance(rng, 0.5) else "portal"
    diseased = -1 if chance(rng, 0.5) else 1
    # A missing or shrunken kidney is rare, and is the one without the tumour.
    other_size = float(rng.choice((1.0, 0.62, 0.0), p=(0.93, 0.04, 0.03)))
    kidneys = []
    for side in (-1, 1):
        size = 1.0 if side == diseased else other_size
        kidney = _draw_kidney(rng, side, frame, size=size, diseased=side == diseased)
        if size:
            z_mm, y_mm, x_mm = kidney.centre_mm
            kidneys.append(replace(kidney, centre_mm=(z_mm, y_mm, x_mm + side * 0.35 * visceral_mm)))
    return Patient(
        seed=seed,
        phase=phase or drawn_phase,
        frame=frame,
        visceral_mm=visceral_mm,
        subcutaneous_mm=float(rng.uniform(7.0, 32.0)),
        age=float(rng.uniform(35.0, 85.0)),
        noise_hu=float(rng.uniform(9.0, 17.0)),
        kidneys=tuple(kidneys),
    )


def draw_tumour(rng: np.random.Generator) -> Mass:
    """Draw a tumour of 1 to 8 cm, most of them of 2 to 6 cm."""
    least_mm, most_mm = rng.choice(((11.0, 20.0), (20.0, 60.0), (60.0, 80.0)), p=(0.07, 0.81, 0.12))
    radius_mm = 0.5 * rng.uniform(least_mm, most_mm)
    # Behind the kidney there is little room; and a large endophytic tumour would leave no kidney.
    direction = _draw_direction(rng, anterior=0.1 if radius_mm > _ROOM_BEHIND_MM else -0.3)
    least, most = (0.05, 0.5) if radius_mm > _ROOM_INSIDE_MM else (-0.5, 0.45 if direction[2] > 0 else 0.0)
    return Mass(
        direction=direction,
        offset=float(rng.uniform(least, most)),
        radii_mm=_triple(radius_mm * rng.uniform(0.88, 1.12, 3)),
        enhancement_hu=float(rng.uniform(25.0, 110.0)),
        mottle_hu=float(rng.uniform(8.0, 16.0) + 0.25 * radius_mm),
        necrosis=float(rng.uniform(0.4, 0.7)) if chance(rng, min(0.15 + 0.02 * radius_mm, 0.75)) else 0.0,
    )


def stream(seed: int, purpose: Purpose, number: int = 0) -> np.random.Generator:
    """Return the random numbers of one purpose, independent of how much is drawn for any other.

    Args:
        seed: Of the patient or the data set.
        purpose: What they are drawn for.
        number: Of the slice or the case, where each has its own.

    Raises:
        KitsattnError: If the seed is negative.
    """
    if seed < 0:
        msg = f"the seed of a phantom must not be negative, got {seed}"
        raise KitsattnError(msg)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, purpose, number))))


def chance(rng: np.random.Generator, share: float) -> bool:
    """Return True in `share` of all cases."""
    return bool(rng.random() < share)


def _draw_kidney(rng: np.random.Generator, side: int, frame: float, *, size: float, diseased: bool) -> Kidney:
    z_mm = (13.0 if side > 0 else 0.0) + rng.uniform(-9.0, 9.0)
    centre = np.array([z_mm, rng.uniform(12.0, 20.0), side * rng.uniform(71.0, 80.0)])
    radii = rng.uniform((51.0, 26.0, 21.0), (60.0, 30.0, 25.0))
    tilt = rng.uniform((10.0, 5.0, 20.0), (20.0, 14.0, 45.0))
    cortex_mm = float(rng.uniform(6.0, 8.5))
    tumours = [draw_tumour(rng) for _ in range(2 if chance(rng, 0.15) else 1)] if diseased else []
    cysts = [_draw_cyst(rng) for _ in range(int(rng.choice(4, p=(0.5, 0.27, 0.15, 0.08))))]
    return Kidney(
        side=side,
        centre_mm=_triple(centre * frame),
        radii_mm=_triple(radii * size * frame),
        tilt_deg=_triple(tilt),
        cortex_mm=cortex_mm * size,
        tumours=tuple(tumours),
        cysts=tuple(cysts),
    )


def _draw_cyst(rng: np.random.Generator) -> Mass:
    radius_mm = rng.uniform(4.0, 8.0) if chance(rng, 0.7) else rng.uniform(8.0, 18.0)
    return Mass(
        direction=_draw_direction(rng, anterior=-0.8),
        offset=float(rng.uniform(-0.4, 0.4)),
        radii_mm=_triple(radius_mm * rng.uniform(0.93, 1.07, 3)),
    )


def _draw_direction(rng: np.random.Generator, *, anterior: float) -> Triple:
    """Draw a unit vector that points away from the hilum, where the great vessels are."""
    while True:
        vector = rng.normal(size=3)
        vector /= np.sqrt(np.sum(vector * vector))
        if vector[1] > _LEAST_LATERAL and vector[2] > anterior:
            return _triple(vector)


def _triple(values: NDArray[np.float64]) -> Triple:
    return (float(values[0]), float(values[1]), float(values[2]))
