"""Augmentation through batchgenerators, with nnU-Net's transforms, ranges and probabilities for a 2D network.

Images are interpolated linearly where nnU-Net takes cubic splines: 58 ms a sample of 5 x 512 x 512 instead of 97.

The slices of a slab are channels of one scan: whatever changes its geometry or its intensity scale changes all of
them alike, only noise and blur are drawn slice by slice.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from batchgenerators.transforms.abstract_transforms import AbstractTransform, Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
from batchgenerators.transforms.spatial_transforms import MirrorTransform, SpatialTransform

SCALE_RANGE = (0.7, 1.4)
_MARGIN = 0.85
"""A patch is cut 1 / 0.85 times larger than needed, so that rotation and scaling seldom reach beyond it (nnU-Net)."""


def source_size(patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of what must be cut out so that augmentation can turn and scale a patch."""
    side = math.ceil(max(patch_size) / _MARGIN)
    return side, side


def build_augmentation(patch_size: tuple[int, int], air: float) -> AbstractTransform:
    """Return the transform of `data` (batch, slices, y, x) float32 and `seg` (batch, 1, y, x).

    Args:
        patch_size: Height and width after the transform.
        air: Intensity of what lies outside the cut-out.
    """
    return Compose(
        [
            SpatialTransform(
                patch_size,
                patch_center_dist_from_border=None,
                random_crop=False,
                do_elastic_deform=False,
                p_el_per_sample=0,
                angle_x=(-math.pi, math.pi),
                p_rot_per_sample=0.2,
                scale=SCALE_RANGE,
                p_scale_per_sample=0.2,
                border_mode_data="constant",
                border_cval_data=air,
                order_data=1,
                border_mode_seg="constant",
                border_cval_seg=0,
                order_seg=1,
            ),
            GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_sample=0.1),
            GaussianBlurTransform((0.5, 1.0), different_sigma_per_channel=True, p_per_sample=0.2, p_per_channel=0.5),
            BrightnessMultiplicativeTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
            ContrastAugmentationTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
            SimulateLowResolutionTransform((0.5, 1.0), order_downsample=0, order_upsample=1, p_per_sample=0.25),
            GammaTransform((0.7, 1.5), invert_image=True, retain_stats=True, p_per_sample=0.1),
            GammaTransform((0.7, 1.5), invert_image=False, retain_stats=True, p_per_sample=0.3),
            MirrorTransform(axes=(0, 1)),
        ]
    )


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
