from pathlib import Path

import numpy as np
import pytest

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.case import score_case, score_labels
from kitsattn.evaluate.metrics import METRICS
from kitsattn.evaluate.metrics.metric import Metric
from kitsattn.evaluate.metrics.surface_dice import SURFACE_DICE
from kitsattn.evaluate.metrics.volume_difference import VOLUME_DIFFERENCE
from kitsattn.evaluate.scoring import Scoring
from kitsattn.labels import KITS23, protocol_of
from kitsattn.volume.geometry import Geometry, Triple
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume

SPACING_MM = (5.0, 0.7, 0.9)


def write_labels(path: Path, labels: np.ndarray, *, axes: str = "RAS", spacing_mm: Triple = SPACING_MM) -> Path:
    """Write a label map whose voxels are anisotropic and whose file axes run as `axes` says."""
    depth, height, width = labels.shape
    geometry = Geometry.axial((depth, height, width), spacing_mm, (10.0, -20.0, 30.0))
    write_nifti(path, Volume(labels.astype(np.uint8), geometry), axes=axes)
    return path


@pytest.fixture
def reference() -> np.ndarray:
    """A kidney of 24 voxels, 6 of which are tumour, in the corner of a 4 x 5 x 6 grid."""
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    labels[0:2, 0:3, 0:4] = 1
    labels[0, 0:3, 0:2] = 2
    return labels


@pytest.fixture
def prediction(reference: np.ndarray) -> np.ndarray:
    """The reference moved by one voxel along x: 24 voxels, 18 of them right; of the tumour 3 of 6."""
    return np.roll(reference, 1, axis=2)


@pytest.mark.parametrize("axes", ["RAS", "IPL", "LPS", "SAR"])
def test_dice_of_files_worked_by_hand(tmp_path: Path, prediction: np.ndarray, reference: np.ndarray, axes: str) -> None:
    """Scores are those of the voxels' places in the patient, however the prediction's file is oriented."""
    scores = score_case(
        "case_00003",
        write_labels(tmp_path / "prediction.nii.gz", prediction, axes=axes),
        write_labels(tmp_path / "reference.nii.gz", reference, axes="IPL"),
        Scoring(),
    )

    assert scores.turned == (axes != "IPL")
    assert scores.case == "case_00003"
    assert scores.regions == {
        "kidney_and_tumour": {"dice": pytest.approx(2 * 18 / 48)},
        "tumour": {"dice": pytest.approx(2 * 3 / 12)},
    }


def test_surfaces_of_files_worked_by_hand(tmp_path: Path) -> None:
    """A voxel and one beside it along x, in a corner of another grid than the reference's file axes."""
    labels = np.zeros((2, 4, 5, 6), np.uint8)
    labels[0, 1, 2, 2] = labels[1, 1, 2, 3] = 2

    scores = score_case(
        "a",
        write_labels(tmp_path / "prediction.nii.gz", labels[0], axes="IPL"),
        write_labels(tmp_path / "reference.nii.gz", labels[1]),
        Scoring(metrics=METRICS),
    )

    # Half of the elements coincide, the others lie a voxel of 0.9 mm apart: within both tolerances.
    expected = {"dice": 0, "surface_dice": 1, "hd95_mm": pytest.approx(0.9), "assd_mm": pytest.approx(0.45)}
    voxel_ml = pytest.approx(5.0 * 0.7 * 0.9 / 1_000)
    expected |= {"predicted_ml": voxel_ml, "reference_ml": voxel_ml, "volume_difference_ml": 0}
    expected |= {"jaccard": 0, "relative_volume_error_percent": 0}
    for found in scores.regions.values():
        assert {key: found[key] for key in expected} == expected


def test_the_tolerance_is_the_regions() -> None:
    """KiTS23's differ: surfaces 1.14 mm apart are near for the tumour and far for all else."""
    labels = np.zeros((2, 1, 1, 4), np.uint8)
    labels[0, 0, 0, 1] = labels[1, 0, 0, 2] = 2

    scores = score_labels("a", labels[0], labels[1], (5.0, 0.7, 1.14), Scoring(KITS23, (SURFACE_DICE,)))

    found = {key: values["surface_dice"] for key, values in scores.regions.items()}
    assert found == {"kidney_and_masses": 0.5, "masses": 0.5, "tumour": 1}


@pytest.mark.parametrize("metric", METRICS)
def test_one_metric_is_what_it_is_among_all(metric: Metric, prediction: np.ndarray, reference: np.ndarray) -> None:
    """What else is asked for changes nothing."""
    every = score_labels("a", prediction, reference, SPACING_MM, Scoring(metrics=METRICS))
    alone = score_labels("a", prediction, reference, SPACING_MM, Scoring(metrics=(metric,)))
    for key, values in alone.regions.items():
        assert values == {name: every.regions[key][name] for name in metric.keys}


def test_volumes_worked_by_hand(prediction: np.ndarray, reference: np.ndarray) -> None:
    """The difference is prediction less reference, and zero is best."""
    prediction[0, 0, 0:3] = 0

    scores = score_labels("a", prediction, reference, (5.0, 2.0, 1.0), Scoring(metrics=(VOLUME_DIFFERENCE,)))

    assert scores.regions["kidney_and_tumour"] == {
        "predicted_ml": pytest.approx(0.22),
        "reference_ml": pytest.approx(0.24),
        "volume_difference_ml": pytest.approx(-0.02),
    }
    assert VOLUME_DIFFERENCE.error(-3.0) == VOLUME_DIFFERENCE.error(3.0) == 3.0


def test_missing_prediction_counts_as_background(tmp_path: Path, reference: np.ndarray) -> None:
    """Without a prediction a region scores 0 if the reference has it, and 1 if the reference has none either."""
    reference[reference == 2] = 1
    scores = score_case("a", None, write_labels(tmp_path / "reference.nii.gz", reference), Scoring())

    assert scores.regions == {"kidney_and_tumour": {"dice": 0.0}, "tumour": {"dice": 1.0}}


def test_prediction_on_another_grid_is_refused(tmp_path: Path, prediction: np.ndarray, reference: np.ndarray) -> None:
    """The same number of voxels with another spacing is another grid; one line describes both."""
    predicted = write_labels(tmp_path / "prediction.nii.gz", prediction, spacing_mm=(4.0, 0.7, 0.9))
    truth = write_labels(tmp_path / "reference.nii.gz", reference)

    with pytest.raises(KitsattnError) as caught:
        score_case("a", predicted, truth, Scoring())

    message = str(caught.value)
    assert f"{predicted} (4 x 5 x 6 voxels of 4 x 0.7 x 0.9 mm, first voxel at (10, -20, 30) mm" in message
    assert f"{truth} (4 x 5 x 6 voxels of 5 x 0.7 x 0.9 mm" in message
    assert "up to 0.75 voxels apart" in message
    assert "\n" not in message


def test_prediction_of_another_shape_is_refused(tmp_path: Path, prediction: np.ndarray, reference: np.ndarray) -> None:
    """A prediction that lacks a slice is refused."""
    predicted = write_labels(tmp_path / "prediction.nii.gz", prediction[:-1])
    truth = write_labels(tmp_path / "reference.nii.gz", reference)

    with pytest.raises(KitsattnError, match=r"shape \(z, y, x\) \(3, 5, 6\) against \(4, 5, 6\)"):
        score_case("a", predicted, truth, Scoring())


def test_unknown_labels_in_the_reference_are_refused(
    tmp_path: Path, prediction: np.ndarray, reference: np.ndarray
) -> None:
    """A reference with a value that the protocol does not know belongs to other data; its scores would be wrong."""
    predicted = write_labels(tmp_path / "prediction.nii.gz", prediction)
    reference[3, 4, 4:] = (3, 4)
    truth = write_labels(tmp_path / "reference.nii.gz", reference)

    with pytest.raises(KitsattnError, match=r"reference\.nii\.gz holds the unknown labels \[3, 4\]: .*, 2 tumour"):
        score_case("a", predicted, truth, Scoring())
    with pytest.raises(
        KitsattnError,
        match=r"reference\.nii\.gz holds the unknown labels \[4\]: .*, 3 cyst; the labels of other data are",
    ):
        score_case("a", predicted, truth, Scoring(KITS23))


def test_a_cyst_in_a_kits19_reference_names_the_other_protocol(tmp_path: Path, reference: np.ndarray) -> None:
    """A reference with cysts is one of KiTS23's, and the error says how to score it."""
    reference[3, 4, 5] = 3
    truth = write_labels(tmp_path / "reference.nii.gz", reference)

    with pytest.raises(KitsattnError, match=r"reference\.nii\.gz holds the label 3, .* add --protocol kits23$"):
        score_case("a", None, truth, Scoring())


def test_cysts_worked_by_hand(tmp_path: Path) -> None:
    """By KiTS23 a cyst is one of the masses and of the kidney's region; a cyst taken for a tumour is still a mass."""
    reference = np.array([[[1, 1, 1, 1, 2, 2], [3, 3, 3, 0, 0, 0]]])
    prediction = np.array([[[1, 1, 1, 2, 2, 0], [3, 3, 2, 3, 0, 0]]])

    scores = score_case(
        "a",
        write_labels(tmp_path / "prediction.nii.gz", prediction),
        write_labels(tmp_path / "reference.nii.gz", reference),
        Scoring(KITS23),
    )

    # Voxels predicted, true and both: 9, 9, 8 labelled; 6, 5, 4 in masses; 3, 2, 1 in tumours.
    assert scores.regions == {
        "kidney_and_masses": {"dice": pytest.approx(16 / 18)},
        "masses": {"dice": pytest.approx(8 / 11)},
        "tumour": {"dice": pytest.approx(2 / 5)},
    }


def test_labels_that_are_not_a_challenges_are_scored_one_by_one() -> None:
    """Each label of another data set is a region, named after the label."""
    reference = np.array([[[1, 1, 2, 0]]])
    protocol = protocol_of({"background": 0, "liver": 1, "spleen": 2})

    scores = score_labels("a", np.array([[[1, 2, 2, 0]]]), reference, (1.0, 1.0, 1.0), Scoring(protocol))

    assert scores.regions == {"liver": {"dice": pytest.approx(2 / 3)}, "spleen": {"dice": pytest.approx(2 / 3)}}


def test_unknown_labels_in_the_prediction_are_background(
    tmp_path: Path, prediction: np.ndarray, reference: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """By the rules of KiTS19 other values count as background; the log names them."""
    truth = write_labels(tmp_path / "reference.nii.gz", reference)
    expected = score_case("a", write_labels(tmp_path / "prediction.nii.gz", prediction), truth, Scoring())
    prediction[3, 4, 3:] = (3, 7, 7)

    scores = score_case("a", write_labels(tmp_path / "other.nii.gz", prediction), truth, Scoring())

    assert scores == expected
    assert (
        "other.nii.gz holds the labels [3, 7], which count as background: scored are 1 kidney, 2 tumour" in caplog.text
    )


def test_a_scan_as_prediction_is_refused(tmp_path: Path, prediction: np.ndarray, reference: np.ndarray) -> None:
    """Whole numbers from 0 to 255 may be grey values: with more than 20 that are no labels it is no label map."""
    truth = write_labels(tmp_path / "reference.nii.gz", reference)
    prediction.ravel()[:40] = range(40)

    with pytest.raises(KitsattnError, match=r"grey\.nii\.gz holds 37 values that are not labels"):
        score_case("a", write_labels(tmp_path / "grey.nii.gz", prediction), truth, Scoring())


def test_real_label_map_scores_1_against_itself_in_another_orientation(tmp_path: Path, test_data: Path) -> None:
    """A KiTS19 label map as it was published equals its re-oriented copy."""
    from kitsattn.volume.formats import read_labels

    published = test_data / "kits19-labels" / "case_00056.nii.gz"
    turned = tmp_path / "turned.nii.gz"
    write_nifti(turned, read_labels(published), axes="LAS")

    scores = score_case("case_00056", turned, published, Scoring())

    assert scores.regions == {"kidney_and_tumour": {"dice": 1.0}, "tumour": {"dice": 1.0}}


def test_arrays_are_scored_without_files(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Label maps in memory score like the same ones in files."""
    scores = score_labels("a", prediction, reference, (1.0, 1.0, 1.0), Scoring())

    assert scores.regions["kidney_and_tumour"]["dice"] == pytest.approx(0.75)
