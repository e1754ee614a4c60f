"""Augmentation of slabs, against scipy, scikit-image and batchgenerators."""

import math

import numpy as np
import pytest
from batchgenerators.augmentations.utils import interpolate_img
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from kitsattn.batches import augment
from kitsattn.batches.augment import (
    InPlaneTransform,
    LowResolutionTransform,
    affine_matrix,
    build_augmentation,
    crop_centre,
    draw_displacement,
    draw_matrix,
    lower_resolution,
    resample_slab,
    seeded,
)

AIR = -5.0


@pytest.fixture
def generator() -> Generator:
    """A source of randomness."""
    return np.random.default_rng(0)


def _slab(generator: Generator, *shape: int) -> NDArray[np.float32]:
    """Smooth intensities, so that an error of position by a thousandth of a pixel stays below the tolerances."""
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(generator.normal(size=shape), (0, 2, 2)).astype(np.float32)
    smooth /= smooth.std()
    return smooth


def _labels(generator: Generator, *shape: int) -> NDArray[np.float32]:
    """Regions of the labels 0, 1 and 3, each beside both others."""
    regions: NDArray[np.float32] = np.array([0, 1, 3], np.float32)[_slab(generator, 3, *shape).argmax(axis=0)]
    return regions


def _batch(generator: Generator, size: int, side: int) -> dict[str, NDArray[np.float32]]:
    labels = np.stack([_labels(generator, side, side) for _ in range(size)])[:, None]
    return {"data": np.stack([_slab(generator, 5, side, side) for _ in range(size)]), "seg": labels}


@pytest.mark.parametrize(("source", "size"), [((48, 48), (32, 40)), ((49, 48), (32, 39)), ((32, 40), (32, 40))])
def test_a_sample_neither_turned_nor_scaled_is_only_cut(
    generator: Generator, source: tuple[int, int], size: tuple[int, int]
) -> None:
    """Intensities and labels of its middle stay as they are, bit for bit."""
    slabs, labels = generator.normal(size=(2, 5, *source)).astype(np.float32), np.ones((2, 1, *source), np.float32)
    transform = InPlaneTransform(size, AIR, rotation_probability=0, scaling_probability=0)
    augmented = transform(data=slabs, seg=labels)
    top, left = (source[0] - size[0]) // 2, (source[1] - size[1]) // 2
    middle = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    np.testing.assert_array_equal(augmented["data"], slabs[middle])
    np.testing.assert_array_equal(augmented["seg"], labels[middle])


@pytest.mark.parametrize("source", [(48, 48), (49, 48), (48, 49)])
def test_turning_by_nothing_gives_the_middle(generator: Generator, source: tuple[int, int]) -> None:
    """An interpolated patch lies where a patch that is only cut lies, also where the margin is odd."""
    slab, labels = _slab(generator, 5, *source), _labels(generator, *source)
    image, label = resample_slab(slab, labels, (32, 40), matrix=affine_matrix(0, 1), air=AIR)
    np.testing.assert_allclose(image, crop_centre(slab, (32, 40)), atol=1e-4)
    np.testing.assert_array_equal(label, crop_centre(labels, (32, 40)))


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("size", [(32, 32), (32, 40)])
def test_turning_by_a_quarter_is_rot90(generator: Generator, size: tuple[int, int], quarters: int) -> None:
    """Around the middle of the patch, whose sides need not be equal."""
    slab, labels = _slab(generator, 5, 48, 48), _labels(generator, 48, 48)
    matrix = affine_matrix(quarters * math.pi / 2, 1)
    image, label = resample_slab(slab, labels, size, matrix=matrix, air=AIR)
    before = size if quarters == 2 else size[::-1]
    np.testing.assert_allclose(image, np.rot90(crop_centre(slab, before), quarters, axes=(1, 2)), atol=1e-4)
    np.testing.assert_array_equal(label, np.rot90(crop_centre(labels, before), quarters))


@pytest.mark.parametrize(("angle", "scale"), [(0, 0.7), (0, 1.4), (0.6, 1), (-2.5, 1.3)])
def test_intensities_are_those_of_scipy(generator: Generator, angle: float, scale: float) -> None:
    """Linear interpolation at the same places, and air beyond the cut-out."""
    slab, size, matrix = _slab(generator, 5, 48, 47), (32, 40), affine_matrix(angle, scale)
    image, _ = resample_slab(slab, np.zeros((48, 47), np.float32), size, matrix=matrix, air=AIR)
    middle = np.array([8 + 15.5, 3 + 19.5])
    offset = middle - matrix @ [15.5, 19.5]
    expected = [
        ndimage.affine_transform(slice_, matrix, offset, size, order=1, mode="grid-constant", cval=AIR)
        for slice_ in slab
    ]
    np.testing.assert_allclose(image, expected, atol=1e-4)
    assert (image == AIR).any() == (scale >= 1)


@pytest.mark.parametrize(("angle", "scale"), [(0, 0.7), (0, 1.4), (0.6, 1), (-2.5, 1.3)])
def test_labels_are_those_of_batchgenerators(generator: Generator, angle: float, scale: float) -> None:
    """The class with the largest linear membership wins; no label is invented between two others."""
    labels, size, matrix = _labels(generator, 96, 96), (80, 72), affine_matrix(angle, scale)
    _, label = resample_slab(np.zeros((1, 96, 96), np.float32), labels, size, matrix=matrix, air=AIR)
    offsets = np.stack(np.meshgrid(np.arange(80) - 39.5, np.arange(72) - 35.5, indexing="ij"))
    positions = np.tensordot(matrix, offsets, axes=1) + 47.5
    theirs = interpolate_img(labels, positions, order=1, mode="grid-constant", is_seg=True)
    outside = ((positions < 0) | (positions > 95)).any(axis=0)
    np.testing.assert_array_equal(label[~outside], theirs[~outside])
    assert set(np.unique(label)) == {0, 1, 3}
    beyond = ((positions < -1) | (positions > 96)).any(axis=0)
    assert not label[beyond].any()


def test_a_position_midway_between_two_labels_takes_the_higher() -> None:
    """Preprocessing resamples labels by the same rule."""
    labels = np.repeat(np.array([0, 0, 1, 1, 3, 3, 0, 0], np.float32)[None], 8, axis=0)
    _, label = resample_slab(np.zeros((1, 8, 8), np.float32), labels, (7, 7), matrix=np.eye(2), air=AIR)
    np.testing.assert_array_equal(label, labels[:7, :7])
    shifted = np.stack([np.zeros((7, 7)), np.full((7, 7), 0.5)]).astype(np.float32)
    _, label = resample_slab(
        np.zeros((1, 8, 8), np.float32), labels, (7, 7), matrix=np.eye(2), air=AIR, displacement=shifted
    )
    np.testing.assert_array_equal(label[3], [0, 1, 1, 3, 3, 3, 0])


def test_turning_and_scaling_follow_nnu_net(generator: Generator) -> None:
    """A fifth is turned by any angle, a fifth scaled, apart; half of the factors make the picture larger."""
    drawn = [draw_matrix(generator, rotation_probability=0.2, scaling_probability=0.2) for _ in range(20_000)]
    matrices = np.array([matrix for matrix in drawn if matrix is not None])
    assert 1 - len(matrices) / len(drawn) == pytest.approx(0.64, abs=0.02)
    scales = np.sqrt(np.linalg.det(matrices))
    scaled = scales[~np.isclose(scales, 1)]
    assert len(scaled) / len(drawn) == pytest.approx(0.2, abs=0.02)
    assert (scaled < 1).mean() == pytest.approx(0.5, abs=0.03)
    assert np.quantile(scaled, [0, 0.25, 0.75, 1]) == pytest.approx([0.7, 0.85, 1.2, 1.4], abs=0.02)
    angles = np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0])
    turned = angles[angles != 0]
    assert len(turned) / len(drawn) == pytest.approx(0.2, abs=0.02)
    quartiles = np.quantile(turned, [0, 0.25, 0.5, 0.75, 1])
    assert quartiles == pytest.approx(np.linspace(-math.pi, math.pi, 5), abs=0.15)


def test_elastic_deformation_moves_image_and_labels_alike(generator: Generator) -> None:
    """Only where asked for: a region that can be told by its intensity keeps its label."""
    labels = (_slab(generator, 1, 96, 96)[:, None] > 0).astype(np.float32)
    slabs = np.repeat(labels, 3, axis=1)
    settings = {"rotation_probability": 0, "scaling_probability": 0}
    with seeded(np.random.SeedSequence(0)):
        augmented = InPlaneTransform((80, 80), 0.0, elastic_probability=1, **settings)(data=slabs, seg=labels)
    assert (augmented["seg"] != crop_centre(labels, (80, 80))).mean() > 0.02
    np.testing.assert_array_equal(augmented["seg"][0, 0], augmented["data"][0, 1] >= 0.5)


def test_elastic_displacements_are_smooth_and_of_a_few_pixels(generator: Generator) -> None:
    """Neighbours move alike, and y apart from x."""
    moved = np.stack([draw_displacement((64, 64), generator) for _ in range(50)])
    assert moved.shape == (50, 2, 64, 64)
    assert 1 < moved.std() < 4
    assert np.abs(np.diff(moved, axis=-1)).std() < moved.std() / 8
    assert (moved[:, 0] - moved[:, 1]).std() > moved.std()


def test_a_cut_out_smaller_than_the_patch_is_refused() -> None:
    """The message holds both sizes."""
    with pytest.raises(ValueError, match="32 x 40 cannot be cut out of 48 x 39"):
        crop_centre(np.zeros((48, 39), np.float32), (32, 40))


@pytest.mark.parametrize("zoom", [0.5, 0.61, 0.83, 0.99])
def test_low_resolution_is_that_of_scikit_image(generator: Generator, zoom: float) -> None:
    """Pixels are picked and brought back linearly, as batchgenerators does it."""
    slab = generator.normal(size=(3, 64, 48)).astype(np.float32)
    coarse = (round(64 * zoom), round(48 * zoom))
    for slice_, mine in zip(slab, lower_resolution(slab, zoom), strict=True):
        picked = resize(slice_.astype(float), coarse, order=0, mode="edge", anti_aliasing=False)
        restored = resize(picked, (64, 48), order=1, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(mine, restored, atol=1e-5)


def test_a_quarter_of_the_samples_has_low_resolution(generator: Generator) -> None:
    """The share is that of the transform, the slices of a slab have one resolution."""
    slabs = generator.normal(size=(400, 2, 16, 16)).astype(np.float32)
    slabs[:, 1] = slabs[:, 0]
    with seeded(np.random.SeedSequence(0)):
        changed = LowResolutionTransform(probability=0.25)(data=slabs.copy())["data"]
    assert (changed != slabs).any(axis=(1, 2, 3)).mean() == pytest.approx(0.25, abs=0.06)
    np.testing.assert_array_equal(changed[:, 0], changed[:, 1])


def test_a_batch_of_one_is_augmented_by_its_seed_alone(generator: Generator) -> None:
    """The same transform gives the same sample again, whatever it saw in between, and another for another seed."""
    transform, batch = build_augmentation((32, 40), AIR, elastic_probability=0.2), _batch(generator, 1, 48)
    first = []
    for _ in range(2):
        samples = []
        for number in range(20):
            with seeded(np.random.SeedSequence(number)):
                samples.append(transform(data=batch["data"].copy(), seg=batch["seg"].copy()))
        first.append(samples)
    for once, again in zip(*first, strict=True):
        assert once["data"].shape == (1, 5, 32, 40)
        assert once["data"].dtype == np.float32
        assert set(np.unique(once["seg"])) <= {0, 1, 3}
        np.testing.assert_array_equal(once["data"], again["data"])
        np.testing.assert_array_equal(once["seg"], again["seg"])
    assert len({sample["data"].tobytes() for sample in first[0]}) > 10


def test_the_samples_of_a_batch_are_drawn_apart(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal samples are turned by different angles."""
    drawn = []

    def keep(*given: object, **settings: object) -> object:
        drawn.append(settings["matrix"])
        return resample_slab(*given, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(augment, "resample_slab", keep)
    transform = InPlaneTransform((32, 40), AIR, rotation_probability=1, scaling_probability=1)
    transform(**_batch(generator, 3, 48))
    assert len({np.asarray(matrix).tobytes() for matrix in drawn}) == 3
