"""Smooth noise at several scales, computed once and then cut out at random places: a field costs almost nothing."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

WHITE = 0.1
SCALES_PX = (WHITE, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Standard deviations of the smoothing in-plane, in pixels; the first leaves noise white."""

_SEED = 20191
_MARGIN = (96, 112)
_SLICES = 20


class Textures:
    """Noise of mean 0 and deviation 1, smooth over `SCALES_PX` in-plane and over the same length in mm along z.

    Args:
        size: Height and width of the fields that are cut out.
        pixel_mm: Length of a pixel.
        slice_mm: Distance of the slices of a field.
    """

    def __init__(self, size: tuple[int, int], pixel_mm: float, slice_mm: float) -> None:
        """Compute all scales; takes about a second and 100 MB."""
        self.size = size
        shape = (_SLICES, size[0] + _MARGIN[0], size[1] + _MARGIN[1])
        rng = np.random.default_rng(_SEED)
        self._fields: dict[float, NDArray[np.float32]] = {}
        for scale in SCALES_PX:
            noise = rng.standard_normal(shape, dtype=np.float32)
            sigma = (scale * pixel_mm / slice_mm, scale, scale)
            smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=3.0)
            smooth -= smooth.mean(axis=(1, 2), keepdims=True)
            smooth /= smooth.std(axis=(1, 2), keepdims=True)
            self._fields[scale] = smooth

    def field(self, rng: Generator, scale_px: float, slices: int) -> NDArray[np.float32]:
        """Return a field (slices, *size), a view that must not be written to.

        Args:
            rng: Where in the noise it is cut.
            scale_px: Wanted smoothness; the nearest of `SCALES_PX` is taken.
            slices: How many neighbouring slices.
        """
        nearest = min(SCALES_PX, key=lambda one: abs(np.log(one / scale_px)))
        noise = self._fields[nearest]
        height, width = self.size
        start = rng.integers((_SLICES - slices + 1, _MARGIN[0] + 1, _MARGIN[1] + 1))
        cut = noise[start[0] : start[0] + slices, start[1] : start[1] + height, start[2] : start[2] + width]
        z, y, x = (int(turn) for turn in rng.choice((-1, 1), 3))
        return cut[::z, ::y, ::x]
