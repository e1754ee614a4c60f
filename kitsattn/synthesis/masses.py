"""Masses: tumours and cysts painted into kidneys, and what looks like them elsewhere and is background.

Radii and the softness of edges follow Hu et al., Label-Free Liver Tumor Segmentation, CVPR 2023; here the values of a
tumour follow its kidney and the contrast phase instead of being darker throughout.
"""

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kitsattn.labels import KIDNEY, TUMOUR
from kitsattn.synthesis.frame import PIXEL_MM, SLICE_MM
from kitsattn.synthesis.textures import Textures

_KINDS = ("clear cell", "papillary", "homogeneous", "cystic", "fatty", "bright")
_SHARES = (0.48, 0.2, 0.14, 0.12, 0.03, 0.03)
_AIR_HU = -400.0
_FEWEST_VOXELS = 30


def draw_solid(
    rng: Generator, kidney_hu: float, phase: int | None, textures: Textures, slices: int
) -> NDArray[np.float32]:
    """Draw the inside of a tumour: (slices, height, width) in HU, to be cut by the tumour's shape.

    Args:
        rng: Source of randomness.
        kidney_hu: Mean of the kidney it grows in.
        phase: 0 without contrast medium, above with it; None where values are free.
        textures: Noise.
        slices: How many.
    """
    kind = _KINDS[int(rng.choice(len(_KINDS), p=_SHARES))]
    plain = phase == 0
    coarse = textures.field(rng, float(rng.choice((2.0, 4.0, 8.0))), slices)
    if kind == "cystic":
        hu = np.float32(rng.uniform(-5.0, 25.0)) + np.float32(2.0) * coarse
        septa = np.abs(textures.field(rng, 8.0, slices)) < rng.uniform(0.0, 0.12)
        hu[septa] = rng.uniform(30.0, 60.0) if plain else rng.uniform(40.0, 130.0)
        return hu
    if kind == "fatty":
        return np.float32(rng.uniform(-80.0, 10.0)) + np.float32(rng.uniform(5.0, 40.0)) * coarse
    if plain:
        mean, mottle = rng.normal(34.0, 8.0), rng.uniform(1.0, 8.0)
    elif kind == "papillary":
        mean, mottle = rng.uniform(35.0, 85.0), rng.uniform(1.0, 8.0)
    elif kind == "bright":
        mean, mottle = kidney_hu * rng.uniform(1.05, 1.4), rng.uniform(3.0, 15.0)
    else:
        mean, mottle = kidney_hu * rng.uniform(0.4, 0.95), rng.uniform(2.0, 10.0)
    if kind == "clear cell":
        mottle *= 2.5
    hu = np.float32(mean) + np.float32(mottle) * coarse
    if kind == "clear cell" and rng.random() < 0.6:
        core = textures.field(rng, 8.0, slices) > rng.uniform(0.0, 1.2)
        hu[core] = np.float32(rng.uniform(5.0, 35.0)) + np.float32(3.0) * coarse[core]
    return hu


def draw_cyst_hu(rng: Generator) -> float:
    """Draw the value of a cyst: water, 12 % denser."""
    return float(rng.uniform(25.0, 75.0) if rng.random() < 0.12 else rng.normal(8.0, 7.0))


def paint_kidney_mass(
    rng: Generator,
    hu: NDArray[np.float32],
    labels: NDArray[np.uint8],
    textures: Textures,
    *,
    phase: int | None,
    tumour_share: float = 0.75,
) -> None:
    """Paint a tumour or a cyst that grows out of a kidney, in place.

    Args:
        rng: Source of randomness.
        hu: (slices, height, width).
        labels: Likewise; kidney 1, tumour 2.
        textures: Noise.
        phase: As `draw_solid` takes it.
        tumour_share: How often it is a tumour; a cyst gets the label kidney.
    """
    kidney = labels == KIDNEY
    places = np.flatnonzero(kidney)
    if len(places) < _FEWEST_VOXELS:
        return
    kidney_hu = float(hu.ravel()[places].mean())
    place = np.array(np.unravel_index(int(places[rng.integers(len(places))]), kidney.shape), float)
    is_tumour = rng.random() < tumour_share
    radius_mm = math.exp(rng.uniform(math.log(4.0), math.log(40.0 if is_tumour else 22.0)))
    # Its middle stays near enough to the kidney that the two touch.
    away_mm = np.clip(rng.normal(0.0, (0.3, 0.4, 0.4)), -0.5, 0.5) * radius_mm
    place += away_mm / (SLICE_MM, PIXEL_MM, PIXEL_MM)
    share = _mass(rng, place, radius_mm, labels.shape, textures)
    share *= hu > _AIR_HU
    if is_tumour:
        inside = draw_solid(rng, kidney_hu, phase, textures, len(hu))
    else:
        inside = np.float32(draw_cyst_hu(rng)) + np.float32(1.0) * textures.field(rng, 2.0, len(hu))
    hu += share * (inside - hu)
    labels[(share > 0.5) & (labels != TUMOUR)] = TUMOUR if is_tumour else KIDNEY


def paint_distractors(
    rng: Generator,
    hu: NDArray[np.float32],
    labels: NDArray[np.uint8],
    inside_body: NDArray[np.bool_],
    textures: Textures,
) -> None:
    """Paint one to three masses that are not of the kidney: of adrenal gland, liver, spleen, nodes, bowel, ovary.

    Half of them lie within 6 cm of a kidney and may touch it, none covers it. Their label is background.

    Args:
        rng: Source of randomness.
        hu: (slices, height, width), changed in place.
        labels: Likewise; where it is not 0 nothing is painted.
        inside_body: Where something may be painted.
        textures: Noise.
    """
    free = inside_body & (labels == 0)
    places = np.flatnonzero(free)
    if len(places) < _FEWEST_VOXELS:
        return
    kidneys = np.flatnonzero(labels)
    for _ in range(int(rng.integers(1, 4))):
        radius_mm = math.exp(rng.uniform(math.log(3.0), math.log(50.0)))
        start = int(places[rng.integers(len(places))])
        place = np.array(np.unravel_index(start, free.shape), float)
        if len(kidneys) and rng.random() < 0.5:
            near = np.array(np.unravel_index(int(kidneys[rng.integers(len(kidneys))]), free.shape), float)
            angle = rng.uniform(-math.pi, math.pi)
            away = (0.7 * radius_mm + rng.uniform(0.0, 20.0)) / PIXEL_MM
            place = near + np.array([rng.normal(0.0, 1.5), away * math.sin(angle), away * math.cos(angle)])
        share = _mass(rng, place, radius_mm, labels.shape, textures)
        share *= free
        bright = rng.random() < 0.2
        mean = rng.uniform(100.0, 350.0) if bright else rng.uniform(-20.0, 110.0)
        mottle = rng.uniform(1.0, 25.0) * textures.field(rng, float(rng.choice((2.0, 4.0, 8.0))), len(hu))
        hu += share * (np.float32(mean) + mottle - hu)


def _mass(
    rng: Generator, place: NDArray[np.float64], radius_mm: float, shape: tuple[int, ...], textures: Textures
) -> NDArray[np.float32]:
    """Return the share of each voxel that a lumpy ellipsoid fills, (slices, height, width)."""
    radii = radius_mm * np.exp(rng.normal(0.0, 0.15, 3)) / np.array([SLICE_MM, PIXEL_MM, PIXEL_MM])
    z, y, x = (np.arange(length, dtype=np.float32) for length in shape)
    angle = rng.uniform(0.0, math.pi)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    dy, dx = (y - np.float32(place[1]))[:, None], (x - np.float32(place[2]))[None]
    along = (cosine * dy - sine * dx) / np.float32(radii[1])
    across = (sine * dy + cosine * dx) / np.float32(radii[2])
    height = (z - np.float32(place[0])) / np.float32(radii[0])
    square = (along * along + across * across)[None] + (height * height)[:, None, None]
    distance = np.sqrt(square, dtype=np.float32)
    lumps = textures.field(rng, max(2.0, 0.5 * radius_mm / PIXEL_MM), shape[0])
    distance += np.float32(rng.uniform(0.02, 0.15)) * lumps
    edge = radius_mm / PIXEL_MM / rng.uniform(0.7, 2.0)
    share: NDArray[np.float32] = np.clip((1 - distance) * np.float32(edge) + np.float32(0.5), 0, 1)
    return share
