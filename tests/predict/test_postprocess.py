"""Post-processing of label maps, on boxes in voxels of 2 x 1 x 1 mm, 500 of which are 1 ml."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kitsattn.config import from_json
from kitsattn.errors import KitsattnError
from kitsattn.labels import CYST, KIDNEY, KITS19_LABELS, KITS23_LABELS, TUMOUR
from kitsattn.predict.postprocess import Postprocessing, PostprocessReport, Step, postprocess
from kitsattn.volume.formats import read_labels

SPACING_MM = (2.0, 1.0, 1.0)
SMALL, SURPLUS, DETACHED, SPECKS, HOLES = (
    "small objects",
    "surplus kidneys",
    "detached masses",
    "tumour specks",
    "holes in masses",
)


@pytest.fixture
def kidneys() -> NDArray[np.uint8]:
    """Two kidneys of 20 x 30 x 25 voxels, 30 ml each, with room around them."""
    labels = np.zeros((60, 80, 160), np.uint8)
    labels[10:30, 20:50, 10:35] = KIDNEY
    labels[10:30, 20:50, 120:145] = KIDNEY
    return labels


def run(
    labels: NDArray[np.uint8], rules: Postprocessing | None = None
) -> tuple[NDArray[np.uint8], PostprocessReport, dict[str, Step]]:
    """Post-process with the classes of KiTS23, and check that the report counts what changed."""
    before = labels.copy()
    result, report = postprocess(labels, SPACING_MM, KITS23_LABELS, rules=rules)
    np.testing.assert_array_equal(labels, before)
    assert report.voxels == np.count_nonzero(result != labels)
    return result, report, {step.name: step for step in report.steps}


def test_two_kidneys_with_masses_are_left_as_they_are(kidneys: NDArray[np.uint8]) -> None:
    """A tumour on one, a cyst within and a chain of cyst and tumour on the other; every rule reports nothing."""
    kidneys[10:20, 50:60, 10:20] = TUMOUR
    kidneys[15:17, 30:32, 130:132] = CYST
    kidneys[10:20, 50:55, 130:135] = CYST
    kidneys[10:20, 55:60, 130:135] = TUMOUR
    result, report, _ = run(kidneys)
    np.testing.assert_array_equal(result, kidneys)
    assert report.steps == tuple(Step(name) for name in (SMALL, SURPLUS, DETACHED, SPECKS, HOLES))


def test_small_objects_go_whatever_their_class(kidneys: NDArray[np.uint8]) -> None:
    """99 voxels are less than 0.2 ml, 100 are not."""
    kidneys[50, 0:9, 0:11] = KIDNEY
    kidneys[50, 0:9, 40:51] = TUMOUR
    kidneys[31, 20:30, 10:20] = TUMOUR
    result, _, steps = run(kidneys)
    assert steps[SMALL] == Step(SMALL, 198, 2, ("2 objects under 0.2 ml",))
    assert not result[50].any()
    assert (result[31] == kidneys[31]).all()


def test_no_object_is_small_where_the_least_volume_is_0(kidneys: NDArray[np.uint8]) -> None:
    """A single voxel beside a kidney stays, and so does a tumour of one voxel."""
    kidneys[31, 20, 10] = KIDNEY
    kidneys[20, 30, 20] = TUMOUR
    result, _, _ = run(kidneys, Postprocessing(min_volume_ml=0))
    np.testing.assert_array_equal(result, kidneys)


def test_a_third_kidney_goes_unless_its_size_says_otherwise(kidneys: NDArray[np.uint8]) -> None:
    """5 ml in the liver go; a transplant of 20 ml stays, and both are named."""
    kidneys[40:50, 0:10, 0:25] = KIDNEY
    kidneys[38:58, 50:70, 60:85] = KIDNEY
    result, _, steps = run(kidneys)
    assert steps[SURPLUS].voxels == 2500
    assert steps[SURPLUS].components == 1
    assert steps[SURPLUS].reasons == (
        "kept: kidney object 3 by size, 20 ml, large enough to be one more kidney",
        "removed: kidney object 4 by size, 5 ml",
    )
    assert not result[40:50, 0:10, 0:25].any()
    assert (result[38:58, 50:70, 60:85] == KIDNEY).all()


def test_a_piece_near_a_kidney_stays(kidneys: NDArray[np.uint8]) -> None:
    """Its nearest voxel lies 5 mm from the kidney's, or two slices, also where slices are thicker than 5 mm."""
    kidneys[10:30, 54:58, 10:35] = KIDNEY
    kidneys[31:33, 20:50, 120:145] = KIDNEY
    result, _, steps = run(kidneys)
    np.testing.assert_array_equal(result, kidneys)
    assert len(steps[SURPLUS].reasons) == 2
    assert all(reason.endswith("near a larger one") for reason in steps[SURPLUS].reasons)
    result, _ = postprocess(kidneys, (8.0, 1.0, 1.0), KITS23_LABELS, rules=Postprocessing(large_ml=100))
    np.testing.assert_array_equal(result, kidneys)


def test_a_piece_farther_away_goes(kidneys: NDArray[np.uint8]) -> None:
    """6 mm from voxel to voxel."""
    kidneys[10:30, 55:58, 10:35] = KIDNEY
    result, _, steps = run(kidneys)
    assert steps[SURPLUS].voxels == 20 * 3 * 25
    assert not result[:, 55:58].any()


def test_a_horseshoe_kidney_is_one_object_and_stays_beside_a_second() -> None:
    """Two halves joined by an isthmus of one voxel, and a small kidney."""
    labels = np.zeros((40, 60, 120), np.uint8)
    labels[0:20, 10:40, 10:40] = labels[0:20, 10:40, 60:90] = labels[0, 10, 40:60] = KIDNEY
    labels[30:40, 0:10, 100:120] = KIDNEY
    result, report, _ = run(labels)
    np.testing.assert_array_equal(result, labels)
    assert report.voxels == 0


def test_a_detached_mass_goes_unless_it_may_have_replaced_a_kidney(kidneys: NDArray[np.uint8]) -> None:
    """4 ml of tumour and 1 ml of cyst go; 25 ml stay beside one kidney, and beside a second that is a small rest."""
    kidneys[:, :, 120:145] = 0
    kidneys[10:30, 20:50, 110:120] = KIDNEY
    kidneys[40:50, 0:10, 0:20] = TUMOUR
    kidneys[40:50, 0:10, 150:155] = CYST
    kidneys[38:58, 50:75, 60:85] = TUMOUR
    result, _, steps = run(kidneys)
    assert steps[DETACHED] == Step(
        DETACHED,
        2500,
        2,
        (
            "kept: mass of 25 ml away from any kidney, large",
            "removed: mass of 4 ml away from any kidney",
            "removed: mass of 1 ml away from any kidney",
        ),
    )
    assert not result[:, 0:10].any()
    assert (result[38:58, 50:75, 60:85] == TUMOUR).all()


def test_a_large_mass_away_from_two_kidneys_goes(kidneys: NDArray[np.uint8]) -> None:
    """Such as a full bladder that a network takes for a tumour; at the end of the scan it stays."""
    kidneys[38:58, 50:75, 60:85] = TUMOUR
    result, _, steps = run(kidneys)
    assert steps[DETACHED].reasons == ("removed: mass of 25 ml away from any kidney",)
    assert not (result == TUMOUR).any()
    kidneys[38:60, 50:75, 60:85] = TUMOUR
    result, _, steps = run(kidneys)
    np.testing.assert_array_equal(result, kidneys)


def test_what_the_end_of_the_scan_cuts_stays(kidneys: NDArray[np.uint8]) -> None:
    """Piece of kidney and tumour in the last slice, tumour in the first: their kidneys may lie outside."""
    kidneys[50:60, 0:10, 0:20] = KIDNEY
    kidneys[58:60, 0:10, 60:80] = TUMOUR
    kidneys[0:5, 70:80, 60:80] = TUMOUR
    result, _, steps = run(kidneys)
    np.testing.assert_array_equal(result, kidneys)
    assert steps[SURPLUS].reasons == ("kept: kidney object 3 by size, 4 ml, cut by the end of the scan",)
    assert len(steps[DETACHED].reasons) == 2


def test_a_mass_one_missed_slice_away_is_attached(kidneys: NDArray[np.uint8]) -> None:
    """Also where that slice is 8 mm thick."""
    kidneys[31:35, 30:40, 15:25] = TUMOUR
    for spacing_mm in (SPACING_MM, (8.0, 1.0, 1.0)):
        result, _ = postprocess(kidneys, spacing_mm, KITS19_LABELS)
        np.testing.assert_array_equal(result, kidneys)


def test_a_speck_of_kidney_makes_no_mass_a_kidney(kidneys: NDArray[np.uint8]) -> None:
    """A tumour of 4 ml in the liver goes with the voxel of kidney on it."""
    kidneys[40:50, 0:10, 0:20] = TUMOUR
    kidneys[40, 0, 0] = KIDNEY
    result, _, steps = run(kidneys)
    assert steps[DETACHED].voxels == 2000
    assert not result[40:50, 0:10].any()


def test_specks_of_tumour_in_an_object_get_the_class_around_them(kidneys: NDArray[np.uint8]) -> None:
    """One in kidney and one in a cyst; cysts of that size and kidney tissue in a tumour stay."""
    kidneys[20, 30, 20] = TUMOUR
    kidneys[10:20, 20:30, 120:130] = CYST
    kidneys[14:16, 24, 124] = TUMOUR
    kidneys[25, 45, 140] = CYST
    kidneys[20:30, 40:50, 10:20] = TUMOUR
    kidneys[25, 45, 15] = KIDNEY
    result, _, steps = run(kidneys)
    expected = kidneys.copy()
    expected[20, 30, 20] = KIDNEY
    expected[14:16, 24, 124] = CYST
    np.testing.assert_array_equal(result, expected)
    assert steps[SPECKS] == Step(SPECKS, 3, 2, ("to cyst: 0.004 ml of tumour", "to kidney: 0.002 ml of tumour"))


def test_a_speck_of_tumour_on_the_surface_becomes_kidney(kidneys: NDArray[np.uint8]) -> None:
    """At a corner, where there is more background around it than kidney."""
    kidneys[30, 50, 35] = TUMOUR
    result, _, steps = run(kidneys)
    assert result[30, 50, 35] == KIDNEY
    assert steps[SPECKS].components == 1


def test_holes_in_masses_are_filled_and_the_renal_sinus_is_not(kidneys: NDArray[np.uint8]) -> None:
    """Enclosed by tumour, by a cyst; by kidney; by kidney and tumour; open to the outside by one voxel."""
    kidneys[10:30, 50:70, 10:35] = TUMOUR
    kidneys[15:17, 55:57, 15:17] = 0
    kidneys[10:30, 50:60, 120:145] = CYST
    kidneys[20, 55, 130] = 0
    expected = kidneys.copy()
    expected[15:17, 55:57, 15:17] = TUMOUR
    expected[20, 55, 130] = CYST
    for untouched in (kidneys, expected):
        untouched[20:23, 30:35, 20:25] = 0
        untouched[20, 49:52, 25] = 0
        untouched[25, 60:70, 30] = 0
    result, _, steps = run(kidneys)
    np.testing.assert_array_equal(result, expected)
    assert steps[HOLES].voxels == 9
    assert set(steps[HOLES].reasons) == {"to tumour: a hole of 0.016 ml", "to cyst: a hole of 0.002 ml"}
    result, report, _ = run(kidneys, Postprocessing(fill_holes=False))
    np.testing.assert_array_equal(result, kidneys)
    assert [step.name for step in report.steps] == [SMALL, SURPLUS, DETACHED, SPECKS]


def test_a_map_without_foreground_stays_empty() -> None:
    """Every rule is reported, with nothing changed."""
    result, report, _ = run(np.zeros((3, 4, 5), np.uint8))
    assert not result.any()
    assert len(report.steps) == 5
    assert json.loads(json.dumps(report.to_json()))["steps"][0] == {
        "name": SMALL,
        "voxels": 0,
        "components": 0,
        "reasons": [],
    }


def test_many_reasons_are_shortened(kidneys: NDArray[np.uint8]) -> None:
    """Ten are named, the others counted."""
    for place in range(12):
        kidneys[50:54, 70:75, 12 * place : 12 * place + 5] = TUMOUR
    _, _, steps = run(kidneys)
    assert steps[DETACHED].components == 12
    assert len(steps[DETACHED].reasons) == 11
    assert steps[DETACHED].reasons[-1] == "and 2 more"


def test_other_classes_and_unknown_values_are_refused() -> None:
    """The rules are about kidneys."""
    labels = np.zeros((3, 4, 5), np.uint8)
    for classes in ({"background": 0, "liver": 1}, {**KITS19_LABELS, "liver": 3}):
        with pytest.raises(KitsattnError, match="predict without it"):
            postprocess(labels, SPACING_MM, classes)
    labels[1] = 3
    with pytest.raises(KitsattnError, match="unknown labels"):
        postprocess(labels, SPACING_MM, KITS19_LABELS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_volume_ml", -1),
        ("min_volume_ml", 30),
        ("large_ml", float("nan")),
        ("attached_mm", -1),
        ("most_kidneys", 0),
    ],
)
def test_numbers_that_make_no_rule_are_refused(name: str, value: float) -> None:
    """Where the rules are made, and by name where they are read from settings."""
    with pytest.raises(KitsattnError, match=name):
        from_json(Postprocessing, {name: value}, "rules")


@pytest.mark.parametrize("case", ["case_00018", "case_00046", "case_00050", "case_00073"])
def test_true_label_maps_are_left_as_they_are_but_for_specks(test_data: Path, case: str) -> None:
    """A piece of kidney apart, tumours of a few voxels, a hole in a tumour: 13 voxels at most."""
    labels = read_labels(test_data / "kits19-labels" / f"{case}.nii.gz")
    _, report = postprocess(labels.array, labels.geometry.spacing_mm, KITS19_LABELS)
    assert report.voxels == {"case_00018": 0, "case_00046": 13, "case_00050": 6, "case_00073": 10}[case]
