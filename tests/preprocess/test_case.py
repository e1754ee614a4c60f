from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from kitsattn.config import from_json, to_json
from kitsattn.preprocess.case import (
    Placement,
    decide_labels,
    prepare_labels,
    prepare_scan,
    restore_probabilities,
)
from kitsattn.preprocess.plan import Target
from kitsattn.preprocess.resample import resampled_shape
from kitsattn.volume.hu import check_hu
from kitsattn.volume.nifti import read_labels, read_scan
from kitsattn.volume.volume import Volume

TARGET = Target(spacing_mm=(3.0, 5.0), clip_hu=(-300.0, 300.0))


def there_and_back(labels: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """Prepare a label map and restore it, as a network that is always right would."""
    prepared = prepare_labels(labels, placement)
    probabilities = np.stack([(prepared == value).astype(np.float32) for value in range(3)])
    return decide_labels(restore_probabilities(probabilities, placement), placement)


def test_prepared_grid_covers_the_body_at_the_plans_spacing(abdomen: tuple[Volume, Volume]) -> None:
    """46 x 65 voxels of 4 x 4 mm become 61 x 52 of 3 x 5 mm; slices stay."""
    prepared = prepare_scan(abdomen[0], TARGET)

    assert prepared.placement == Placement((12, 60, 80), (5, 51, 8, 73), (61, 52))
    assert prepared.shape == (12, 61, 52)


def test_slices_are_cropped_clipped_and_resampled(abdomen: tuple[Volume, Volume]) -> None:
    """A slice is what the steps, done one by one with skimage, give."""
    part = np.clip(abdomen[0].array[3, 5:51, 8:73].astype(float), -300, 300)
    expected = resize(part, (61, 52), order=3, mode="edge", anti_aliasing=False)

    (found,) = prepare_scan(abdomen[0], TARGET).hu(3, 4)

    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-2)
    assert found.min() == -300


def test_blocks_do_not_show(abdomen: tuple[Volume, Volume]) -> None:
    """Slices are the same whether they are asked for together or one by one."""
    deep = abdomen[0].array.repeat(3, axis=0)
    volume = Volume(deep, replace(abdomen[0].geometry, shape=deep.shape))
    prepared = prepare_scan(volume, TARGET)

    together = prepared.hu(0, len(deep))

    assert np.array_equal(together[5:20], prepared.hu(5, 20))
    assert np.array_equal(together[35:], prepared.hu(35, 36))


def test_labels_outside_the_box_come_back_as_background() -> None:
    """Where nothing was prepared nothing is found, and the grid is the scan's exactly."""
    placement = Placement((2, 6, 8), (2, 4, 3, 7), (4, 8))
    labels = np.ones((2, 6, 8), np.uint8)

    restored = there_and_back(labels, placement)

    assert restored.shape == (2, 6, 8)
    assert np.array_equal(np.argwhere(restored).min(axis=0), [0, 2, 3])
    assert restored.sum() == 2 * 2 * 4


def test_the_most_probable_class_wins_and_the_lower_one_of_equals() -> None:
    """Classes are compared voxel by voxel."""
    probabilities = np.array([[[[0.2, 0.4]]], [[[0.5, 0.2]]], [[[0.3, 0.4]]]], np.float32)

    assert decide_labels(probabilities, Placement((1, 1, 3), (0, 1, 1, 3), (1, 2))).tolist() == [[[0, 1, 0]]]


def test_placement_survives_json() -> None:
    """A placement that is written and read is the same placement."""
    placement = Placement((2, 6, 8), (2, 4, 3, 7), (4, 8))

    assert from_json(Placement, to_json(placement), "placement") == placement


@given(
    blocks=arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 2)),
    target=st.tuples(st.floats(0.4, 2.0), st.floats(0.4, 2.0)),
)
def test_labels_come_back_within_half_a_target_voxel(blocks: NDArray[np.uint8], target: tuple[float, float]) -> None:
    """Borders between regions of 6 x 6 mm move by at most half a voxel of the coarser grid, and the grid not at all."""
    labels = blocks.repeat(6, axis=1).repeat(6, axis=2)
    depth, height, width = labels.shape
    shape = resampled_shape((height, width), (1.0, 1.0), target)
    placement = Placement((depth, height, width), (0, height, 0, width), shape)

    restored = there_and_back(labels, placement)

    assert restored.shape == labels.shape
    pitch = (height / shape[0], width / shape[1])
    reach = [int(np.ceil(max(1.0, mm) / 2 + 0.5)) for mm in pitch]
    structure = np.ones((1, 2 * reach[0] + 1, 2 * reach[1] + 1), bool)
    inner = [ndimage.binary_erosion(labels == value, structure, border_value=1) for value in range(3)]
    for value, certain in enumerate(inner):
        assert (restored[certain] == value).all()
    assert set(np.unique(restored)) <= set(np.unique(labels))


@pytest.mark.parametrize("spacing", [0.78125, 1.3])
def test_real_labels_come_back(test_data: Path, spacing: float) -> None:
    """A real label map keeps its grid and each class nearly all of its voxels, at a finer and a coarser spacing."""
    labels = read_labels(test_data / "kits19-labels" / "case_00004.nii.gz")
    _, row_mm, column_mm = labels.geometry.spacing_mm
    depth, height, width = labels.geometry.shape
    box = (100, height - 50, 0, width)
    shape = resampled_shape((height - 150, width), (row_mm, column_mm), (spacing, spacing))

    restored = there_and_back(labels.array, Placement((depth, height, width), box, shape))

    assert restored.shape == labels.array.shape
    for value in np.unique(labels.array):
        before, after = labels.array == value, restored == value
        assert 2 * (before & after).sum() / (before.sum() + after.sum()) > 0.97


def test_real_scan_is_prepared(test_data: Path) -> None:
    """A real CT at twice its resolution keeps its range and its mean."""
    scan = check_hu(read_scan(test_data / "totalsegmentator-example-ct.nii.gz"))
    prepared = prepare_scan(scan, replace(TARGET, spacing_mm=(1.5, 1.5)))

    hu = prepared.hu(40, 60)

    y0, y1, x0, x1 = prepared.placement.box
    assert prepared.placement.prepared_shape == (2 * (y1 - y0), 2 * (x1 - x0))
    assert (hu.min(), hu.max()) == (-300, 300)
    assert hu.mean() == pytest.approx(np.clip(scan.array[40:60, y0:y1, x0:x1], -300, 300).mean(), abs=1)
