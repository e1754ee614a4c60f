"""Surfaces and their distances: equal to the challenges' library, and what can be said by hand, in each definition."""

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

from kitsattn.evaluate.definition import Definition
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


def measure(masks: Masks, spacing_mm: Triple, definition: Definition = Definition.surface_distance) -> SurfaceDistances:
    """Return the distances of two regions."""
    prediction, reference = (find_surface(mask, spacing_mm, definition=definition) for mask in masks)
    return find_distances(prediction, reference, spacing_mm)


def scores(masks: Masks, spacing_mm: Triple, definition: Definition = Definition.surface_distance) -> list[float]:
    """Return what `official` computes."""
    distances = measure(masks, spacing_mm, definition)
    return [surface_dice(distances, 1.13), hausdorff_95(distances), average_distance(distances)]


def random_blobs(seed: int) -> tuple[Masks, Triple]:
    """Return two blobs of any roughness, at the border, of one voxel, one slice, and a grid of any spacing."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 18, 3))
    z, y, x = rng.uniform(0.4, 4, 3).tolist()
    noise = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, *[rng.uniform(0, 2)] * 3))
    noise[1] = rng.choice([0.1, 0.5, 1.0]) * noise[1] + noise[0]
    least = [np.quantile(one, rng.choice([0.3, 0.8, 0.99])) for one in noise]
    prediction, reference = (one >= limit for one, limit in zip(noise, least, strict=True))
    return (prediction, reference), (z, y, x)


def border_distances(masks: Masks, spacing_mm: Triple) -> list[NDArray[np.float64]]:
    """Return the distances of both regions' border voxels, restated with the operations that MedPy has."""
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    away = [ndimage.distance_transform_edt(~border, sampling=spacing_mm) for border in borders]
    return [away[1][borders[0]], away[0][borders[1]]]


@pytest.mark.parametrize("seed", range(60))
def test_scores_are_those_of_the_challenges_library(
    seed: int, official: Callable[[Masks, Triple], list[float]]
) -> None:
    """Blobs of any roughness, at the border, of one voxel, one slice, on grids of any spacing."""
    masks, spacing_mm = random_blobs(seed)
    np.testing.assert_allclose(scores(masks, spacing_mm), official(masks, spacing_mm), atol=1e-9)


@pytest.mark.parametrize("seed", range(60))
def test_scores_of_border_voxels_are_those_of_erosion_and_distance_transform(seed: int) -> None:
    """MedPy takes the percentile of both directions together, MONAI the larger of two; both pool the mean."""
    masks, spacing_mm = random_blobs(seed)
    directed = border_distances(masks, spacing_mm)
    pooled = np.concatenate(directed)
    within = np.mean(pooled <= 1.13)
    expected = {
        Definition.medpy: [within, np.percentile(pooled, 95), pooled.mean()],
        Definition.monai: [within, max(np.percentile(mm, 95) for mm in directed), pooled.mean()],
    }
    for definition, values in expected.items():
        np.testing.assert_allclose(scores(masks, spacing_mm, definition), values, atol=1e-9, err_msg=definition)


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
    assert surface.weight == pytest.approx(faces + edges + 8 * np.sqrt(3) / 8)
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


def test_a_bump_of_one_voxel_scores_otherwise_in_each_definition() -> None:
    """A square of 3 x 3 voxels, the reference with another voxel 2 mm below its middle.

    That voxel is 1 of 10 of the reference's and 1 of 19 of both, and 2 mm away: interpolated, 95 % of 10 lie within
    0.55 of it, and of 19 within 0.1. Between voxels its four far corners have 4.8 % of the reference's area.
    """
    masks = np.zeros((2, 1, 6, 5), bool)
    masks[:, 0, 1:4, 1:4] = True
    masks[1, 0, 4, 2] = True
    spacing_mm = (3.0, 2.0, 1.0)
    corner, along_y, along_x, plane = 7 / 8, np.sqrt(10), np.sqrt(13) / 2, 2
    prediction_mm2 = 2 * (4 * corner + 4 * along_y + 4 * along_x + 4 * plane)
    reference_mm2 = 2 * (6 * corner + 4 * along_y + 2 * along_x + 4 * plane + 2 * (3 * corner + plane / 2))
    far = 4 * corner
    expected = {
        Definition.surface_distance: [1 - far / (prediction_mm2 + reference_mm2), 0, far / reference_mm2],
        Definition.medpy: [18 / 19, 0.2, 2 / 19],
        Definition.monai: [18 / 19, 1.1, 2 / 19],
    }
    for definition, values in expected.items():
        assert scores((masks[0], masks[1]), spacing_mm, definition) == pytest.approx(values), definition
        assert surface_dice(measure((masks[0], masks[1]), spacing_mm, definition), 2.0) == 1


@pytest.mark.parametrize("definition", [Definition.medpy, Definition.monai])
def test_distances_of_two_squares_of_border_voxels(definition: Definition) -> None:
    """At the edge of the grid, one moved by a row of 2 mm: half of the voxels of each are 2 mm from the other's."""
    masks = np.zeros((2, 1, 3, 2), bool)
    masks[0, 0, :2] = masks[1, 0, 1:] = True
    distances = measure((masks[0], masks[1]), (5.0, 2.0, 1.0), definition)
    assert distances.from_prediction_mm.tolist() == [2, 2, 0, 0]
    assert distances.from_reference_mm.tolist() == [0, 0, 2, 2]
    assert hausdorff_95(distances) == 2
    assert average_distance(distances) == 1
    assert [surface_dice(distances, mm) for mm in (1.9, 2.0)] == [0.5, 1]


@pytest.mark.parametrize("definition", [Definition.medpy, Definition.monai])
def test_distances_of_two_border_voxels(definition: Definition) -> None:
    """Each is its own border: three voxels of 2 mm apart."""
    masks = np.zeros((2, 1, 6, 1), bool)
    masks[0, 0, 0] = masks[1, 0, 3] = True
    distances = measure((masks[0], masks[1]), (5.0, 2.0, 1.0), definition)
    assert hausdorff_95(distances) == average_distance(distances) == 6
    assert [surface_dice(distances, mm) for mm in (5.9, 6.0)] == [0, 1]


def test_border_voxels_are_those_with_a_face_outside() -> None:
    """Of a block at the edge of the grid all but its middle, also where a voxel at its corner is missing."""
    mask = np.ones((3, 3, 4), bool)
    mask[0, 0, 0] = False
    surface = find_surface(mask, (5.0, 2.0, 1.0), definition=Definition.medpy)
    inside = {(1, 1, 1), (1, 1, 2)}
    assert {tuple(place) for place in surface.places.tolist()} == {*np.ndindex(3, 3, 4)} - inside - {(0, 0, 0)}
    assert surface.weight == 33


def test_surfaces_of_two_definitions_are_not_compared() -> None:
    """Their elements lie on different grids."""
    mask = np.ones((1, 1, 1), bool)
    between, border = (
        find_surface(mask, (1.0, 1.0, 1.0), definition=definition) for definition in list(Definition)[:2]
    )
    with pytest.raises(ValueError, match="surfaces by surface-distance and by medpy"):
        find_distances(between, border, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("definition", Definition)
def test_empty_regions_have_the_challenges_scores(definition: Definition) -> None:
    """Both empty: perfect; one empty: nothing in common, and no distance."""
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert scores((empty, empty), (1.0, 1.0, 1.0), definition) == [1, 0, 0]
    for masks in ((empty, full), (full, empty)):
        dice, *distances = scores(masks, (1.0, 1.0, 1.0), definition)
        assert dice == 0
        assert np.isnan(distances).all()


@given(arrays(bool, (2, 3, 5, 4)), st.sampled_from(_SPACINGS), st.floats(0, 5), st.sampled_from(Definition))
def test_a_limit_changes_no_score_within_it(
    masks: NDArray[np.bool_], spacing_mm: Triple, tolerance_mm: float, definition: Definition
) -> None:
    """Elements beyond the tolerance need not be measured."""
    prediction, reference = (find_surface(mask, spacing_mm, definition=definition) for mask in masks)
    whole = find_distances(prediction, reference, spacing_mm)
    limited = find_distances(prediction, reference, spacing_mm, limit_mm=tolerance_mm)
    assert surface_dice(limited, tolerance_mm) == surface_dice(whole, tolerance_mm)


@given(arrays(bool, (2, 3, 5, 4)), st.sampled_from(_SPACINGS), st.sampled_from(Definition))
def test_scores_do_not_depend_on_sides_axes_or_the_room_around(
    masks: NDArray[np.bool_], spacing_mm: Triple, definition: Definition
) -> None:
    """The prediction may be the reference, the axes any others that keep their spacing, and the grid larger."""
    prediction, reference = masks
    expected = scores((prediction, reference), spacing_mm, definition)
    np.testing.assert_allclose(scores((reference, prediction), spacing_mm, definition), expected, atol=1e-9)
    for axes in permutations(range(3)):
        turned = prediction.transpose(axes), reference.transpose(axes)
        z, y, x = (spacing_mm[axis] for axis in axes)
        np.testing.assert_allclose(scores(turned, (z, y, x), definition), expected, atol=1e-9)
    room = ((1, 0), (0, 2), (3, 1))
    padded = np.pad(prediction, room), np.pad(reference, room)
    np.testing.assert_allclose(scores(padded, spacing_mm, definition), expected, atol=1e-9)


@given(
    arrays(bool, (2, 3, 5, 4)),
    st.sampled_from(_SPACINGS),
    st.lists(st.floats(0, 9), min_size=2, max_size=5),
    st.sampled_from(Definition),
)
def test_surface_dice_grows_with_the_tolerance(
    masks: NDArray[np.bool_], spacing_mm: Triple, tolerances_mm: list[float], definition: Definition
) -> None:
    """And equal regions have 1 at any."""
    distances = measure((masks[0], masks[1]), spacing_mm, definition)
    found = [surface_dice(distances, mm) for mm in sorted(tolerances_mm)]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= 1 + 1e-12
    same = measure((masks[0], masks[0]), spacing_mm, definition)
    assert surface_dice(same, 0.0) == 1
    assert hausdorff_95(same) == 0
