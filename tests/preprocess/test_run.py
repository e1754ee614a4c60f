import gzip
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from kitsattn.config import to_json
from kitsattn.datasets.dataset import CaseFiles
from kitsattn.datasets.find import find_dataset
from kitsattn.errors import KitsattnError
from kitsattn.files import sole_writer
from kitsattn.jobs import HERE, Workers, try_cases
from kitsattn.preprocess import headers
from kitsattn.preprocess.folder import refuse_another
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.run import Prepared, preprocess_dataset, verify_dataset
from kitsattn.preprocess.store import open_dataset, read_record
from kitsattn.preprocess.verify import CaseHeader, Finding
from kitsattn.preprocess.worker import prepare_case
from kitsattn.volume.nifti import read_labels, read_scan, write_nifti
from kitsattn.volume.volume import Volume

WriteCase = Callable[[Path, str], Path]


@pytest.fixture
def raw(tmp_path: Path, write_case: WriteCase) -> Path:
    """A KiTS folder of two cases."""
    for case_id in ("case_00000", "case_00001"):
        write_case(tmp_path / "raw", case_id)
    return tmp_path / "raw"


def preprocess(raw: Path, folder: Path, **options: Any) -> Prepared:
    """Prepare the data set in `raw`, in this process unless a test asks for others."""
    return preprocess_dataset(find_dataset(raw), folder, **{"workers": HERE, **options})


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a prepared data set."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def errors(findings: tuple[Finding, ...]) -> dict[str | None, str]:
    """Return case to text of the errors among findings."""
    return {finding.case_id: finding.text for finding in findings if finding.severity == "error"}


def test_dataset_is_prepared(tmp_path: Path, raw: Path, abdomen: tuple[Volume, Volume]) -> None:
    """Two scans become two cases with a plan of their median spacing and their foreground."""
    steps: list[tuple[str, int, int]] = []

    result = preprocess(raw, tmp_path / "out", progress=lambda label, done, total: steps.append((label, done, total)))

    prepared = result.dataset
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
    assert [step for step in steps if step[1] == step[2]] == [("headers", 2, 2), ("cases", 2, 2)]


def test_fingerprint_is_left_for_people_to_read(tmp_path: Path, raw: Path, abdomen: tuple[Volume, Volume]) -> None:
    """fingerprint.json holds shapes, spacings and voxels of each case, and the statistics of the pooled foreground."""
    preprocess(raw, tmp_path / "out")

    content = json.loads((tmp_path / "out" / "fingerprint.json").read_text())

    scan, labels = abdomen
    values = scan.array[labels.array > 0]
    assert content["foreground"]["mean_hu"] == pytest.approx(values.mean())
    assert content["foreground"]["max_hu"] == values.max()
    assert content["cases"]["case_00001"]["shape"] == [12, 60, 80]
    assert content["cases"]["case_00001"]["voxels"]["tumour"] == np.count_nonzero(labels.array == 2)


def test_workers_change_nothing(tmp_path: Path, raw: Path) -> None:
    """Two processes prepare the very same files as one."""
    for workers in (1, 2):
        preprocess(raw, tmp_path / str(workers), workers=Workers(workers))

    assert files_in(tmp_path / "1") == files_in(tmp_path / "2")


def test_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, raw: Path, write_case: WriteCase) -> None:
    """Killed with SIGKILL after its first case, and started again: every file is that of an uninterrupted run."""
    for number in range(2, 8):
        write_case(raw, f"case_{number:05}")
    script = (
        "import sys; from pathlib import Path; from kitsattn.datasets.find import find_dataset;"
        "from kitsattn.jobs import Workers; from kitsattn.preprocess.run import preprocess_dataset;"
        "preprocess_dataset(find_dataset(Path(sys.argv[1])), Path(sys.argv[2]), workers=Workers())"
    )
    folder = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", script, str(raw), str(folder)])
    try:
        while process.poll() is None and not (folder / "cases" / "case_00001" / "case.json").is_file():
            time.sleep(0.001)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "dataset.json").exists()

    result = preprocess(raw, folder)

    assert 1 <= result.kept < 8
    preprocess(raw, tmp_path / "whole")
    assert files_in(folder) == files_in(tmp_path / "whole")


def test_cluster_prepares_the_same_though_a_worker_is_killed(
    tmp_path: Path, raw: Path, write_case: WriteCase, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two Dask workers is killed as soon as a case is finished; the files are those of a single process.

    The workers lie in another folder than this process, whose paths are relative.
    """
    for number in range(2, 8):
        write_case(raw, f"case_{number:05}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    killed = []

    def kill_a_worker() -> None:
        from distributed import Client

        with Client(cluster) as client:  # type: ignore[no-untyped-call]
            processes = client.run(os.getpid)
        while not list((tmp_path / "out" / "cases").glob("case_?????")):
            time.sleep(0.001)
        os.kill(next(iter(processes.values())), signal.SIGKILL)
        killed.append(True)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()

    result = preprocess(Path("../raw"), Path("../out"), workers=Workers(scheduler=cluster))

    killer.join()
    assert killed
    assert errors(result.findings) == {}
    preprocess(raw, tmp_path / "alone")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "alone")


def test_finished_cases_are_kept(tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second run prepares only the case whose JSON is missing, and says so; --restart prepares all."""
    caplog.set_level(logging.INFO)
    folder = tmp_path / "out"
    first = preprocess(raw, folder)
    kept = (folder / "cases" / "case_00000" / "image.b2nd").stat().st_mtime_ns
    (folder / "cases" / "case_00001" / "case.json").unlink()

    again = preprocess(raw, folder)

    assert again == replace(first, kept=1)
    assert "1 case prepared, 1 finished before" in caplog.text
    assert (folder / "cases" / "case_00000" / "image.b2nd").stat().st_mtime_ns == kept
    assert preprocess(raw, folder, resume=False).kept == 0
    assert (folder / "cases" / "case_00000" / "image.b2nd").stat().st_mtime_ns > kept


def test_new_cases_leave_the_finished_ones_alone(tmp_path: Path, raw: Path, write_case: WriteCase) -> None:
    """Mean and deviation change with a third case; what was stored does not, and is read with the new ones."""
    folder = tmp_path / "out"
    before = preprocess(raw, folder).dataset
    path = write_case(raw, "case_00002") / "imaging.nii.gz"
    scan = read_scan(path)
    write_nifti(path, scan.with_array(scan.array + np.int16(30)), axes="IPL")

    result = preprocess(raw, folder)

    assert result.kept == 2
    assert result.dataset.plan.mean_hu == pytest.approx(before.plan.mean_hu + 10)
    old, new = (dataset.open_case("case_00000") for dataset in (before, result.dataset))
    shift = old.read_slices([5]) * before.plan.std_hu - new.read_slices([5]) * result.dataset.plan.std_hu
    assert shift == pytest.approx(10, abs=0.01)


def test_changed_files_are_prepared_again(tmp_path: Path, raw: Path) -> None:
    """A case whose label map was corrected gets a new fingerprint and is prepared anew."""
    folder = tmp_path / "out"
    before = preprocess(raw, folder).dataset
    path = raw / "case_00001" / "segmentation.nii.gz"
    labels = read_labels(path)
    write_nifti(path, labels.with_array(np.minimum(labels.array, 1)))

    after = preprocess(raw, folder)

    assert after.kept == 1
    assert after.dataset.sources["case_00001"].labels_sha256 != before.sources["case_00001"].labels_sha256
    assert after.fingerprints[1].voxels["tumour"] == 0
    assert set(after.dataset.open_case("case_00001").locations) == {1}


def test_one_bad_case_does_not_lose_the_others(tmp_path: Path, raw: Path) -> None:
    """A case with a damaged file is an error that names it; the other is prepared, and the data set can be used."""
    path = raw / "case_00000" / "imaging.nii.gz"
    path.write_bytes(path.read_bytes()[:-2000])

    result = preprocess(raw, tmp_path / "out", workers=Workers(2))

    assert list(errors(result.findings)) == ["case_00000"]
    assert f"{path} is truncated or damaged" in errors(result.findings)["case_00000"]
    assert open_dataset(tmp_path / "out").cases == ("case_00001",)


def test_without_a_good_case_the_first_error_is_raised(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written where nothing could be prepared, and the log tells of each case."""
    caplog.set_level(logging.DEBUG)
    for case_id in ("case_00000", "case_00001"):
        (raw / case_id / "segmentation.nii.gz").write_bytes(b"broken")

    with pytest.raises(
        KitsattnError, match=r"none of 2 cases .*: .*case_00000.segmentation\.nii\.gz is not a NIfTI file"
    ):
        preprocess(raw, tmp_path / "out")

    assert not list((tmp_path / "out").rglob("*.json"))
    assert "case_00001/segmentation.nii.gz is not a NIfTI file" in caplog.text


@pytest.mark.parametrize("window", ["paper", "nnunet"])
def test_what_became_of_cases_is_told_where_no_plan_can_be_made(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture, window: str
) -> None:
    """A damaged case is not forgotten because the other one has nothing labelled."""
    path = raw / "case_00000" / "segmentation.nii.gz"
    write_nifti(path, read_labels(path).with_array(np.zeros((12, 60, 80), np.uint8)))
    path = raw / "case_00001" / "imaging.nii.gz"
    path.write_bytes(path.read_bytes()[:-2000])

    with pytest.raises(KitsattnError, match="no case has a labelled voxel"):
        preprocess(raw, tmp_path / "out", window=window)

    assert f"{path} is truncated or damaged" in caplog.text
    path.write_bytes(b"")
    with pytest.raises(KitsattnError, match="no case has a labelled voxel"):
        preprocess(raw, tmp_path / "out", window=window)


def test_a_run_that_is_stopped_leaves_the_data_set_before_as_it_was(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished stays so until another is, except under --restart, which begins with nothing."""
    folder = tmp_path / "out"
    before = preprocess(raw, folder).dataset

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for resume, kept in ((True, 2), (False, 0)):
        monkeypatch.setattr("kitsattn.preprocess.run.prepare_case", stop)
        with pytest.raises(KeyboardInterrupt):
            preprocess(raw, folder, resume=resume, spacing_mm=3.0)
        if resume:
            assert open_dataset(folder) == before
            assert before.open_case("case_00001").shape[0] == 12
        else:
            with pytest.raises(KitsattnError, match="holds no finished data set"):
                open_dataset(folder)
        monkeypatch.setattr("kitsattn.preprocess.run.prepare_case", prepare_case)
        assert preprocess(raw, folder).kept == kept


def test_cases_of_a_run_that_was_stopped_are_not_taken_for_those_of_the_one_before(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the cases have another spacing: whoever opens one of them with the old plan is told."""
    folder = tmp_path / "out"
    before = preprocess(raw, folder).dataset

    def stop_at_the_second(case: CaseFiles, **options: Any) -> Any:
        if case.case_id == "case_00001":
            raise KeyboardInterrupt
        return prepare_case(case, **options)

    monkeypatch.setattr("kitsattn.preprocess.run.prepare_case", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        preprocess(raw, folder, spacing_mm=3.0)

    before.open_case("case_00001")
    with pytest.raises(KitsattnError, match="case_00000 was prepared with another plan or other files: run"):
        before.open_case("case_00000")


def test_one_folder_is_prepared_by_one_process(tmp_path: Path, raw: Path) -> None:
    """Two would tidy away each other's unfinished files; afterwards the folder is free again."""
    with (
        sole_writer(tmp_path / "out", "kitsattn preprocess"),
        pytest.raises(KitsattnError, match=r"out is in use by another `kitsattn preprocess`, process .*: wait"),
    ):
        preprocess(raw, tmp_path / "out")
    assert preprocess(raw, tmp_path / "out").kept == 0


def test_a_report_does_not_outlive_the_data_it_shows(tmp_path: Path, raw: Path) -> None:
    """It stays where nothing has changed, and goes with the plan it was made of."""
    preprocess(raw, tmp_path / "out")
    report = tmp_path / "out" / "report.html"
    report.touch()

    preprocess(raw, tmp_path / "out")
    assert report.exists()
    preprocess(raw, tmp_path / "out", spacing_mm=3.0)
    assert not report.exists()


def test_prepared_cases_that_are_none_any_more_are_told(tmp_path: Path, raw: Path) -> None:
    """They take up room, and it is the user's to say that they may go."""
    preprocess(raw, tmp_path / "out")
    shutil.rmtree(raw / "case_00001")

    result = preprocess(raw, tmp_path / "out")

    assert result.dataset.cases == ("case_00000",)
    assert [finding.text for finding in result.findings] == [
        "cases still holds case_00001, which the data set no longer has: delete what you do not need"
    ]
    assert (tmp_path / "out" / "cases" / "case_00001").exists()


def test_files_may_be_links_to_others_without_a_suffix(tmp_path: Path, raw: Path) -> None:
    """The cache of a download tool keeps contents under their checksums."""
    for number, path in enumerate(sorted(raw.glob("case_*/*.nii.gz"))):
        path.rename(tmp_path / f"blob{number}")
        path.symlink_to(tmp_path / f"blob{number}")

    result = preprocess(raw, tmp_path / "out")

    assert errors(result.findings) == {}
    assert result.dataset.sources["case_00000"].image == raw / "case_00000" / "imaging.nii.gz"


def test_other_classes_are_prepared_again(tmp_path: Path, raw: Path) -> None:
    """The same files may mean something else: what was a cyst is refused where there are no cysts."""
    path = raw / "case_00001" / "segmentation.nii.gz"
    labels = read_labels(path)
    write_nifti(path, labels.with_array(np.where(labels.array == 2, 3, labels.array).astype(np.uint8)), axes="IPL")
    folder = tmp_path / "out"
    first = preprocess_dataset(find_dataset(raw, layout="kits23"), folder, workers=HERE)

    second = preprocess_dataset(find_dataset(raw, layout="kits19"), folder, workers=HERE)

    assert first.fingerprints[1].voxels["cyst"] > 0
    assert second.kept == 0
    assert "unknown labels [3]" in errors(second.findings)["case_00001"]


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_another_data_set_of_the_name_is_refused(
    tmp_path: Path, raw: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared cases are not written over by other ones of their names, though dataset.json were not there yet."""
    folder = tmp_path / "out"
    preprocess(raw, folder)
    if state == "stopped":
        (folder / "dataset.json").unlink()
    other = tmp_path / "other"
    shutil.copytree(raw, other)
    for path in other.glob("*/imaging.nii.gz"):
        scan = read_scan(path)
        write_nifti(path, scan.with_array(scan.array + np.int16(1)), axes="IPL")
    refused = pytest.raises(
        KitsattnError, match=r"holds another data set of this name, from .*raw.case_00000.*: give this one"
    )

    with refused:
        preprocess(other, folder)
    with monkeypatch.context() as patched, refused:
        patched.setattr(Path, "exists", _may_not_be_looked_at)
        refuse_another(folder, find_dataset(other).cases)

    raw.rename(tmp_path / "gone")
    assert preprocess(other, folder).kept == 0


def _may_not_be_looked_at(path: Path) -> bool:
    raise PermissionError(13, "Permission denied", str(path))


def test_a_copy_of_the_raw_data_is_the_same_data_set(tmp_path: Path, raw: Path) -> None:
    """Its cases need not be prepared again, whether or not the first one is still there."""
    preprocess(raw, tmp_path / "out")
    shutil.copytree(raw, tmp_path / "copy")

    assert preprocess(tmp_path / "copy", tmp_path / "out").kept == 2


def test_findings_of_kept_cases_name_the_files_where_they_lie_now(tmp_path: Path, raw: Path) -> None:
    """A remark outlives a move of the raw folder, its old path does not."""
    labels = read_labels(raw / "case_00001" / "segmentation.nii.gz")
    labels.array[:, 0, 0] = 1
    write_nifti(raw / "case_00001" / "segmentation.nii.gz", labels)
    preprocess(raw, tmp_path / "out")
    moved = raw.rename(tmp_path / "moved")

    result = preprocess(moved, tmp_path / "out")

    (finding,) = (finding for finding in result.findings if "are outside the body" in finding.text)
    assert result.kept == 2
    assert finding.text.startswith(str(moved / "case_00001" / "segmentation.nii.gz"))


@pytest.mark.parametrize(
    ("spacing", "reason"),
    [
        (0.05, r"voxels of 4 x 4 mm would have 4800 x 6400 at 0.05 mm, and 4096 are the most: give a larger --spacing"),
        (0.001, r"an in-plane spacing of 0.001 mm is none of a CT scan"),
    ],
)
def test_a_slip_of_the_pen_in_the_spacing_costs_nothing(tmp_path: Path, raw: Path, spacing: float, reason: str) -> None:
    """Cm instead of mm is refused before anything is touched."""
    before = preprocess(raw, tmp_path / "out").dataset

    with pytest.raises(KitsattnError, match=reason):
        preprocess(raw, tmp_path / "out", spacing_mm=spacing)

    assert open_dataset(tmp_path / "out") == before


def test_one_strange_header_costs_one_case(tmp_path: Path, raw: Path, write_case: WriteCase) -> None:
    """A spacing of m instead of mm, or a shape that the file is too short for, leave out the case they are in."""
    for case_id in ("case_00002", "case_00003"):
        path = write_case(raw, case_id) / "imaging.nii.gz"
        if case_id == "case_00002":
            for file in (path, path.with_name("segmentation.nii.gz")):
                image = nib.nifti1.load(file)
                image.affine[:2] *= 1000
                nib.Nifti1Image(np.asarray(image.dataobj), image.affine).to_filename(file)
        else:
            content = bytearray(gzip.decompress(path.read_bytes()))
            content[42:48] = np.array([500, 700, 700], "<i2").tobytes()
            path.write_bytes(gzip.compress(bytes(content)))

    result = preprocess(raw, tmp_path / "out")
    verified = verify_dataset(find_dataset(raw), workers=HERE)

    assert result.dataset.cases == ("case_00000", "case_00001")
    for found in (errors(result.findings), errors(verified)):
        assert list(found) == ["case_00002", "case_00003"]
        assert "longer than any scanner: fix the spacing" in found["case_00002"]
        assert "its header announces 490000000 bytes of voxels" in found["case_00003"]


def test_values_that_are_assumed_to_be_hu_are_recorded_with_the_case(tmp_path: Path, raw: Path) -> None:
    """The same case without the assumption is another case: it is read again, and refused."""
    path = raw / "case_00001" / "imaging.nii.gz"
    scan = read_scan(path)
    write_nifti(path, scan.with_array(scan.array + np.int16(1000)), axes="IPL")
    assert list(errors(preprocess(raw, tmp_path / "out").findings)) == ["case_00001"]

    assumed = preprocess(raw, tmp_path / "out", assume_hu=True)
    again = preprocess(raw, tmp_path / "out", assume_hu=True)

    assert (errors(assumed.findings), assumed.kept, again.kept) == ({}, 0, 2)
    assert all(source.assumed_hu for source in open_dataset(tmp_path / "out").sources.values())
    assert read_record(tmp_path / "out", "case_00001").assumed_hu
    assert sum("taken as HU without a check" in finding.text for finding in again.findings) == 2
    assert verify_dataset(find_dataset(raw), workers=HERE, assume_hu=True) == assumed.findings
    checked = preprocess(raw, tmp_path / "out")
    assert (list(errors(checked.findings)), checked.kept) == (["case_00001"], 0)


def test_verifying_tells_of_every_case_though_no_header_can_be_read(tmp_path: Path, raw: Path) -> None:
    """There is nothing left to advise."""
    for path in raw.glob("*/imaging.nii.gz"):
        path.write_bytes(b"")

    assert list(errors(verify_dataset(find_dataset(raw), workers=HERE))) == ["case_00000", "case_00001"]


def test_workers_that_were_not_asked_for_are_as_many_as_fit_and_processes_of_their_own(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where memory holds one worker, there is one, it says why, and it is not this process."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("kitsattn.preprocess.headers.workers_that_fit", lambda _: 1)
    monkeypatch.setattr("kitsattn.preprocess.headers.available_cores", lambda: 4)
    seen: list[dict[str, Any]] = []

    def record(work: Any, **options: Any) -> Any:
        seen.append(options)
        return try_cases(work, options["cases"])

    monkeypatch.setattr("kitsattn.preprocess.run.try_cases", record)

    result = preprocess(raw, tmp_path / "out", workers=None)

    assert len(result.dataset.cases) == 2
    assert seen[-1]["workers"] == Workers(1, apart=True)
    assert "workers: 1, each needs 0.3 GB of memory for the largest case" in caplog.text


def test_memory_of_a_worker_goes_by_what_its_files_hold() -> None:
    """float64 in the file is there beside the float32 it becomes; KiTS19's largest case needs 1.8 GB."""
    header = CaseHeader("case_00151", (1059, 512, 512), (0.5, 0.81, 0.81), 0, (2, 1))

    assert headers._needed_bytes(header) == pytest.approx(0.25e9 + 5.5 * 1059 * 512 * 512)
    assert headers._needed_bytes(replace(header, voxel_bytes=(8, 1))) > 2 * headers._needed_bytes(header)


def test_spacing_and_plan_of_the_user_count(tmp_path: Path, raw: Path) -> None:
    """A spacing replaces the median; a plan replaces everything; both together, both count."""
    plan = Plan(spacing_mm=(2.0, 2.0), clip_hu=(-200.0, 150.0), mean_hu=1.0, std_hu=2.0, patch_size=(32, 64))
    (tmp_path / "mine.json").write_text(json.dumps(to_json(plan)))

    spaced = preprocess(raw, tmp_path / "spaced", spacing_mm=8.0).dataset
    planned = preprocess(raw, tmp_path / "planned", plan_file=tmp_path / "mine.json").dataset
    both = preprocess(raw, tmp_path / "both", plan_file=tmp_path / "mine.json", spacing_mm=8.0).dataset

    assert spaced.plan.spacing_mm == (8.0, 8.0)
    assert spaced.plan.patch_size == (32, 32)
    assert planned.plan == plan
    hu = planned.open_case("case_00000").read_slices(range(12)) * 2 + 1
    assert (hu.min(), hu.max()) == (-200, 150)
    assert both.plan == replace(plan, spacing_mm=(8.0, 8.0))
    assert both.open_case("case_00000").shape == spaced.open_case("case_00000").shape


def test_window_of_nnunet_is_planned_before_cases_are_prepared(tmp_path: Path, raw: Path) -> None:
    """What is stored ends at the percentiles of the foreground, also when it is made again from the start."""
    result = preprocess(raw, tmp_path / "out", window="nnunet")

    low, high = result.dataset.plan.clip_hu
    case = result.dataset.open_case("case_00001")
    hu = case.read_slices(range(12)) * result.dataset.plan.std_hu + result.dataset.plan.mean_hu
    assert 50 < low < 100
    assert 160 < high < 200
    assert (hu.min(), hu.max()) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert preprocess(raw, tmp_path / "out", window="nnunet", resume=False) == result


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_impossible_spacing_is_refused(tmp_path: Path, raw: Path, spacing: float) -> None:
    """A spacing must be a length."""
    with pytest.raises(KitsattnError, match="must be a finite number of mm above 0"):
        preprocess(raw, tmp_path / "out", spacing_mm=spacing)


def test_cases_without_labels_are_left_out_and_counted(tmp_path: Path, raw: Path) -> None:
    """Test cases are reported, not prepared; a data set of nothing else is refused."""
    (raw / "case_00000" / "segmentation.nii.gz").unlink()

    result = preprocess(raw, tmp_path / "out")

    assert result.dataset.cases == ("case_00001",)
    assert Finding(None, "note", "1 of 2 cases have no label map and are left out") in result.findings
    (raw / "case_00001" / "segmentation.nii.gz").unlink()
    with pytest.raises(KitsattnError, match="none of 2 cases has a label map"):
        preprocess(raw, tmp_path / "out")


def test_what_is_known_of_the_challenges_cases_is_noted(tmp_path: Path, write_case: WriteCase) -> None:
    """KiTS19's own cases carry what others found of them; anybody's data in its layout, and phantoms, do not."""
    for name in ("kits19", "mine"):
        write_case(tmp_path / name, "case_00160")

    notes = {name: verify_dataset(find_dataset(tmp_path / name), workers=HERE) for name in ("kits19", "mine")}

    assert [finding.case_id for finding in notes["kits19"]] == [None, "case_00160"]
    assert {finding.severity for finding in notes["kits19"]} == {"note"}
    assert "slice axis first" in notes["kits19"][0].text
    assert "case_00160: Its slices have 512 x 796 voxels" in notes["kits19"][1].text
    assert notes["mine"] == ()
    (tmp_path / "kits19" / "kitsattn-dataset.json").write_text('{"synthetic": true}')
    assert verify_dataset(find_dataset(tmp_path / "kits19"), workers=HERE) == ()


def test_a_plan_edited_by_hand_is_kept_and_its_use_told(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """plan.json says what was used; an edit in place is not used silently, nor lost, however often it is replaced."""
    folder = tmp_path / "out"
    preprocess(raw, folder)
    edited = {**json.loads((folder / "plan.json").read_text()), "patch_size": [64, 64]}
    (folder / "plan.json").write_text(json.dumps(edited))
    preprocess(raw, folder)
    preprocess(raw, folder, spacing_mm=3.0)
    (folder / "plan.json").write_text("{")
    preprocess(raw, folder)
    assert json.loads((folder / "plan.previous-1.json").read_text()) == edited
    assert json.loads((folder / "plan.previous-2.json").read_text())["patch_size"] != [64, 64]
    assert (folder / "plan.previous-3.json").read_text() == "{"
    assert json.loads((folder / "plan.json").read_text())["spacing_mm"] == [4.0, 4.0]
    assert "add --plan" in caplog.text
    again = preprocess(raw, folder, plan_file=folder / "plan.previous-1.json")
    assert again.dataset.plan.patch_size == (64, 64)


def test_verifying_finds_what_preparing_would(tmp_path: Path, raw: Path, write_case: WriteCase) -> None:
    """Every voxel is read and nothing is written; errors come first."""
    write_case(raw, "case_00002")
    path = raw / "case_00002" / "segmentation.nii.gz"
    write_nifti(path, read_labels(path).with_array(np.full((12, 60, 80), 7, np.uint8)))
    before = files_in(raw)

    findings = verify_dataset(find_dataset(raw), workers=HERE)

    assert [finding.severity for finding in findings] == ["error", "warning"]
    assert "case_00002/segmentation.nii.gz holds the unknown labels [7]" in findings[0].text
    assert "case_00001 has the same scan as case_00000" in findings[1].text
    assert files_in(raw) == before
    assert list(tmp_path.iterdir()) == [raw]
