import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kitsattn.config import to_json
from kitsattn.datasets.kits import find_dataset
from kitsattn.errors import KitsattnError
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.preprocess.store import open_dataset
from kitsattn.volume.nifti import read_labels, read_scan, write_nifti
from kitsattn.volume.volume import Volume

WriteCase = Callable[[Path, str], Path]


@pytest.fixture
def raw(tmp_path: Path, write_case: WriteCase) -> Path:
    """A KiTS folder of two cases."""
    for case_id in ("case_00000", "case_00001"):
        write_case(tmp_path / "raw", case_id)
    return tmp_path / "raw"


def test_dataset_is_prepared(tmp_path: Path, raw: Path, abdomen: tuple[Volume, Volume]) -> None:
    """Two scans become two cases with a plan of their median spacing and their foreground."""
    steps: list[tuple[str, int, int]] = []

    prepared = preprocess_dataset(
        find_dataset(raw), tmp_path / "out", progress=lambda label, done, total: steps.append((label, done, total))
    )

    scan, labels = abdomen
    values = np.clip(scan.array[labels.array > 0], -300, 300)
    assert prepared.cases == ("case_00000", "case_00001")
    assert prepared.plan.spacing_mm == pytest.approx((4.0, 4.0))
    assert prepared.plan.mean_hu == pytest.approx(values.mean())
    assert prepared.plan.std_hu == pytest.approx(values.std())
    assert prepared.plan.patch_size == (64, 96)
    assert prepared.sources["case_00001"].labels == raw.resolve() / "case_00001" / "segmentation.nii.gz"
    assert open_dataset(tmp_path / "out") == prepared
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == to_json(prepared.plan)
    case = prepared.open_case("case_00001")
    foreground = np.stack([case.read_labels(index) for index in range(12)]) > 0
    assert foreground.sum() == (labels.array > 0).sum()
    assert case.read_slices(range(12))[foreground].mean() == pytest.approx(0, abs=0.01)
    assert {label for label, _, _ in steps} == {"checksums", "fingerprints", "cases"}
    assert steps[-1] == ("cases", 2, 2)


def test_workers_change_nothing(tmp_path: Path, raw: Path) -> None:
    """Two processes prepare the very same files as one."""
    for workers in (1, 2):
        preprocess_dataset(find_dataset(raw), tmp_path / str(workers), workers=workers)

    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("1", "2"))
    assert one == two


def test_finished_cases_are_kept(tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second run prepares only the case whose JSON is missing; --restart prepares all."""
    caplog.set_level(logging.INFO)
    folder = tmp_path / "out"
    first = preprocess_dataset(find_dataset(raw), folder)
    kept = (folder / "cases" / "case_00000.b2nd").stat().st_mtime_ns
    (folder / "cases" / "case_00001.json").unlink()

    assert preprocess_dataset(find_dataset(raw), folder) == first

    assert "1 cases to prepare, 1 finished already" in caplog.text
    assert (folder / "cases" / "case_00000.b2nd").stat().st_mtime_ns == kept
    preprocess_dataset(find_dataset(raw), folder, resume=False)
    assert "2 cases to prepare, 0 finished already" in caplog.text.splitlines()[-1]
    assert (folder / "cases" / "case_00000.b2nd").stat().st_mtime_ns > kept


def test_changed_files_are_prepared_again(tmp_path: Path, raw: Path) -> None:
    """A case whose label map was corrected gets a new fingerprint and is prepared anew."""
    folder = tmp_path / "out"
    before = preprocess_dataset(find_dataset(raw), folder)
    path = raw / "case_00001" / "segmentation.nii.gz"
    labels = read_labels(path)
    write_nifti(path, labels.with_array(np.minimum(labels.array, 1)))

    after = preprocess_dataset(find_dataset(raw), folder)

    assert after.sources["case_00001"].labels_sha256 != before.sources["case_00001"].labels_sha256
    assert set(after.open_case("case_00001").locations) == {1}


def test_interrupted_run_leaves_no_finished_dataset(tmp_path: Path, raw: Path) -> None:
    """Where a later case cannot be prepared the old dataset.json is gone, and the finished cases are kept."""
    folder = tmp_path / "out"
    preprocess_dataset(find_dataset(raw), folder)
    (raw / "case_00001" / "segmentation.nii.gz").write_bytes(b"broken")

    with pytest.raises(KitsattnError, match="is not a NIfTI file"):
        preprocess_dataset(find_dataset(raw), folder, spacing_mm=3.0)
    with pytest.raises(KitsattnError, match="is not a NIfTI file"):
        preprocess_dataset(find_dataset(raw), folder, plan_file=folder / "plan.json")

    with pytest.raises(KitsattnError, match="holds no finished data set"):
        open_dataset(folder)


def test_spacing_and_plan_of_the_user_count(tmp_path: Path, raw: Path) -> None:
    """A spacing replaces the median; a plan replaces everything, without fingerprints; both together, both count."""
    plan = Plan(spacing_mm=(2.0, 2.0), clip_hu=(-200.0, 250.0), mean_hu=1.0, std_hu=2.0, patch_size=(32, 64))
    (tmp_path / "mine.json").write_text(json.dumps(to_json(plan)))
    dataset = find_dataset(raw)

    spaced = preprocess_dataset(dataset, tmp_path / "spaced", spacing_mm=8.0)
    planned = preprocess_dataset(dataset, tmp_path / "planned", plan_file=tmp_path / "mine.json")
    both = preprocess_dataset(dataset, tmp_path / "both", plan_file=tmp_path / "mine.json", spacing_mm=8.0)

    assert spaced.plan.spacing_mm == (8.0, 8.0)
    assert spaced.plan.patch_size == (32, 32)
    assert planned.plan == plan
    assert not list((tmp_path / "planned").rglob("*.fingerprint.json"))
    assert both.plan == replace(plan, spacing_mm=(8.0, 8.0))
    assert both.open_case("case_00000").shape == spaced.open_case("case_00000").shape


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_impossible_spacing_is_refused(tmp_path: Path, raw: Path, spacing: float) -> None:
    """A spacing must be a length."""
    with pytest.raises(KitsattnError, match="must be a finite number of mm above 0"):
        preprocess_dataset(find_dataset(raw), tmp_path / "out", spacing_mm=spacing)


def test_cases_without_labels_are_left_out_and_counted(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Test cases are reported, not prepared; a data set of nothing else is refused."""
    (raw / "case_00000" / "segmentation.nii.gz").unlink()

    assert preprocess_dataset(find_dataset(raw), tmp_path / "out").cases == ("case_00001",)

    assert "1 of 2 cases have no label map and are left out" in caplog.text
    (raw / "case_00001" / "segmentation.nii.gz").unlink()
    with pytest.raises(KitsattnError, match="none of 2 cases has a label map"):
        preprocess_dataset(find_dataset(raw), tmp_path / "out")


def test_label_map_of_another_shape_is_refused(tmp_path: Path, raw: Path) -> None:
    """A label map with a slice less is named with both shapes."""
    path = raw / "case_00001" / "segmentation.nii.gz"
    nib.save(nib.Nifti1Image.from_filename(path).slicer[1:], path)

    with pytest.raises(KitsattnError, match=r"case_00001.segmentation.*\(12, 60, 80\) against \(11, 60, 80\)"):
        preprocess_dataset(find_dataset(raw), tmp_path / "out")


def test_label_map_elsewhere_is_refused_but_another_layout_is_not(tmp_path: Path, raw: Path) -> None:
    """Grids are compared in the patient: the order of a file's axes does not count, a shift of 2 mm does."""
    path = raw / "case_00001" / "segmentation.nii.gz"
    labels = read_labels(path)
    write_nifti(path, labels, axes="RAS")
    preprocess_dataset(find_dataset(raw), tmp_path / "out")
    write_nifti(path, replace(labels, geometry=replace(labels.geometry, origin_mm=(0.0, 2.0, 0.0))))

    with pytest.raises(KitsattnError, match=r"does not lie on the grid of .* up to 2 mm apart"):
        preprocess_dataset(find_dataset(raw), tmp_path / "out")


def test_unknown_labels_are_refused(tmp_path: Path, raw: Path) -> None:
    """A label that the data set does not define is named with the file and the known ones."""
    path = raw / "case_00001" / "segmentation.nii.gz"
    labels = read_labels(path)
    write_nifti(path, labels.with_array(labels.array * np.uint8(2)))

    with pytest.raises(KitsattnError, match=r"case_00001.segmentation.* unknown labels \[4\].*0 background, 1 kidney"):
        preprocess_dataset(find_dataset(raw), tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_odd_about_a_scan_is_logged_once(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """A mended offset, and labels outside the body, are logged with their files, also from worker processes."""
    scan = read_scan(raw / "case_00000" / "imaging.nii.gz")
    write_nifti(raw / "case_00000" / "imaging.nii.gz", scan.with_array(scan.array + np.int16(1024)))
    labels = read_labels(raw / "case_00001" / "segmentation.nii.gz")
    labels.array[:, 0, 0] = 1
    write_nifti(raw / "case_00001" / "segmentation.nii.gz", labels)

    preprocess_dataset(find_dataset(raw), tmp_path / "out", workers=workers)

    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "case_00000/imaging.nii.gz: The values had an offset of 1024" in warnings[0]
    assert "12 of " in warnings[1]
    assert "lie outside the body and are lost" in warnings[1]


def test_a_plan_edited_by_hand_is_kept_and_its_use_told(
    kits_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """plan.json says what was used; an edit in place is not used silently, nor lost."""
    preprocess_dataset(find_dataset(kits_folder), tmp_path)
    edited = {**json.loads((tmp_path / "plan.json").read_text()), "patch_size": [64, 64]}
    (tmp_path / "plan.json").write_text(json.dumps(edited))
    preprocess_dataset(find_dataset(kits_folder), tmp_path)
    assert json.loads((tmp_path / "plan.previous.json").read_text()) == edited
    assert json.loads((tmp_path / "plan.json").read_text()) != edited
    assert "add --plan" in caplog.text
    again = preprocess_dataset(find_dataset(kits_folder), tmp_path, plan_file=tmp_path / "plan.previous.json")
    assert again.plan.patch_size == (64, 64)
