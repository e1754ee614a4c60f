"""Tissues that bodies are made of: names, Hounsfield values by contrast phase, and which organ is which tissue."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.phantom.patient import Phase


class Tissue(IntEnum):
    """Values of a tissue map; `UNLABELLED` is what the label map of organs leaves open, inside the body and outside."""

    UNLABELLED = 0
    AIR = 1
    SKIN = 2
    SUBCUTANEOUS_FAT = 3
    VISCERAL_FAT = 4
    WALL = 5
    MUSCLE = 6
    SPONGY_BONE = 7
    COMPACT_BONE = 8
    RIGHT_KIDNEY = 9
    LEFT_KIDNEY = 10
    MEDULLA = 11
    CALYX = 12
    KIDNEY_TUMOUR = 13
    KIDNEY_CYST = 14
    LIVER = 15
    SPLEEN = 16
    PANCREAS = 17
    ADRENAL = 18
    GALLBLADDER = 19
    STOMACH = 20
    DUODENUM = 21
    SMALL_BOWEL = 22
    COLON = 23
    OESOPHAGUS = 24
    BLADDER = 25
    PROSTATE = 26
    LUNG = 27
    HEART = 28
    ARTERY = 29
    VEIN = 30
    PORTAL_VEIN = 31
    CORD = 32
    DISC = 33
    CARTILAGE = 34
    SOFT_TISSUE = 35
    URETER = 36
    THYROID = 37


KIDNEY_TISSUES = (Tissue.RIGHT_KIDNEY, Tissue.LEFT_KIDNEY, Tissue.MEDULLA, Tissue.CALYX, Tissue.KIDNEY_CYST)
"""What the label kidney covers: cysts count as kidney, as in KiTS19."""
BOWEL = (Tissue.STOMACH, Tissue.DUODENUM, Tissue.SMALL_BOWEL, Tissue.COLON)
BONES = (Tissue.SPONGY_BONE, Tissue.COMPACT_BONE)


@dataclass(frozen=True)
class Attenuation:
    """Hounsfield values of a tissue.

    Attributes:
        mean_hu: In the phases plain, arterial, portal and excretory.
        spread_hu: How much the mean differs between patients, as a standard deviation.
        coarse_hu: Amplitude of mottle over about 1 cm.
        fine_hu: Amplitude of mottle over about 3 mm.
    """

    mean_hu: tuple[float, float, float, float]
    spread_hu: float
    coarse_hu: float = 5.0
    fine_hu: float = 5.0


def _same(mean_hu: float, spread_hu: float, coarse_hu: float = 5.0, fine_hu: float = 5.0) -> Attenuation:
    return Attenuation((mean_hu,) * 4, spread_hu, coarse_hu, fine_hu)


ATTENUATION: Mapping[Tissue, Attenuation] = {
    Tissue.UNLABELLED: _same(-1000, 0, 0, 0),
    Tissue.AIR: _same(-1000, 0, 0, 0),
    Tissue.SKIN: _same(15, 20),
    Tissue.SUBCUTANEOUS_FAT: _same(-105, 8, 6, 6),
    Tissue.VISCERAL_FAT: _same(-100, 10, 8, 8),
    Tissue.WALL: Attenuation((50, 55, 60, 58), 10, 12, 12),
    Tissue.MUSCLE: Attenuation((52, 56, 62, 60), 10, 10, 10),
    Tissue.SPONGY_BONE: Attenuation((140, 145, 155, 150), 55, 45, 60),
    Tissue.COMPACT_BONE: _same(320, 90, 60, 100),
    Tissue.RIGHT_KIDNEY: Attenuation((34, 190, 180, 150), 20, 5, 6),
    Tissue.LEFT_KIDNEY: Attenuation((34, 190, 180, 150), 20, 5, 6),
    Tissue.MEDULLA: Attenuation((32, 95, 165, 150), 18, 6, 6),
    Tissue.CALYX: Attenuation((6, 8, 20, 350), 8, 3, 3),
    Tissue.KIDNEY_TUMOUR: Attenuation((34, 100, 95, 75), 25, 12, 8),
    Tissue.KIDNEY_CYST: _same(9, 7, 1, 2),
    Tissue.LIVER: Attenuation((55, 72, 110, 92), 14, 3, 6),
    Tissue.SPLEEN: Attenuation((48, 125, 122, 95), 14, 4, 5),
    Tissue.PANCREAS: Attenuation((40, 105, 95, 75), 14, 15, 12),
    Tissue.ADRENAL: Attenuation((22, 60, 70, 50), 14),
    Tissue.GALLBLADDER: _same(10, 10, 1, 3),
    Tissue.STOMACH: Attenuation((25, 40, 45, 40), 20, 25, 15),
    Tissue.DUODENUM: Attenuation((35, 65, 65, 55), 18, 22, 15),
    Tissue.SMALL_BOWEL: Attenuation((32, 65, 65, 52), 18, 22, 15),
    Tissue.COLON: Attenuation((10, 25, 25, 25), 35, 60, 60),
    Tissue.OESOPHAGUS: Attenuation((40, 55, 60, 55), 14, 12, 10),
    Tissue.BLADDER: Attenuation((5, 5, 10, 180), 7, 2, 3),
    Tissue.PROSTATE: Attenuation((40, 60, 75, 65), 12, 8, 8),
    Tissue.LUNG: _same(-840, 40, 30, 60),
    Tissue.HEART: Attenuation((42, 210, 145, 105), 25, 15, 6),
    Tissue.ARTERY: Attenuation((42, 290, 155, 108), 30, 5, 5),
    Tissue.VEIN: Attenuation((42, 105, 145, 106), 25, 12, 5),
    Tissue.PORTAL_VEIN: Attenuation((42, 105, 165, 108), 22, 5, 5),
    Tissue.CORD: _same(30, 8),
    Tissue.DISC: _same(85, 20),
    Tissue.CARTILAGE: _same(110, 30, 15, 15),
    Tissue.SOFT_TISSUE: Attenuation((38, 60, 65, 58), 22, 10, 10),
    Tissue.URETER: Attenuation((10, 15, 30, 350), 10),
    Tissue.THYROID: Attenuation((90, 150, 140, 120), 20),
}
"""Values of the size that radiology text books tabulate for adults; `phantom.patient` has the same phases."""

PHASES: tuple[Phase, ...] = ("plain", "arterial", "portal", "excretory")

# The first word that a name contains decides, so what is special stands before what is general.
_WORDS: tuple[tuple[str, Tissue | None], ...] = (
    ("kidney_cyst_left", Tissue.KIDNEY_CYST),
    ("kidney_cyst_right", Tissue.KIDNEY_CYST),
    ("kidney_cyst", Tissue.KIDNEY_CYST),
    ("kidney_right", Tissue.RIGHT_KIDNEY),
    ("right_kidney", Tissue.RIGHT_KIDNEY),
    ("kidney_left", Tissue.LEFT_KIDNEY),
    ("left_kidney", Tissue.LEFT_KIDNEY),
    ("renal_pelvis", Tissue.URETER),
    ("ureter", Tissue.URETER),
    ("portal_vein", Tissue.PORTAL_VEIN),
    ("splenic_vein", Tissue.PORTAL_VEIN),
    ("pulmonary_vein", Tissue.HEART),
    ("vena", Tissue.VEIN),
    ("vein", Tissue.VEIN),
    ("artery", Tissue.ARTERY),
    ("aorta", Tissue.ARTERY),
    ("trunk", Tissue.ARTERY),
    ("gluteus", Tissue.MUSCLE),
    ("autochthon", Tissue.MUSCLE),
    ("iliopsoas", Tissue.MUSCLE),
    ("muscle", Tissue.MUSCLE),
    ("disc", Tissue.DISC),
    ("vertebra", Tissue.SPONGY_BONE),
    ("thoracic", Tissue.SPONGY_BONE),
    ("lumbar", Tissue.SPONGY_BONE),
    ("sacrum", Tissue.SPONGY_BONE),
    ("pelvis", Tissue.SPONGY_BONE),
    ("hip", Tissue.SPONGY_BONE),
    ("femur", Tissue.SPONGY_BONE),
    ("humerus", Tissue.SPONGY_BONE),
    ("scapula", Tissue.COMPACT_BONE),
    ("clavicul", Tissue.COMPACT_BONE),
    ("skull", Tissue.COMPACT_BONE),
    ("costal_cartilage", Tissue.CARTILAGE),
    ("rib", Tissue.COMPACT_BONE),
    ("sternum", Tissue.COMPACT_BONE),
    ("lung", Tissue.LUNG),
    ("trachea", Tissue.LUNG),
    ("liver", Tissue.LIVER),
    ("spleen", Tissue.SPLEEN),
    ("pancreas", Tissue.PANCREAS),
    ("adrenal", Tissue.ADRENAL),
    ("gallbladder", Tissue.GALLBLADDER),
    ("stomach", Tissue.STOMACH),
    ("duodenum", Tissue.DUODENUM),
    ("small_bowel", Tissue.SMALL_BOWEL),
    ("colon", Tissue.COLON),
    ("bowel", Tissue.SMALL_BOWEL),
    ("esophagus", Tissue.OESOPHAGUS),
    ("oesophagus", Tissue.OESOPHAGUS),
    ("bladder", Tissue.BLADDER),
    ("prostate", Tissue.PROSTATE),
    ("heart", Tissue.HEART),
    ("atrial", Tissue.HEART),
    ("spinal_cord", Tissue.CORD),
    ("brain", Tissue.CORD),
    ("thyroid", Tissue.THYROID),
)


def tissue_of(organ: str) -> Tissue:
    """Return the tissue of an organ by its name in a label map, such as TotalSegmentator's `adrenal_gland_left`.

    A name without a known word counts as soft tissue.
    """
    name = organ.lower().replace(" ", "_").replace("-", "_")
    for word, tissue in _WORDS:
        if word in name and tissue is not None:
            return tissue
    return Tissue.SOFT_TISSUE


def tissue_table(names: Mapping[int, str]) -> NDArray[np.uint8]:
    """Return the tissue of every label value, (256,) uint8, from the names of a label map.

    Raises:
        KitsattnError: If no name is a kidney, so that the map cannot be what it is taken for.
    """
    table = np.zeros(256, np.uint8)
    for value, name in names.items():
        table[value] = tissue_of(name)
    if not np.isin(table, (Tissue.RIGHT_KIDNEY, Tissue.LEFT_KIDNEY)).any():
        some = ", ".join(list(names.values())[:5])
        msg = f"the names {some}, … include no kidney_left or kidney_right: check labels.json"
        raise KitsattnError(msg)
    return table


@dataclass(frozen=True)
class Palette:
    """Hounsfield values of one drawn patient: three tables that a tissue map indexes, each (number of tissues,)."""

    mean_hu: NDArray[np.float32]
    coarse_hu: NDArray[np.float32]
    fine_hu: NDArray[np.float32]
    phase: int | None


_PHASE_SHARES = (0.42, 0.15, 0.33, 0.1)
_FREE_SHARE = 0.15
_PLAIN_SPREAD = 0.35
_FIXED = {Tissue.UNLABELLED, Tissue.AIR, Tissue.LUNG, Tissue.SUBCUTANEOUS_FAT, Tissue.VISCERAL_FAT}


def draw_palette(rng: Generator) -> Palette:
    """Draw the values of one patient: a contrast phase, or for 15 % free contrast.

    Free contrast is of no phase: every tissue takes up its own share of contrast medium, from none to half as much
    again as in any phase. Values without any order teach little: kidneys that look like whatever is beside them
    cost more training than they are worth.
    """
    count = len(Tissue)
    mean, coarse, fine = (np.zeros(count, np.float32) for _ in range(3))
    phase = int(rng.choice(4, p=_PHASE_SHARES))
    free = rng.random() < _FREE_SHARE
    enhancement = rng.uniform(0.7, 1.25)
    for tissue, values in ATTENUATION.items():
        plain = values.mean_hu[0]
        value = plain + (values.mean_hu[phase] - plain) * enhancement
        if free and tissue not in _FIXED:
            value = plain + (max(values.mean_hu) - plain) * rng.uniform(0.0, 1.5)
        # Without contrast medium people differ less.
        spread = values.spread_hu * (_PLAIN_SPREAD if phase == 0 and tissue not in _FIXED else 1.0)
        mean[tissue] = value + rng.normal(0.0, spread) if spread else value
        coarse[tissue] = values.coarse_hu * rng.uniform(0.3, 1.5)
        fine[tissue] = values.fine_hu * rng.uniform(0.2, 1.4)
    # Both kidneys are perfused alike, most of the time.
    if rng.random() < 0.95:
        mean[Tissue.LEFT_KIDNEY] = mean[Tissue.RIGHT_KIDNEY] + rng.normal(0.0, 4.0)
    if not free and phase == 0:
        mean[Tissue.MEDULLA] = mean[Tissue.RIGHT_KIDNEY] + rng.normal(0.0, 3.0)
    return Palette(mean, coarse, fine, None if free else phase)
