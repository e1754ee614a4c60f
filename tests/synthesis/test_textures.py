"""Noise that is computed once."""

import numpy as np
import pytest

from kitsattn.synthesis.frame import PIXEL_MM, SLICE_MM
from kitsattn.synthesis.textures import SCALES_PX, WHITE, Textures


@pytest.mark.parametrize("scale", SCALES_PX)
def test_noise_has_mean_0_and_deviation_1(textures: Textures, scale: float) -> None:
    """Over each whole slice; a field that is cut out of it is near that, the nearer the finer the noise."""
    whole = textures._fields[scale]
    np.testing.assert_allclose(whole.mean(axis=(1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(whole.std(axis=(1, 2)), 1, atol=1e-4)
    field = textures.field(np.random.default_rng(1), scale, 5)
    assert field.shape == (5, 224, 288)
    assert field.dtype == np.float32
    assert abs(float(field.mean())) < 0.02 + scale / 30
    assert abs(float(field.std()) - 1) < 0.02 + scale / 30


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0, 8.0])
def test_noise_is_as_smooth_as_its_scale(textures: Textures, scale: float) -> None:
    """Noise smoothed by s correlates by exp(-1/4) at a distance of s, in-plane and, in mm, along z."""
    whole = textures._fields[scale]
    pixels = round(scale)
    assert float((whole[:, pixels:] * whole[:, :-pixels]).mean()) == pytest.approx(np.exp(-0.25), abs=0.06)
    along = float((whole[1:] * whole[:-1]).mean())
    wanted = np.exp(-((SLICE_MM / (2 * scale * PIXEL_MM)) ** 2))
    assert along == pytest.approx(wanted, abs=0.12)


def test_fine_noise_is_white(textures: Textures) -> None:
    """Neighbouring pixels and slices do not correlate."""
    field = textures.field(np.random.default_rng(2), WHITE, 5)
    assert abs(float((field[:, 1:] * field[:, :-1]).mean())) < 0.01
    assert abs(float((field[1:] * field[:-1]).mean())) < 0.01


def test_the_nearest_scale_is_taken(textures: Textures) -> None:
    """Nearest by factor: 5.5 pixels are nearer to 4 than to 8, 6 pixels to 8."""
    fields = [textures.field(np.random.default_rng(3), scale, 1) for scale in (5.5, 4.0, 6.0, 8.0)]
    np.testing.assert_array_equal(fields[0], fields[1])
    np.testing.assert_array_equal(fields[2], fields[3])
    assert not np.array_equal(fields[0], fields[2])


def test_fields_are_views_and_noise_stays_as_it_is(textures: Textures) -> None:
    """A field costs no copy, equal generators give the same one, and another computation gives the same noise."""
    field = textures.field(np.random.default_rng(4), 2.0, 3)
    assert np.shares_memory(field, textures._fields[2.0])
    again = Textures((224, 288), PIXEL_MM, SLICE_MM)
    for scale in SCALES_PX:
        np.testing.assert_array_equal(again._fields[scale], textures._fields[scale])
    np.testing.assert_array_equal(again.field(np.random.default_rng(4), 2.0, 3), field)
