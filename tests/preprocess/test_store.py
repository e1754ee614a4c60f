import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed

from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS
from kitsattn.preprocess.case import prepare_labels, prepare_scan
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.store import (
    CaseSource,
    PreparedDataset,
    StoredCase,
    draw_locations,
    is_finished,
    open_dataset,
    read_record,
    save_case,
    save_dataset,
)
from kitsattn.volume.volume import Volume

PLAN = Plan(spacing_mm=(3.0, 5.0), mean_hu=100.0, std_hu=80.0, patch_size=(64, 64))
SOURCE = CaseSource("case_00003", Path("/raw/imaging.nii.gz"), Path("/raw/segmentation.nii.gz"), "aa", "bb")
Abdomen = tuple[Volume, Volume]


@pytest.fixture
def stored(tmp_path: Path, abdomen: Abdomen) -> StoredCase:
    """The small abdomen, prepared and stored in `tmp_path`."""
    record = save_case(tmp_path, SOURCE, prepare_scan(abdomen[0], PLAN.target), abdomen[1].array, KITS19_LABELS)
    return StoredCase(tmp_path, record, PLAN.mean_hu, PLAN.std_hu)


def test_slices_are_read_in_any_order_and_repeated(stored: StoredCase, abdomen: Abdomen) -> None:
    """Slab indices, with replicated edges, give the prepared slices to half a HU, normalised by the plan."""
    expected = (prepare_scan(abdomen[0], PLAN.target).hu(0, 12) - 100) / 80

    found = stored.read_slices([11, 11, 0, 5, 5])

    assert found.dtype == np.float32
    assert np.abs(found - expected[[11, 11, 0, 5, 5]]).max() <= 0.5 / 80 + 1e-5
    assert np.array_equal(stored.read_slices(np.array([4])), stored.read_slices([4]))


def test_labels_and_sizes_are_read(stored: StoredCase, abdomen: Abdomen) -> None:
    """Labels are those of the prepared grid; the spacing is the plan's in-plane and the scan's across."""
    expected = prepare_labels(abdomen[1].array, stored.record.placement)

    assert stored.case_id == "case_00003"
    assert stored.shape == expected.shape == (12, 61, 52)
    assert stored.spacing_mm == (5.0, 3.0, 5.0)
    assert np.array_equal([stored.read_labels(index) for index in range(12)], expected)


def test_locations_lie_in_their_class(stored: StoredCase) -> None:
    """Each location is a voxel of its class on the prepared grid."""
    assert set(stored.locations) == {1, 2}
    for value, places in stored.locations.items():
        assert places.shape[1] == 3
        assert {int(stored.read_labels(z)[y, x]) for z, y, x in places} == {value}


def test_case_without_foreground_has_no_locations(tmp_path: Path, abdomen: Abdomen) -> None:
    """A healthy case is a case."""
    record = save_case(
        tmp_path, SOURCE, prepare_scan(abdomen[0], PLAN.target), np.zeros_like(abdomen[1].array), KITS19_LABELS
    )

    assert StoredCase(tmp_path, record, PLAN.mean_hu, PLAN.std_hu).locations == {}


def test_locations_are_at_most_10000_or_one_percent() -> None:
    """2,000,000 voxels give 20,000 places, 15,000 give 10,000 and 7 give 7, without repetition, the same each time."""
    labels = np.zeros((3, 1000, 1000), np.uint8)
    labels[:2] = 1
    labels[2].flat[:15000] = 2
    labels[2].flat[20000:20007] = 3

    voxels = {value: np.flatnonzero(labels == value) for value in (1, 2, 3)}

    rows = draw_locations(voxels, labels.shape)

    assert np.bincount(rows[:, 0]).tolist() == [0, 20000, 10000, 7]
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert (labels[tuple(rows[:, 1:].T)] == rows[:, 0]).all()
    assert np.array_equal(rows, draw_locations(voxels, labels.shape))


def test_stored_case_can_be_sent_to_another_process(stored: StoredCase) -> None:
    """Worker processes read the same, also after this one has."""
    assert stored.locations

    found = Parallel(n_jobs=2)(delayed(stored.read_slices)([index]) for index in (3, 4))

    assert np.array_equal(np.concatenate(found), stored.read_slices([3, 4]))


def test_case_is_finished_for_its_own_files_target_and_classes(tmp_path: Path, stored: StoredCase) -> None:
    """Anything else is prepared again, and so is a case of which a file is gone or short."""
    assert is_finished(tmp_path, SOURCE, PLAN.target, KITS19_LABELS)
    assert not is_finished(tmp_path, SOURCE, replace(PLAN.target, clip_hu=(-300.0, 299.0)), KITS19_LABELS)
    assert not is_finished(tmp_path, replace(SOURCE, image_sha256="cc"), PLAN.target, KITS19_LABELS)
    assert not is_finished(tmp_path, SOURCE, PLAN.target, KITS23_LABELS)
    image = tmp_path / "cases" / "case_00003" / "image.b2nd"
    content = image.read_bytes()
    image.write_bytes(content[:-1])
    assert not is_finished(tmp_path, SOURCE, PLAN.target, KITS19_LABELS)
    image.unlink()
    assert not is_finished(tmp_path, SOURCE, PLAN.target, KITS19_LABELS)
    image.write_bytes(content)
    assert is_finished(tmp_path, SOURCE, PLAN.target, KITS19_LABELS)
    (tmp_path / "cases" / "case_00003" / "case.json").unlink()
    assert not is_finished(tmp_path, SOURCE, PLAN.target, KITS19_LABELS)
    with pytest.raises(KitsattnError, match=r"no finished case case_00003: run `kitsattn preprocess` again"):
        read_record(tmp_path, "case_00003")


def test_case_that_is_written_anew_stays_as_it_was_until_the_new_one_is_whole(
    tmp_path: Path, stored: StoredCase, abdomen: Abdomen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If writing over a finished case stops half way, the earlier one is there, and nothing of the new one."""
    before = stored.read_slices([0, 7])

    def stop(path: Path, content: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kitsattn.preprocess.store.write_json", stop)

    with pytest.raises(KeyboardInterrupt):
        save_case(tmp_path, SOURCE, prepare_scan(abdomen[0], PLAN.target), abdomen[1].array, KITS19_LABELS)
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["case_00003"]
    assert is_finished(tmp_path, SOURCE, PLAN.target, KITS19_LABELS)
    assert np.array_equal(stored.read_slices([0, 7]), before)


def test_cases_share_no_file_whatever_they_are_called(tmp_path: Path, abdomen: Abdomen) -> None:
    """A case may be called like another one's labels."""
    for name in ("x", "x.labels", "x.image.b2nd"):
        save_case(tmp_path, replace(SOURCE, case_id=name), prepare_scan(abdomen[0], PLAN.target), abdomen[1].array, {})

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 12
    assert {read_record(tmp_path, name).case_id for name in ("x", "x.labels", "x.image.b2nd")} == {
        "x",
        "x.labels",
        "x.image.b2nd",
    }


def test_damaged_file_is_named(tmp_path: Path, stored: StoredCase) -> None:
    """A truncated image says which file it is and how to make it again."""
    file = tmp_path / "cases" / "case_00003" / "image.b2nd"
    file.write_bytes(file.read_bytes()[:1000])

    with pytest.raises(KitsattnError, match=r"case_00003.image\.b2nd is missing or damaged: .*--restart"):
        stored.read_slices([0])


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    """A data set of one case in `tmp_path`, not saved yet."""
    return PreparedDataset(
        folder=tmp_path,
        name="phantoms",
        synthetic=True,
        licence="CC0",
        citation="nobody",
        labels=KITS19_LABELS,
        plan=PLAN,
        sources={"case_00003": SOURCE},
    )


def test_dataset_survives_its_file(tmp_path: Path, dataset: PreparedDataset) -> None:
    """A data set that is saved and opened is the same data set."""
    save_dataset(dataset)

    assert open_dataset(tmp_path) == dataset
    assert open_dataset(tmp_path).cases == ("case_00003",)


def test_unfinished_dataset_is_refused(tmp_path: Path) -> None:
    """A folder without dataset.json says which command makes it."""
    with pytest.raises(KitsattnError, match=r"holds no finished data set .*make it with `kitsattn preprocess`"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("content", [{"format": "kitsattn-dataset/9"}, []])
def test_other_formats_are_refused(tmp_path: Path, content: object) -> None:
    """A data set of another version is not guessed at."""
    (tmp_path / "dataset.json").write_text(json.dumps(content))

    with pytest.raises(KitsattnError, match="is not in the format kitsattn-dataset/1"):
        open_dataset(tmp_path)


def test_case_of_another_format_is_refused(tmp_path: Path, stored: StoredCase) -> None:
    """A case of another version is not guessed at either, and is prepared again."""
    file = tmp_path / "cases" / "case_00003" / "case.json"
    file.write_text(file.read_text().replace("kitsattn-case/1", "kitsattn-case/9"))

    with pytest.raises(KitsattnError, match="'kitsattn-case/9' is not 'kitsattn-case/1'"):
        read_record(tmp_path, "case_00003")
    assert not is_finished(tmp_path, SOURCE, PLAN.target, KITS19_LABELS)


def test_case_of_another_plan_or_of_other_files_is_refused(dataset: PreparedDataset, stored: StoredCase) -> None:
    """Cases of different plans or labels never get into one training, nor such as have changed since."""
    assert dataset.open_case("case_00003") == stored

    for other in (
        replace(dataset, plan=replace(PLAN, spacing_mm=(3.0, 4.0))),
        replace(dataset, labels=KITS23_LABELS),
        replace(dataset, sources={"case_00003": replace(SOURCE, labels_sha256="cc")}),
    ):
        with pytest.raises(KitsattnError, match="case_00003 was prepared with another plan or other files"):
            other.open_case("case_00003")


def test_full_disk_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    """When no more can be written the case is named, and neither it nor a temporary one is left."""
    resource = pytest.importorskip("resource", reason="limits the size of files as POSIX systems can")
    script = (
        "import sys, numpy as np; from pathlib import Path; from kitsattn.files import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'image.b2nd').write_bytes(bytes(100_000))\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    found = subprocess.run(
        [sys.executable, "-B", "-c", script, str(tmp_path / "case_00000")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )

    assert f"no space left to write {tmp_path / 'case_00000'}: free some disk space" in found.stderr
    assert list(tmp_path.iterdir()) == []
