"""Surfaces and their distances: equal to the challenges' library, and what can be said by hand."""

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage
from surface_distance import lookup_tables, metrics

from kitsattn.evaluate.surface import (
    SurfaceDistances,
    average_distance,
    element_areas,
    find_distances,
    find_surface,
    hausdorff_95,
    surface_dice,
)
from kitsattn.volume.geometry import Triple

Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]

_SPACINGS: tuple[Triple, ...] = ((1.0, 1.0, 1.0), (5.0, 0.78125, 0.78125), (0.5, 0.9, 1.7))


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Callable[[Masks, Triple], list[float]]:
    """Return what surface-distance 0.1 computes: surface Dice at 1.13 mm, HD95, mean of both mean distances."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # numpy 2 has no longer what it was written with
    monkeypatch.setattr(np, "NaN", np.nan, raising=False)
    monkeypatch.setattr(ndimage, "filters", ndimage)
    monkeypatch.setattr(ndimage, "morphology", ndimage)

    def compute(masks: Masks, spacing_mm: Triple) -> list[float]:
        prediction, reference = masks
        found = metrics.compute_surface_distances(reference, prediction, spacing_mm)
        average = np.mean(metrics.compute_average_surface_distance(found))
        dice = metrics.compute_surface_dice_at_tolerance(found, 1.13)
        return [dice, metrics.compute_robust_hausdorff(found, 95), float(average)]

    return compute


def measure(masks: Masks, spacing_mm: Triple) -> SurfaceDistances:
    """Return the distances of two regions."""
    prediction, reference = (find_surface(mask, spacing_mm) for mask in masks)
    return find_distances(prediction, reference, spacing_mm)


def scores(masks: Masks, spacing_mm: Triple) -> list[float]:
    """Return what `official` computes."""
    distances = measure(masks, spacing_mm)
    return [surface_dice(distances, 1.13), hausdorff_95(distances), average_distance(distances)]


@pytest.mark.parametrize("seed", range(60))
def test_scores_are_those_of_the_challenges_library(
    seed: int, official: Callable[[Masks, Triple], list[float]]
) -> None:
    """Blobs of any roughness, at the border, of one voxel, one slice, on grids of any spacing."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 18, 3))
    z, y, x = rng.uniform(0.4, 4, 3).tolist()
    spacing_mm = (z, y, x)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, *[rng.uniform(0, 2)] * 3))
    noise[1] = rng.choice([0.1, 0.5, 1.0]) * noise[1] + noise[0]
    least = [np.quantile(one, rng.choice([0.3, 0.8, 0.99])) for one in noise]
    prediction, reference = (one >= limit for one, limit in zip(noise, least, strict=True))

    np.testing.assert_allclose(
        scores((prediction, reference), spacing_mm), official((prediction, reference), spacing_mm), atol=1e-9
    )


@pytest.mark.parametrize("spacing_mm", _SPACINGS)
def test_every_element_has_the_area_of_the_challenges_library(spacing_mm: Triple) -> None:
    """All 256 ways in which eight voxels can be inside or outside."""
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    for code, area in enumerate(element_areas(spacing_mm)):
        inside = [corner for bit, corner in enumerate(product((0, 1), repeat=3)) if code >> bit & 1]
        assert area == pytest.approx(theirs[sum(kernel[corner] for corner in inside)], abs=1e-12), inside


def test_a_block_has_its_surface() -> None:
    """Faces of 8 x 6 mm and so on, less what the cut edges and corners save."""
    mask = np.zeros((10, 10, 10), bool)
    mask[2:8, 3:7, 1:9] = True
    surface = find_surface(mask, (1.0, 1.0, 1.0))
    faces = 2 * (5 * 3 + 5 * 7 + 3 * 7)  # between the outermost voxels' centres
    edges = 4 * (5 + 3 + 7) * np.sqrt(0.5)
    assert surface.area_mm2 == pytest.approx(faces + edges + 8 * np.sqrt(3) / 8)
    assert (surface.places.min(axis=0) == (2, 3, 1)).all()
    assert (surface.places.max(axis=0) == (8, 7, 9)).all()


def test_distances_of_two_voxels() -> None:
    """Three voxels of 2 mm apart: each of eight elements lies 4 or 6 mm from the other's nearest."""
    masks = np.zeros((2, 1, 6, 1), bool)
    masks[0, 0, 0] = masks[1, 0, 3] = True
    distances = measure((masks[0], masks[1]), (5.0, 2.0, 1.0))
    assert sorted(distances.from_prediction_mm) == [4.0] * 4 + [6.0] * 4
    assert hausdorff_95(distances) == 6
    assert average_distance(distances) == pytest.approx(5)
    assert [surface_dice(distances, mm) for mm in (3.9, 4.0, 5.9, 6.0)] == pytest.approx([0, 0.5, 0.5, 1])


def test_distances_on_a_plane_with_two_spacings() -> None:
    """Two squares in one slice, the reference a column of 2 mm larger: its last corners are 2 mm away, the rest 0."""
    masks = np.zeros((2, 1, 6, 6), bool)
    masks[0, 0, 1:4, 1:4] = masks[1, 0, 1:4, 1:5] = True
    distances = measure((masks[0], masks[1]), (3.0, 1.0, 2.0))
    assert distances.from_prediction_mm.max() == 0
    assert sorted(distances.from_reference_mm) == [0] * 32 + [2] * 8
    assert hausdorff_95(distances) == 2
    assert 0 < average_distance(distances) < 1


def test_empty_regions_have_the_challenges_scores() -> None:
    """Both empty: perfect; one empty: nothing in common, and no distance."""
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert scores((empty, empty), (1.0, 1.0, 1.0)) == [1, 0, 0]
    for masks in ((empty, full), (full, empty)):
        dice, *distances = scores(masks, (1.0, 1.0, 1.0))
        assert dice == 0
        assert np.isnan(distances).all()


@given(arrays(bool, (2, 3, 5, 4)), st.sampled_from(_SPACINGS), st.floats(0, 5))
def test_a_limit_changes_no_score_within_it(masks: NDArray[np.bool_], spacing_mm: Triple, tolerance_mm: float) -> None:
    """Elements beyond the tolerance need not be measured."""
    prediction, reference = (find_surface(mask, spacing_mm) for mask in masks)
    whole = find_distances(prediction, reference, spacing_mm)
    limited = find_distances(prediction, reference, spacing_mm, limit_mm=tolerance_mm)
    assert surface_dice(limited, tolerance_mm) == surface_dice(whole, tolerance_mm)


@given(arrays(bool, (2, 3, 5, 4)), st.sampled_from(_SPACINGS))
def test_scores_do_not_depend_on_sides_or_axes(masks: NDArray[np.bool_], spacing_mm: Triple) -> None:
    """The prediction may be the reference, and the axes any others that keep their spacing."""
    prediction, reference = masks
    expected = scores((prediction, reference), spacing_mm)
    np.testing.assert_allclose(scores((reference, prediction), spacing_mm), expected, atol=1e-9)
    for axes in permutations(range(3)):
        turned = prediction.transpose(axes), reference.transpose(axes)
        z, y, x = (spacing_mm[axis] for axis in axes)
        np.testing.assert_allclose(scores(turned, (z, y, x)), expected, atol=1e-9)


@given(arrays(bool, (2, 3, 5, 4)), st.sampled_from(_SPACINGS), st.lists(st.floats(0, 9), min_size=2, max_size=5))
def test_surface_dice_grows_with_the_tolerance(
    masks: NDArray[np.bool_], spacing_mm: Triple, tolerances_mm: list[float]
) -> None:
    """And equal regions have 1 at any."""
    distances = measure((masks[0], masks[1]), spacing_mm)
    found = [surface_dice(distances, mm) for mm in sorted(tolerances_mm)]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= 1 + 1e-12
    same = measure((masks[0], masks[0]), spacing_mm)
    assert surface_dice(same, 0.0) == 1
    assert hausdorff_95(same) == 0
