"""Measurements of label maps, worked out by hand on boxes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from kitsattn.errors import KitsattnError
from kitsattn.labels import CYST, KIDNEY, KITS19_LABELS, KITS23_LABELS, TUMOUR
from kitsattn.predict.statistics import LabelStatistics, Measurements, measure_labels
from kitsattn.volume.formats import read_labels
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume

SHAPE = (20, 60, 120)
SPACING_MM = (5.0, 2.0, 2.0)


def volume(array: NDArray[np.uint8], spacing_mm: tuple[float, float, float] = SPACING_MM) -> Volume:
    """Return an unrotated label map whose first voxel lies at the world's origin."""
    depth, height, width = array.shape
    return Volume(array, Geometry.axial((depth, height, width), spacing_mm))


@pytest.fixture
def kidneys() -> NDArray[np.uint8]:
    """A right kidney of 5 x 20 x 20 voxels, 40 ml, with a tumour, and a larger left one, in a grid of 240 mm."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:10, 20:40, 15:35] = KIDNEY
    labels[5:10, 40:44, 15:25] = TUMOUR
    labels[5:13, 20:40, 80:100] = KIDNEY
    return labels


def sides(statistics: LabelStatistics) -> list[str]:
    """Return the sides of the kidneys, the largest first."""
    return [kidney.side for kidney in statistics.kidneys]


def test_two_boxes_are_measured_as_worked_out_by_hand() -> None:
    """Voxels of 5 x 2 x 1 mm; 2 x 3 x 4 voxels of 10 and 20 HU, and one row of 5 elsewhere of 40 HU."""
    labels = np.zeros((6, 10, 12), np.uint8)
    labels[1:3, 2:5, 4:8] = TUMOUR
    labels[5, 0, 0:5] = TUMOUR
    scan = np.zeros(labels.shape, np.int16)
    scan[1], scan[2], scan[5] = 10, 20, 40
    geometry = Geometry.axial((6, 10, 12), (5.0, 2.0, 1.0), (100.0, -50.0, 7.0))
    tumour = measure_labels(Volume(labels, geometry), KITS19_LABELS, scan).classes["tumour"]
    box, row = (component.measurements for component in tumour.components)
    assert box.voxels == 24
    assert box.volume_ml == pytest.approx(0.24)
    assert (box.mean_hu, box.sd_hu) == (15, 5)
    # 3 rows of 2 mm and 4 columns of 1 mm: from the upper edge of one corner pixel to the lower of the other, 3 columns
    # apart, or from the left edge to the right, 2 rows apart.
    assert box.longest_axial_diameter_mm == pytest.approx(np.hypot(6, 3))
    assert box.centroid_mm == pytest.approx((107.5, -44, 12.5))
    assert (box.first_voxel, box.last_voxel) == ((1, 2, 4), (2, 4, 7))
    assert box.low_mm == pytest.approx((102.5, -47, 10.5))
    assert box.high_mm == pytest.approx((112.5, -41, 14.5))
    assert row.longest_axial_diameter_mm == pytest.approx(5)
    assert (row.mean_hu, row.sd_hu) == (40, 0)
    whole = tumour.measurements
    assert whole.voxels == 29
    assert whole.mean_hu == pytest.approx((12 * 10 + 12 * 20 + 5 * 40) / 29)
    assert whole.longest_axial_diameter_mm == box.longest_axial_diameter_mm
    assert (whole.first_voxel, whole.last_voxel) == ((1, 0, 0), (5, 4, 7))


def test_one_voxel_is_as_long_as_its_longer_edge() -> None:
    """Its spread of HU is 0."""
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[1, 1, 1] = KIDNEY
    statistics = measure_labels(volume(labels, (5.0, 2.0, 1.0)), KITS19_LABELS, np.full((3, 3, 3), 30.0, np.float32))
    measured = statistics.classes["kidney"].measurements
    assert measured.longest_axial_diameter_mm == pytest.approx(2)
    assert (measured.mean_hu, measured.sd_hu) == (30, 0)
    assert measured.volume_ml == pytest.approx(0.01)
    assert statistics.kidneys == ()


def test_the_diameter_is_that_of_the_longest_slice_not_of_the_shadow_of_all() -> None:
    """A staircase of rows, each of 3 mm: what lies in different slices has no axial distance."""
    labels = np.zeros((4, 4, 12), np.uint8)
    for z in range(4):
        labels[z, z, 3 * z : 3 * z + 3] = TUMOUR
    (component,) = measure_labels(volume(labels, (5.0, 1.0, 1.0)), KITS19_LABELS).classes["tumour"].components
    assert component.measurements.longest_axial_diameter_mm == pytest.approx(3)


@given(st.integers(0, 2**32 - 1))
def test_the_diameter_is_the_longest_of_all_pairs(seed: int) -> None:
    """Of all pixels' edges in each slice of a random blob, on anisotropic spacing."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((3, 7, 9)) < 0.6).astype(np.uint8)
    measured = measure_labels(volume(labels, (3.0, 0.7, 1.1)), {"background": 0, "blob": 1}).classes["blob"].components
    longest = 0.0
    if len(measured) == 1:
        for label_slice in labels:
            pixels = np.argwhere(label_slice)
            edges = np.concatenate([pixels + step for step in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))])
            longest = max([longest, *pdist(edges * (0.7, 1.1))])
        assert measured[0].measurements.longest_axial_diameter_mm == pytest.approx(longest)


def test_a_class_without_voxels_has_no_measurements(kidneys: NDArray[np.uint8]) -> None:
    """Volume 0, the rest null, no components; an empty map too."""
    cyst = measure_labels(volume(kidneys), KITS23_LABELS).classes["cyst"]
    assert cyst.measurements == Measurements(voxels=0, volume_ml=0.0)
    assert cyst.components == ()
    assert cyst.to_json()["bounding_box_mm"] is None
    empty = measure_labels(volume(np.zeros(SHAPE, np.uint8)), KITS19_LABELS, np.zeros(SHAPE, np.int16))
    assert empty.kidneys == ()
    assert all(found.measurements.voxels == 0 for found in empty.classes.values())


def test_kidneys_are_told_apart_and_their_masses_with_them(kidneys: NDArray[np.uint8]) -> None:
    """The left one is larger; the tumour is the right one's; a mass apart has no side."""
    kidneys[17:19, 0:5, 60:65] = TUMOUR
    statistics = measure_labels(volume(kidneys), KITS19_LABELS)
    assert sides(statistics) == ["left", "right"]
    assert statistics.midline_from == "kidneys"
    # Centres at x = 24.5 and 89.5, 2 mm a voxel.
    assert statistics.midline_left_mm == pytest.approx(114)
    left, right = statistics.kidneys
    assert left.volumes_ml == pytest.approx({"kidney": 64, "tumour": 0})
    assert right.volumes_ml == pytest.approx({"kidney": 40, "tumour": 4})
    assert right.measurements.volume_ml == pytest.approx(44)
    assert [component.side for component in statistics.classes["kidney"].components] == ["left", "right"]
    assert [component.side for component in statistics.classes["tumour"].components] == ["right", None]


def test_a_flipped_or_turned_grid_changes_no_side(kidneys: NDArray[np.uint8]) -> None:
    """Stored from left to right, and with rows and columns exchanged and the body turned by 20 degrees."""
    labels = volume(kidneys)
    flipped = replace(
        labels.geometry, origin_mm=(0.0, 0.0, 238.0), direction=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
    )
    statistics = measure_labels(Volume(np.ascontiguousarray(kidneys[:, :, ::-1]), flipped), KITS19_LABELS)
    reference = measure_labels(labels, KITS19_LABELS)
    assert sides(statistics) == ["left", "right"]
    assert statistics.midline_left_mm == pytest.approx(reference.midline_left_mm)
    for one, other in zip(statistics.kidneys, reference.kidneys, strict=True):
        assert one.measurements.centroid_mm == pytest.approx(other.measurements.centroid_mm)
        assert one.measurements.low_mm == pytest.approx(other.measurements.low_mm)
        assert one.measurements.high_mm == pytest.approx(other.measurements.high_mm)
    cosine, sine = np.cos(np.radians(20)), np.sin(np.radians(20))
    turned = Geometry(
        (20, 120, 60), (5.0, 2.0, 2.0), (0.0, 0.0, 0.0), ((1.0, 0.0, 0.0), (0.0, -sine, cosine), (0.0, cosine, sine))
    )
    assert sides(measure_labels(Volume(np.ascontiguousarray(kidneys.swapaxes(1, 2)), turned), KITS19_LABELS)) == [
        "left",
        "right",
    ]


def test_a_single_kidney_is_judged_by_the_body(kidneys: NDArray[np.uint8]) -> None:
    """The body lies off the image's middle, so that the kidney is in the image's left half but the body's right."""
    kidneys[:, :, :40] = 0
    kidneys[:, :, 60:] = 0
    kidneys[5:10, 20:40, 62:82] = KIDNEY
    scan = np.full(SHAPE, -1000, np.int16)
    scan[:, 10:50, 58:120] = 40
    assert sides(measure_labels(volume(kidneys), KITS19_LABELS)) == ["left"]
    statistics = measure_labels(volume(kidneys), KITS19_LABELS, scan)
    assert sides(statistics) == ["right"]
    assert statistics.midline_from == "body"
    # The body's columns are 58 to 119, 2 mm each.
    assert statistics.midline_left_mm == pytest.approx(177)


def test_a_horseshoe_kidney_lies_on_the_midline(kidneys: NDArray[np.uint8]) -> None:
    """Both kidneys joined by an isthmus are one that crosses it; its tumour is the midline's."""
    kidneys[5, 20:30, 35:80] = KIDNEY
    statistics = measure_labels(volume(kidneys), KITS19_LABELS)
    assert sides(statistics) == ["midline"]
    assert statistics.midline_from == "image"
    assert [component.side for component in statistics.classes["tumour"].components] == ["midline"]


def test_two_kidneys_on_one_side_are_not_parted(kidneys: NDArray[np.uint8]) -> None:
    """A crossed kidney: the point between them lies far from the middle, which parts left from right then."""
    kidneys[:] = 0
    kidneys[5:10, 20:40, 62:82] = KIDNEY
    kidneys[5:10, 20:40, 95:115] = KIDNEY
    statistics = measure_labels(volume(kidneys), KITS19_LABELS)
    assert sides(statistics) == ["left", "left"]
    assert statistics.midline_from == "image"


def test_a_tumour_that_grows_across_does_not_move_its_kidney(kidneys: NDArray[np.uint8]) -> None:
    """The right kidney's tumour is larger than the kidney and lies left of the midline for the most part."""
    kidneys[5:10, 20:45, 35:79] = TUMOUR
    statistics = measure_labels(volume(kidneys), KITS19_LABELS)
    right = statistics.kidneys[[kidney.side for kidney in statistics.kidneys].index("right")]
    assert right.volumes_ml["tumour"] > right.volumes_ml["kidney"]
    assert sides(statistics) == ["right", "left"]


def test_scans_are_read_slice_by_slice(kidneys: NDArray[np.uint8]) -> None:
    """An iterator gives what the array gives."""
    scan = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    labels = volume(kidneys)
    statistics = measure_labels(labels, KITS19_LABELS, iter(scan))
    assert statistics == measure_labels(labels, KITS19_LABELS, scan)
    kidney = statistics.classes["kidney"].measurements
    assert kidney.mean_hu == pytest.approx(scan[kidneys == KIDNEY].mean())
    assert kidney.sd_hu == pytest.approx(scan[kidneys == KIDNEY].std())


@pytest.mark.parametrize("shape", [(19, 60, 120), (21, 60, 120), (20, 120, 60)])
def test_another_scan_is_refused(kidneys: NDArray[np.uint8], shape: tuple[int, int, int]) -> None:
    """With fewer, more or other slices."""
    with pytest.raises(KitsattnError, match="give the scan it belongs to"):
        measure_labels(volume(kidneys), KITS19_LABELS, np.zeros(shape, np.int16))


def test_unknown_values_are_refused(kidneys: NDArray[np.uint8]) -> None:
    """By the classes' names."""
    kidneys[0, 0, 0] = CYST
    with pytest.raises(KitsattnError, match="0 background, 1 kidney, 2 tumour"):
        measure_labels(volume(kidneys), KITS19_LABELS)


def test_json_names_axes_and_units(kidneys: NDArray[np.uint8]) -> None:
    """What a reader of the file sees, without the code."""
    content = json.loads(json.dumps(measure_labels(volume(kidneys), KITS19_LABELS).to_json()))
    assert content["spacing_mm"] == {"z": 5, "y": 2, "x": 2}
    assert content["midline"] == {"left_mm": 114, "from": "kidneys"}
    (tumour,) = content["classes"]["tumour"]["components"]
    assert tumour == {
        "side": "right",
        "voxels": 200,
        "volume_ml": pytest.approx(4),
        "mean_hu": None,
        "sd_hu": None,
        "longest_axial_diameter_mm": pytest.approx(np.hypot(20, 6)),
        "centroid_mm": {"left": 39, "posterior": 83, "superior": 35},
        "bounding_box_mm": {"left": [29, 49], "posterior": [79, 87], "superior": [22.5, 47.5]},
        "bounding_box_voxels": {"z": [5, 9], "y": [40, 43], "x": [15, 24]},
    }
    assert set(content["conventions"]) >= {"side", "longest_axial_diameter", "mm", "voxels"}


@pytest.mark.parametrize("case", ["case_00004", "case_00030", "case_00040"])
def test_real_kidneys_are_told_apart(test_data: Path, case: str) -> None:
    """Also beside a tumour of 1.4 l, and where the kidneys lie 25 mm off the image's middle."""
    labels = read_labels(test_data / "kits19-labels" / f"{case}.nii.gz")
    statistics = measure_labels(labels, KITS19_LABELS)
    assert sorted(sides(statistics)) == ["left", "right"]
    centres = {kidney.side: kidney.measurements.centroid_mm for kidney in statistics.kidneys}
    assert centres["left"] is not None
    assert centres["right"] is not None
    assert centres["left"][2] > centres["right"][2] + 50
