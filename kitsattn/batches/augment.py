"""Augmentation through batchgenerators, with nnU-Net's transforms, ranges and probabilities for a 2D network.

Two transforms are our own, because batchgenerators' took most of the time: the one in-plane, and low resolution. They
draw from the same distributions. Images are interpolated linearly where nnU-Net takes cubic splines.

The slices of a slab are channels of one scan: whatever changes its geometry or its intensity scale changes all of
them alike, only noise and blur are drawn slice by slice. Samples of a batch share nothing but the global generators.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from batchgenerators.transforms.abstract_transforms import AbstractTransform, Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from batchgenerators.transforms.spatial_transforms import MirrorTransform
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import grid_sample, interpolate

SCALE_RANGE = (0.7, 1.4)
_MARGIN = 0.85
"""A patch is cut 1 / 0.85 times larger than needed, so that rotation and scaling seldom reach beyond it (nnU-Net)."""
_ELASTIC_STRENGTH = (0.0, 200.0)
_ELASTIC_SIGMA = (9.0, 13.0)


def source_size(patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of what must be cut out so that augmentation can turn and scale a patch."""
    side = math.ceil(max(patch_size) / _MARGIN)
    return side, side


def build_augmentation(
    patch_size: tuple[int, int], air: float, *, elastic_probability: float = 0.0
) -> AbstractTransform:
    """Return the transform of `data` (batch, slices, y, x) float32 and `seg` (batch, 1, y, x), for any batch size.

    Args:
        patch_size: Height and width after the transform.
        air: Intensity of what is outside the cut-out.
        elastic_probability: How often a sample is deformed elastically; nnU-Net does not by default.
    """
    return Compose(
        [
            InPlaneTransform(patch_size, air, elastic_probability=elastic_probability),
            GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_sample=0.1),
            GaussianBlurTransform((0.5, 1.0), different_sigma_per_channel=True, p_per_sample=0.2, p_per_channel=0.5),
            BrightnessMultiplicativeTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
            ContrastAugmentationTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
            LowResolutionTransform(probability=0.25),
            GammaTransform((0.7, 1.5), invert_image=True, retain_stats=True, p_per_sample=0.1),
            GammaTransform((0.7, 1.5), invert_image=False, retain_stats=True, p_per_sample=0.3),
            MirrorTransform(axes=(0, 1)),
        ]
    )


class InPlaneTransform(AbstractTransform):  # type: ignore[misc] # batchgenerators has no types
    """Turns, scales and deforms in-plane, in one interpolation, and cuts the patch out of the middle.

    A sample that is neither turned nor scaled nor deformed is only cut: it keeps its intensities bit for bit.

    Args:
        patch_size: Height and width after the transform.
        air: Intensity of what is outside the cut-out; its label is 0.
        rotation_probability: How often a sample is turned, by any angle.
        scaling_probability: How often a sample is scaled.
        elastic_probability: How often a sample is deformed elastically.
    """

    def __init__(
        self,
        patch_size: tuple[int, int],
        air: float,
        *,
        rotation_probability: float = 0.2,
        scaling_probability: float = 0.2,
        elastic_probability: float = 0.0,
    ) -> None:
        self.patch_size = patch_size
        self.air = air
        self.rotation_probability = rotation_probability
        self.scaling_probability = scaling_probability
        self.elastic_probability = elastic_probability

    def __call__(self, **batch: Any) -> dict[str, Any]:  # noqa: ANN401 - batchgenerators' batches hold anything
        """Return the batch with `data` and `seg` at the size of the patch."""
        images, labels = batch["data"], batch["seg"]
        batch["data"] = np.empty((*images.shape[:2], *self.patch_size), np.float32)
        batch["seg"] = np.empty((*labels.shape[:2], *self.patch_size), labels.dtype)
        for index, (slab, label) in enumerate(zip(images, labels[:, 0], strict=True)):
            generator = _generator()
            matrix = draw_matrix(
                generator, rotation_probability=self.rotation_probability, scaling_probability=self.scaling_probability
            )
            deformed = generator.random() < self.elastic_probability
            if matrix is None and not deformed:
                slab_patch, label_patch = crop_centre(slab, self.patch_size), crop_centre(label, self.patch_size)
            else:
                slab_patch, label_patch = resample_slab(
                    slab,
                    label,
                    self.patch_size,
                    matrix=np.eye(2) if matrix is None else matrix,
                    air=self.air,
                    displacement=draw_displacement(self.patch_size, generator) if deformed else None,
                )
            batch["data"][index], batch["seg"][index, 0] = slab_patch, label_patch
        return batch


class LowResolutionTransform(AbstractTransform):  # type: ignore[misc] # batchgenerators has no types
    """Makes a slab look as if it had been taken with pixels up to twice as long.

    Args:
        probability: How often a sample is changed.
    """

    def __init__(self, *, probability: float) -> None:
        self.probability = probability

    def __call__(self, **batch: Any) -> dict[str, Any]:  # noqa: ANN401 - batchgenerators' batches hold anything
        """Change `data` in place."""
        for slab in batch["data"]:
            generator = _generator()
            if generator.random() < self.probability:
                slab[:] = lower_resolution(slab, generator.uniform(0.5, 1.0))
        return batch


def draw_matrix(
    generator: Generator, *, rotation_probability: float, scaling_probability: float
) -> NDArray[np.float64] | None:
    """Draw how offsets from the middle of a patch map to offsets in the cut-out, as `resample_slab` takes it.

    Rotation and scaling are drawn apart. Angles are uniform; half of the factors are uniform below 1, half above.

    Returns:
        (2, 2) for offsets (y, x), or None where the sample is neither turned nor scaled.
    """
    turned = generator.random() < rotation_probability
    scaled = generator.random() < scaling_probability
    if not turned and not scaled:
        return None
    angle = generator.uniform(-math.pi, math.pi) if turned else 0.0
    smaller = generator.random() < 1 / 2
    low, high = (SCALE_RANGE[0], 1.0) if smaller else (1.0, SCALE_RANGE[1])
    return affine_matrix(angle, generator.uniform(low, high) if scaled else 1.0)


def affine_matrix(angle: float, scale: float) -> NDArray[np.float64]:
    """Return the matrix that turns a picture as `np.rot90` does, by `angle`, and shows a field `scale` times as long.

    Args:
        angle: Radians.
        scale: Above 1 the picture gets smaller.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    return scale * np.array([[cosine, sine], [-sine, cosine]])


def draw_displacement(size: tuple[int, int], generator: Generator) -> NDArray[np.float32]:
    """Draw an elastic deformation: smoothed noise, with nnU-Net's ranges for 2D networks.

    Returns:
        (2, *size): by how many pixels a position is moved, along y and x.
    """
    strength, sigma = generator.uniform(*_ELASTIC_STRENGTH), generator.uniform(*_ELASTIC_SIGMA)
    noise = np.float32(strength) * (2 * generator.random((2, *size), dtype=np.float32) - 1)
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="constant")
    return smooth


def crop_centre(array: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the middle of the last two axes, as a view.

    Raises:
        ValueError: If the array is smaller.
    """
    height, width = array.shape[-2:]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    if top < 0 or left < 0:
        msg = f"a patch of {size[0]} x {size[1]} cannot be cut out of {height} x {width}"
        raise ValueError(msg)
    return array[..., top : top + size[0], left : left + size[1]]


def resample_slab(
    slab: NDArray[np.float32],
    labels: NDArray[np.float32],
    size: tuple[int, int],
    *,
    matrix: NDArray[np.float64],
    air: float,
    displacement: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a patch of a slab and of its labels, turned, scaled and deformed, in one interpolation.

    The pixel at offset d from the middle of the patch shows what is at `matrix` (d + displacement) from the middle
    of the centre crop. Intensities are interpolated linearly. So is the membership of each class, and the largest
    wins; where two are equal the higher label.

    Args:
        slab: (slices, y, x).
        labels: (y, x), label values, 0 is background.
        size: Height and width of the patch.
        matrix: (2, 2), for offsets (y, x).
        air: Intensity outside the slab; the label there is 0.
        displacement: (2, *size) pixels, or None.

    Returns:
        (slices, *size) and (*size).
    """
    slices, classes = len(slab), [value for value in np.unique(labels) if value]
    # Outside grid_sample sees 0 only, so what it is given is the difference from air and from background.
    channels = np.empty((slices + len(classes), *labels.shape), np.float32)
    np.subtract(slab, np.float32(air), out=channels[:slices])
    for channel, value in zip(channels[slices:], classes, strict=True):
        channel[:] = labels == value
    grid = _sampling_grid(labels.shape, size, matrix, displacement)
    # 11 ms for 5 slices and 2 classes of 512 x 512 on one thread; scipy's affine_transform 31 ms for the slices alone.
    sampled = grid_sample(torch.from_numpy(channels)[None], torch.from_numpy(grid)[None], align_corners=False)
    memberships = sampled[0, slices:].numpy()
    largest = 1 - memberships.sum(axis=0)
    label_patch = np.zeros(size, labels.dtype)
    for value, membership in zip(classes, memberships, strict=True):
        label_patch[membership >= largest] = value
        np.maximum(largest, membership, out=largest)
    return (sampled[0, :slices] + air).numpy(), label_patch


def _sampling_grid(
    shape: tuple[int, ...],
    size: tuple[int, int],
    matrix: NDArray[np.float64],
    displacement: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Return where each pixel of the patch is taken from, (*size, 2), as `grid_sample` wants it.

    That is x before y, and -1 and 1 at the outer borders of the outermost pixels.
    """
    height, width = size
    rows = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    columns = np.arange(width, dtype=np.float32) - (width - 1) / 2
    if displacement is not None:
        rows, columns = rows + displacement[0], columns + displacement[1]
    grid = np.empty((height, width, 2), np.float32)
    for axis, (length, kept, (along_rows, along_columns)) in enumerate(zip(shape, size, matrix.tolist(), strict=True)):
        middle = (length - kept) // 2 + (kept - 1) / 2
        pixels = along_rows * rows + along_columns * columns + middle
        grid[..., 1 - axis] = pixels * (2 / length) + (1 / length - 1)
    return grid


def lower_resolution(slab: NDArray[np.float32], zoom: float) -> NDArray[np.float32]:
    """Return the slab (slices, y, x) with `zoom` times its pixels per side, brought back to its size linearly."""
    height, width = slab.shape[1:]
    coarse = (round(zoom * height), round(zoom * width))
    # 3 ms for 5 x 512 x 512 on one thread; batchgenerators' transform takes 21 ms.
    picked = interpolate(torch.from_numpy(slab)[None], coarse, mode="nearest-exact")
    restored: NDArray[np.float32] = interpolate(picked, (height, width), mode="bilinear", align_corners=False)[
        0
    ].numpy()
    return restored


def _generator() -> Generator:
    """Return a generator that is seeded by the global one, which batchgenerators draws from."""
    return np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint32))  # noqa: NPY002


@contextmanager
def seeded(seed: np.random.SeedSequence) -> Iterator[None]:
    """Seed the two global generators that batchgenerators draws from, and put them back afterwards."""
    kept_numpy, kept_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - what batchgenerators uses
    first, second = seed.generate_state(2)
    np.random.seed(first)  # noqa: NPY002
    random.seed(int(second))
    try:
        yield
    finally:
        np.random.set_state(kept_numpy)  # noqa: NPY002
        random.setstate(kept_python)
