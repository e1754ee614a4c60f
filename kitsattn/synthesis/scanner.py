"""What a scanner and a reconstruction do to a made scan: sharpness, noise, streaks, metal, field of view, windows."""

import math

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import interpolate

from kitsattn.labels import BACKGROUND
from kitsattn.synthesis.frame import AIR_HU, PIXEL_MM, blur
from kitsattn.synthesis.textures import WHITE, Textures

_STORED_ZERO_HU = 0.5
Slab = NDArray[np.float32]


def scan(
    rng: Generator,
    hu: Slab,
    labels: NDArray[np.uint8],
    textures: Textures,
    *,
    real: bool,
    cut_at_zero: bool = False,
) -> Slab:
    """Return a slab as a scanner would show it.

    Args:
        rng: Source of randomness.
        hu: (slices, height, width).
        labels: Of the centre slice, (height, width); set to background, in place, where the field of view ends.
        textures: Noise.
        real: Whether the slab is of a patient, whose scanner has left its noise and sharpness already.
        cut_at_zero: Whether the slab was stored without values below 0 HU. They are cut off again, at a level near 0,
            so that noise does not show where such a scan has none.
    """
    floor = hu <= _STORED_ZERO_HU if cut_at_zero else None
    hu = _drift(rng, hu, real=real)
    if not real:
        hu = _surround(rng, hu, textures)
    if rng.random() < 0.04:
        hu = _put_metal(rng, hu, textures)
    hu = _reconstruct(rng, hu)
    hu = _add_noise(rng, hu, textures, real=real)
    if rng.random() < 0.15:
        outside = _draw_outside(rng, hu.shape[1:])
        hu = np.where(outside, np.float32(AIR_HU), hu)
        labels[outside] = BACKGROUND
    if floor is None:
        return _window(rng, hu, real=real)
    level = np.float32(rng.normal(0.0, 5.0))
    return np.where(floor, level, np.maximum(hu, level))


def _drift(rng: Generator, hu: Slab, *, real: bool) -> Slab:
    """Scale and shift HU; in made scans also move whole ranges of values against each other."""
    factor = np.float32(rng.uniform(0.88, 1.15))
    hu = (np.where(hu > 0, hu * factor, hu) + np.float32(rng.normal(0.0, 5.0))).astype(np.float32)
    if not real and rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            centre, width = np.float32(rng.uniform(-150.0, 250.0)), np.float32(rng.uniform(20.0, 60.0))
            hu = hu + np.float32(rng.normal(0.0, 7.0)) * np.exp(-(((hu - centre) / width) ** 2))
    if rng.random() < 0.25:  # cupping: the middle of the body is darker or brighter
        _, height, width_px = hu.shape
        y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width_px, dtype=np.float32)
        bowl: Slab = np.float32(rng.normal(0.0, 10.0)) * (y * y + x * x)
        hu = hu + bowl
    return hu


def _surround(rng: Generator, hu: Slab, textures: Textures) -> Slab:
    """Put a table below the body, sometimes arms beside it, where there is air."""
    _, height, width = hu.shape
    air = hu < -900.0
    rows = np.flatnonzero(~air[len(hu) // 2].all(axis=1))
    if len(rows) and rng.random() < 0.6:
        x = np.linspace(-1, 1, width, dtype=np.float32)
        top = rows[-1] + rng.uniform(1.0, 8.0) - rng.uniform(0.0, 12.0) * x * x
        y = np.arange(height, dtype=np.float32)[:, None]
        thick = rng.uniform(1.0, 3.0)
        shell = (np.abs(y - top) < thick) | (np.abs(y - top - rng.uniform(8.0, 25.0)) < thick)
        foam = (y > top) & ~shell
        mottle = textures.field(rng, float(rng.choice((1.0, 2.0))), len(hu))
        shell_hu = np.float32(rng.uniform(-400.0, 200.0)) + np.float32(rng.uniform(0.0, 60.0)) * mottle
        hu = np.where(air & shell, shell_hu, hu)
        hu = np.where(air & foam & (y < top + 20), np.float32(rng.uniform(-1000.0, -850.0)), hu)
    if rng.random() < 0.08:
        y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
        for column in (rng.uniform(0, 0.12) * width, (1 - rng.uniform(0, 0.12)) * width):
            distance = np.hypot(y - rng.uniform(0.3, 0.7) * height, x - column) * PIXEL_MM
            radius = rng.uniform(30.0, 50.0)
            values = np.where(distance < 0.3 * radius, 400.0, np.where(distance < 0.8 * radius, 55.0, -100.0))
            hu = np.where(air & (distance < radius), values.astype(np.float32), hu)
    return hu


def _put_metal(rng: Generator, hu: Slab, textures: Textures) -> Slab:
    """Put an implant into dense tissue, or anywhere in the body, with bright and dark rays around it."""
    middle = hu[len(hu) // 2]
    dense = np.argwhere(middle > 150.0)
    places = dense if len(dense) and rng.random() < 0.7 else np.argwhere(middle > -200.0)
    if not len(places):
        return hu
    _, height, width = hu.shape
    row, column = (float(value) for value in places[int(rng.integers(len(places)))])
    y, x = np.arange(height, dtype=np.float32)[:, None] - row, np.arange(width, dtype=np.float32) - column
    distance, angle = np.hypot(y, x), np.arctan2(y, x)
    radius = np.float32(rng.uniform(1.0, 14.0))
    rays = np.zeros_like(distance)
    for _ in range(3):
        rays += np.cos(np.float32(rng.integers(1, 7)) * angle + np.float32(rng.uniform(0, 2 * math.pi)))
    strength = np.float32(rng.uniform(20.0, 250.0) * math.sqrt(radius / 5.0))
    rays *= strength * np.exp(-distance / np.float32(rng.uniform(15.0, 60.0)))
    hu = hu + rays * (1 + 0.3 * textures.field(rng, 2.0, len(hu)))
    return np.where(distance < radius, np.float32(3000.0), hu)


def _reconstruct(rng: Generator, hu: Slab) -> Slab:
    """Soften or sharpen, as reconstruction kernels do, or lower the resolution."""
    kind = rng.random()
    if kind < 0.5:
        sigma = rng.uniform(0.3, 1.1)
        return blur(hu, sigma)
    if kind < 0.65:
        return hu + np.float32(rng.uniform(0.2, 1.0)) * (hu - blur(hu, 0.8))
    if kind < 0.77:
        _, height, width = hu.shape
        zoom = rng.uniform(0.4, 0.9)
        coarse = (int(zoom * height), int(zoom * width))
        small = interpolate(torch.from_numpy(np.ascontiguousarray(hu))[None], coarse, mode="nearest-exact")
        back: Slab = interpolate(small, (height, width), mode="bilinear", align_corners=False)[0].numpy()
        return back
    return hu


def _add_noise(rng: Generator, hu: Slab, textures: Textures, *, real: bool) -> Slab:
    """Add noise: from white to correlated over two pixels, sometimes in horizontal streaks."""
    level = np.float32(rng.uniform(0.0, 10.0) if real else math.exp(rng.uniform(math.log(2.0), math.log(30.0))))
    count = len(hu)
    share = np.float32(rng.uniform(0.3, 1.0) if rng.random() < 0.6 else 0.0)
    smooth = textures.field(rng, float(rng.choice((1.0, 2.0), p=(0.75, 0.25))), count)
    hu = hu + (level * (1 - share)) * smooth
    if share:
        hu += (level * share) * textures.field(rng, WHITE, count)
    if rng.random() < 0.06:  # too few photons across hips or shoulders
        lines = ndimage.gaussian_filter1d(rng.standard_normal(hu.shape, dtype=np.float32), 12.0, axis=2)
        hu = hu + np.float32(rng.uniform(20.0, 120.0)) * lines
    return hu


def _draw_outside(rng: Generator, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Draw what is beyond a field of view that ends within the body: at a circle, or at straight borders."""
    height, width = shape
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    if rng.random() < 0.5:
        radius = rng.uniform(90.0, 220.0) / PIXEL_MM
        away = np.hypot(y - height / 2 - rng.normal(0, 6), x - width / 2 - rng.normal(0, 6))
        return np.asarray(away > radius)
    # A third are as narrow as the kidneys are apart.
    most = np.array([0.25, 0.32]) if rng.random() < 1 / 3 else np.array([0.2, 0.22])
    (top, left), (bottom, right) = rng.uniform(0.2 * most, most, (2, 2)) * (height, width)
    return np.asarray((y < top) | (y > height - bottom) | (x < left) | (x > width - right))


def _window(rng: Generator, hu: Slab, *, real: bool) -> Slab:
    """Cut values off, as scans that were exported for display have them."""
    if not real and rng.random() < 0.2:
        # Two thirds at about 0 HU, as real slices that were stored that way have it.
        lowest = rng.normal(0.0, 8.0) if rng.random() < 2 / 3 else rng.uniform(-200.0, 0.0)
        hu = np.maximum(hu, np.float32(lowest))
    if rng.random() < 0.15:
        hu = np.minimum(hu, np.float32(rng.uniform(180.0, 300.0)))
    return hu
