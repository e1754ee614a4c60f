"""Source (c): single real slices, stored as 0 to 255 HU, made into slabs.

Below 0 HU such a picture knows nothing. Most draws give fat back inside the body and air outside, roughly; the others
stay as they are, as a scan that was exported for display would.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.labels import KIDNEY, TUMOUR
from kitsattn.synthesis.frame import AIR_HU, FLOOR_HU, PIXEL_MM, SLICES, Frame, blur, draw_frame, resample_each
from kitsattn.synthesis.masses import paint_distractors, paint_kidney_mass
from kitsattn.synthesis.textures import Textures

_DARK_HU = 5.0
_LEAST_PART = 50
"""A part of the body has at least a fiftieth of the pixels of the largest one."""
_USUAL_PIXEL_MM = 0.8
_PLAIN_SHARE = 0.4
_BONE_HU = 220.0


@dataclass(frozen=True)
class RealSlice:
    """A slice of a patient.

    Attributes:
        name: Data set, patient and slice.
        image: HU from 0 to 255, (y, x), uint8.
        labels: Kidney 1, tumour 2, (y, x), uint8.
        pixel_mm: Length of a pixel; None where it is not known.
        tumours_labelled: Whether a tumour would have been labelled.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    pixel_mm: float | None
    tumours_labelled: bool


def draw_slice(
    rng: Generator, slices: Sequence[RealSlice], textures: Textures
) -> tuple[NDArray[np.float32], NDArray[np.uint8], bool]:
    """Draw a slab from one slice.

    Returns:
        HU, (slices, height, width); labels of the centre slice; and whether values below 0 HU were given back.
    """
    one = slices[int(rng.integers(len(slices)))]
    pixel_mm = one.pixel_mm or rng.uniform(0.68, 0.98)
    kidneys = np.argwhere(one.labels)
    towards = tuple(kidneys[int(rng.integers(len(kidneys)))]) if len(kidneys) else None
    centre_at = _middle(one.image)
    frame = draw_frame(rng, textures, pixel_mm=(pixel_mm, pixel_mm), centre=centre_at, towards=towards)
    centre = frame.linear(one.image[None].astype(np.float32), 0.0)[0]
    centre_labels = frame.nearest(one.labels[None], 0)[0]
    plain = rng.random() < _PLAIN_SHARE
    if plain:
        centre = _without_contrast(rng, centre, centre_labels)
    hu = np.repeat(centre[None], SLICES, 0)
    labels = np.repeat(centre_labels[None], SLICES, 0)
    if plain:  # pressed together, the scanner's own noise is gone
        noise = np.float32(rng.uniform(2.0, 20.0)) * textures.field(rng, 1.0, SLICES)
        hu += np.where(hu > _DARK_HU, noise, np.float32(0.0))
    painted = KIDNEY in centre_labels and rng.random() < (0.25 if one.tumours_labelled else 0.45)
    if painted:
        paint_kidney_mass(rng, hu, labels, textures, phase=0 if plain else 2)
    if rng.random() < 0.25:
        body = ndimage.binary_fill_holes(centre > _DARK_HU)
        paint_distractors(rng, hu, labels, np.repeat(body[None], SLICES, 0), textures)
    # Neighbours of real slabs are never the same.
    away = np.abs(np.arange(SLICES) - SLICES // 2).astype(np.float32)
    shifts = (0.7 * away[:, None] * rng.standard_normal((SLICES, 2))).astype(np.float32)
    zooms = (1 + 0.012 * away * rng.standard_normal(SLICES)).astype(np.float32)
    hu = resample_each(hu, shifts, zooms)
    restored = rng.random() < 0.7
    if restored:
        hu = _give_back(rng, hu, labels, textures)
    return hu, labels[SLICES // 2], restored


def plain_slab(one: RealSlice, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return a slice as five equal ones, with pixels of 1.5 mm and the body in the middle: HU and labels.

    A slice whose pixels are of unknown size is taken to have 0.8 mm.
    """
    zoom = np.float32(PIXEL_MM / (one.pixel_mm or _USUAL_PIXEL_MM))
    row, column = _middle(one.image)
    height, width = size
    frame = Frame(
        np.repeat(zoom * (np.arange(height, dtype=np.float32) - (height - 1) / 2)[:, None], width, 1) + np.float32(row),
        np.repeat(zoom * (np.arange(width, dtype=np.float32) - (width - 1) / 2)[None], height, 0) + np.float32(column),
    )
    image = frame.linear(one.image[None].astype(np.float32), 0.0)
    return np.repeat(image, SLICES, 0), frame.nearest(one.labels[None], 0)[0]


def _without_contrast(rng: Generator, hu: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a slice (y, x) as it might look without contrast medium.

    What is brighter than unenhanced organs is pressed together just above them, bone apart; kidneys and their tumours
    come to be some HU below liver and spleen.
    """
    base, slope = rng.normal(50.0, 3.0), rng.uniform(0.03, 0.15)
    dense = ndimage.binary_closing((hu > _BONE_HU) & (labels == 0), iterations=2)
    bone = blur(ndimage.binary_fill_holes(dense)[None].astype(np.float32), 0.6)[0]
    pressed = np.where(hu > base, np.float32(base) + np.float32(slope) * (hu - np.float32(base)), hu)
    kidney = blur((labels > 0)[None].astype(np.float32), 0.6)[0]
    tumour = blur((labels == TUMOUR)[None].astype(np.float32), 0.6)[0]
    lower = kidney * np.float32(rng.normal(20.0, 4.0)) + tumour * np.float32(rng.normal(0.0, 6.0))
    # The share of fat and air at a kidney's edge has no medium to lose.
    pressed -= lower * np.clip(pressed / np.float32(base), 0, 1)
    taken: NDArray[np.float32] = pressed + bone * (hu - pressed)
    return taken


def _middle(image: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the row and column in the middle of what is not black."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    if not len(rows):
        return (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    return (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2


def _give_back(
    rng: Generator, hu: NDArray[np.float32], labels: NDArray[np.uint8], textures: Textures
) -> NDArray[np.float32]:
    """Put fat where the body is dark and not labelled, out to some mm beyond its muscles, and air around it."""
    soft = blur(hu, 0.7)
    core = _body_core(soft[SLICES // 2] > _DARK_HU)
    away_px = ndimage.distance_transform_edt(~core).astype(np.float32)
    skin_px = rng.uniform(1.0, 26.0) + 1.5 * textures.field(rng, 16.0, 1)[0]
    outside = (away_px > skin_px).astype(np.float32)
    fat_hu = np.float32(rng.uniform(-120.0, -80.0))
    fat = fat_hu + np.float32(rng.uniform(3.0, 14.0)) * textures.field(rng, 2.0, SLICES)
    # Water has a few HU, fat was cut to 0; what is between them are borders of fat.
    dark = np.clip((np.float32(12.0) - soft) / np.float32(10.0), 0, 1)
    dark[labels > 0] = 0.0
    filled = hu + dark * (fat - hu)
    air = blur(outside[None], 0.7) * dark
    result: NDArray[np.float32] = filled + air * (np.float32(FLOOR_HU) - filled)
    result[air > 0.5] = AIR_HU
    return result


def _body_core(bright: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the muscles and organs of a slice without the table, what they enclose included.

    The largest part decides: other parts of some size belong to the body if their middle is no lower than its lower
    end, so that the wall of the abdomen counts where fat parts it from the rest, and the table does not.
    """
    parts, count = ndimage.label(bright)
    if not count:
        return bright
    sizes = np.bincount(parts.ravel())[1:]
    largest = int(sizes.argmax())
    boxes = ndimage.find_objects(parts)
    lowest = boxes[largest][0].stop
    chosen = [
        number
        for number, box in enumerate(boxes, 1)
        if sizes[number - 1] * _LEAST_PART >= sizes[largest] and (box[0].start + box[0].stop) / 2 <= lowest
    ]
    core: NDArray[np.bool_] = ndimage.binary_fill_holes(np.isin(parts, chosen))
    return core
