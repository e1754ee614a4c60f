from pathlib import Path

import numpy as np
import pytest

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.case import score_case, score_labels
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
    )

    assert scores.case == "case_00003"
    assert scores.regions == {
        "kidney_and_tumour": {"dice": pytest.approx(2 * 18 / 48)},
        "tumour": {"dice": pytest.approx(2 * 3 / 12)},
    }


def test_missing_prediction_counts_as_background(tmp_path: Path, reference: np.ndarray) -> None:
    """Without a prediction a region scores 0 if the reference has it, and 1 if the reference has none either."""
    reference[reference == 2] = 1
    scores = score_case("a", None, write_labels(tmp_path / "reference.nii.gz", reference))

    assert scores.regions == {"kidney_and_tumour": {"dice": 0.0}, "tumour": {"dice": 1.0}}


def test_prediction_on_another_grid_is_refused(tmp_path: Path, prediction: np.ndarray, reference: np.ndarray) -> None:
    """The same number of voxels with another spacing is another grid; one line describes both."""
    predicted = write_labels(tmp_path / "prediction.nii.gz", prediction, spacing_mm=(4.0, 0.7, 0.9))
    truth = write_labels(tmp_path / "reference.nii.gz", reference)

    with pytest.raises(KitsattnError) as caught:
        score_case("a", predicted, truth)

    message = str(caught.value)
    assert f"{predicted} (4 x 5 x 6 voxels of 4 x 0.7 x 0.9 mm, first voxel at (10, -20, 30) mm" in message
    assert f"{truth} (4 x 5 x 6 voxels of 5 x 0.7 x 0.9 mm" in message
    assert "up to 3 mm apart" in message
    assert "\n" not in message


def test_prediction_of_another_shape_is_refused(tmp_path: Path, prediction: np.ndarray, reference: np.ndarray) -> None:
    """A prediction that lacks a slice is refused."""
    predicted = write_labels(tmp_path / "prediction.nii.gz", prediction[:-1])
    truth = write_labels(tmp_path / "reference.nii.gz", reference)

    with pytest.raises(KitsattnError, match=r"shape \(z, y, x\) \(3, 5, 6\) against \(4, 5, 6\)"):
        score_case("a", predicted, truth)


def test_unknown_labels_in_the_reference_are_refused(
    tmp_path: Path, prediction: np.ndarray, reference: np.ndarray
) -> None:
    """A reference with cysts is not a KiTS19 reference, and its scores would be wrong."""
    predicted = write_labels(tmp_path / "prediction.nii.gz", prediction)
    reference[3, 4, 5] = 3

    with pytest.raises(KitsattnError, match=r"reference\.nii\.gz holds the unknown labels \[3\]"):
        score_case("a", predicted, write_labels(tmp_path / "reference.nii.gz", reference))


def test_unknown_labels_in_the_prediction_are_background(
    tmp_path: Path, prediction: np.ndarray, reference: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """By the rules of KiTS19 other values count as background; the log names them."""
    truth = write_labels(tmp_path / "reference.nii.gz", reference)
    expected = score_case("a", write_labels(tmp_path / "prediction.nii.gz", prediction), truth)
    prediction[3, 4, 3:] = (3, 7, 7)

    scores = score_case("a", write_labels(tmp_path / "other.nii.gz", prediction), truth)

    assert scores == expected
    assert "other.nii.gz holds the labels [3, 7], which KiTS19 counts as background" in caplog.text


def test_real_label_map_scores_1_against_itself_in_another_orientation(tmp_path: Path, test_data: Path) -> None:
    """A KiTS19 label map as it was published equals its re-oriented copy."""
    from kitsattn.volume.formats import read_labels

    published = test_data / "kits19-labels" / "case_00056.nii.gz"
    turned = tmp_path / "turned.nii.gz"
    write_nifti(turned, read_labels(published), axes="LAS")

    scores = score_case("case_00056", turned, published)

    assert scores.regions == {"kidney_and_tumour": {"dice": 1.0}, "tumour": {"dice": 1.0}}


def test_arrays_are_scored_without_files(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Label maps in memory score like the same ones in files."""
    scores = score_labels("a", prediction, reference)

    assert scores.regions["kidney_and_tumour"]["dice"] == pytest.approx(0.75)
