"""KiTS19 from a real server on loopback."""

import gzip
import json
import logging
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from filelock import FileLock

from kitsattn.datasets.download import (
    CASES,
    IMAGES_URL,
    LABELLED_CASES,
    LABELS_URL,
    Download,
    download_kits19,
    kits19_files,
    parse_cases,
)
from kitsattn.datasets.fetch import Patience
from kitsattn.datasets.find import find_dataset
from kitsattn.errors import KitsattnError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import FileServer

    Fetch = Callable[..., Download]

PATIENCE = Patience(tries=2, first_wait_s=0.01, timeout_s=5.0)


@pytest.fixture
def fetch(file_server: "FileServer", tmp_path: Path) -> "Fetch":
    """Download from the server into the test's folder; its cases are served under /images and /labels."""
    return partial(
        download_kits19,
        tmp_path / "kits19",
        images_url=f"{file_server.url}/images/",
        labels_url=f"{file_server.url}/labels",
        patience=PATIENCE,
    )


def _serve(server: "FileServer", number: int, *, size: int = 1000) -> tuple[bytes, bytes]:
    """Serve a case; return its image and its label map, which is served for cases without one as well."""
    image = gzip.compress(np.random.default_rng(number).bytes(size))
    labels = gzip.compress(np.random.default_rng(1000 + number).bytes(100))
    server.serve(f"/images/case_{number:05}.nii.gz", image)
    server.serve(f"/labels/case_{number:05}/segmentation.nii.gz", labels)
    return image, labels


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-3", (0, 1, 2, 3)),
        ("7", (7,)),
        ("299, 5 - 6,5,00005", (5, 6, 299)),
        ("0-299", tuple(range(300))),
    ],
)
def test_cases_are_numbers_and_ranges(text: str, numbers: tuple[int, ...]) -> None:
    """The numbers come in order, each once."""
    assert parse_cases(text) == numbers


@pytest.mark.parametrize("text", ["", "1,", "a", "1-", "-1", "3-1", "1-2-3", "1.5", "0x1", "\u0661", "9" * 5000])
def test_malformed_cases_are_refused(text: str) -> None:
    """The error names the piece that is wrong and shows the right form."""
    with pytest.raises(
        KitsattnError, match="is not a case number or a range of them: write for example 0-9,15,200-209"
    ):
        parse_cases(text)


@pytest.mark.parametrize("text", ["300", "0-300", "209,99999"])
def test_cases_that_kits19_does_not_have_are_refused(text: str) -> None:
    """The error says which there are."""
    with pytest.raises(
        KitsattnError, match=r"there is no case \d+: KiTS19 has cases 0 to 299, those to 209 with labels"
    ):
        parse_cases(text)


def test_files_lie_where_their_authors_publish_them() -> None:
    """300 images at Hugging Face, 210 label maps at GitHub, a case's label map before its image."""
    files = kits19_files(Path("d"), CASES)
    assert len(files) == 510
    assert [(file.url, file.path.as_posix()) for file in (*files[:2], files[-1])] == [
        (f"{LABELS_URL}/case_00000/segmentation.nii.gz", "d/case_00000/segmentation.nii.gz"),
        (f"{IMAGES_URL}/case_00000.nii.gz", "d/case_00000/imaging.nii.gz"),
        (f"{IMAGES_URL}/case_00299.nii.gz", "d/case_00299/imaging.nii.gz"),
    ]
    assert IMAGES_URL == "https://huggingface.co/datasets/neheller/KiTS-Challenge-Imaging/resolve/main/images"
    assert LABELS_URL == "https://github.com/neheller/kits19/raw/master/data"
    assert len(kits19_files(Path("d"))) == 420 == 2 * len(LABELLED_CASES)


@pytest.mark.parametrize(
    "url", ["ftp://host/data", "host/data", "", "http://", "https://me:secret@host/", "https://h/?a=b", "http://h:x"]
)
def test_other_addresses_are_refused(url: str, tmp_path: Path) -> None:
    """Only plain http and https addresses, to which names of files can be added, and before anything is written."""
    with pytest.raises(KitsattnError, match="is not an address to download from"):
        download_kits19(tmp_path / "kits19", [0], images_url=url)
    with pytest.raises(KitsattnError, match="is not an address to download from"):
        download_kits19(tmp_path / "kits19", [0], labels_url=url)
    assert list(tmp_path.iterdir()) == []


def test_cases_become_a_data_set(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """The folder has KiTS19's layout and describes itself; a case after 209 has no label map, and none is asked for."""
    served = {number: _serve(file_server, number) for number in (0, 209, 210)}
    result = fetch([0, 209, 210])
    dataset = find_dataset(tmp_path / "kits19")
    assert (dataset.name, dataset.licence, dataset.synthetic) == ("kits19", "CC BY-NC-SA 4.0", False)
    assert "arXiv:1904.00445" in dataset.citation
    assert dict(dataset.labels) == {"background": 0, "kidney": 1, "tumour": 2}
    assert [case.case_id for case in dataset.cases] == ["case_00000", "case_00209", "case_00210"]
    for case, (image, labels) in zip(dataset.cases, served.values(), strict=True):
        assert case.image.read_bytes() == image
        assert case.labels is None or case.labels.read_bytes() == labels
    assert [case.labels is None for case in dataset.cases] == [False, False, True]
    assert len(result.fetched) == len(file_server.requests) == 5
    assert (result.present, result.failures) == ((), ())
    assert file_server.requests[0][1]["User-Agent"].startswith("kitsattn/")


def test_files_that_are_there_are_left_alone(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """The second run asks the server only for what is missing."""
    for number in (0, 1):
        _serve(file_server, number)
    fetch([0])
    mine = tmp_path / "kits19" / "case_00000" / "segmentation.nii.gz"
    mine.write_bytes(b"corrected by hand")
    file_server.requests.clear()
    result = fetch([0, 1])
    assert sorted(path for path, _ in file_server.requests) == [
        "/images/case_00001.nii.gz",
        "/labels/case_00001/segmentation.nii.gz",
    ]
    assert mine.read_bytes() == b"corrected by hand"
    assert (len(result.fetched), len(result.present)) == (2, 2)


def test_one_failure_does_not_hold_up_the_others(
    file_server: "FileServer", fetch: "Fetch", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is absent or broken is reported with its address, the rest comes; the next run fetches what is missing."""
    for number in range(4):
        _serve(file_server, number)
    absent = file_server.files.pop("/labels/case_00001/segmentation.nii.gz")
    file_server.files["/images/case_00002.nii.gz"].fail(times=9, cut=9)
    result = fetch(range(4))
    reasons = {failure.file.path.relative_to(tmp_path / "kits19").as_posix(): failure for failure in result.failures}
    assert sorted(reasons) == ["case_00001/segmentation.nii.gz", "case_00002/imaging.nii.gz"]
    missing = reasons["case_00001/segmentation.nii.gz"]
    assert (
        missing.reason == f"{file_server.url}/labels/case_00001/segmentation.nii.gz: the server answered 404 Not Found"
    )
    assert [record.levelname for record in caplog.records if record.message == missing.reason] == ["WARNING"]
    assert "2 times in a row" in reasons["case_00002/imaging.nii.gz"].reason
    assert len(result.fetched) == 6
    assert all(path.is_file() for path in result.fetched)

    file_server.files["/labels/case_00001/segmentation.nii.gz"] = absent
    file_server.files["/images/case_00002.nii.gz"].faults.clear()
    again = fetch(range(4))
    assert (len(again.fetched), len(again.present), again.failures) == (2, 6, ())


def test_a_hopeless_download_is_given_up(file_server: "FileServer", fetch: "Fetch") -> None:
    """Eight refusals in a row end it with what to do; absent files do not count, and one success starts again."""
    for number in range(20):
        _serve(file_server, number)
    for path, served in file_server.files.items():
        if path != "/labels/case_00003/segmentation.nii.gz":
            served.fail(status=403)
    with pytest.raises(KitsattnError, match=r"8 files in a row could not be fetched.*HTTPS_PROXY.*--images-url"):
        fetch(range(20), parallel=1)
    # Six that fail, one that comes, eight that fail; the pool may have begun some more.
    assert 15 <= len(file_server.requests) < 25
    file_server.files.clear()
    assert len(fetch(range(20)).failures) == 39


def test_several_files_come_at_once(file_server: "FileServer", fetch: "Fetch") -> None:
    """While one connection is silent, the others bring their files."""
    for number in range(3):
        _serve(file_server, number)
    file_server.files["/labels/case_00000/segmentation.nii.gz"].fail(cut=10, hold=True)
    done: list[int] = []

    def progress(label: str, finished: int, total: int, /) -> None:
        if label == "files":
            done.append(finished)
            if finished == total - 1:
                file_server.go_on.set()

    begun = time.monotonic()
    result = fetch(range(3), parallel=2, progress=progress)
    assert time.monotonic() - begun < PATIENCE.timeout_s
    assert len(result.fetched) == 6
    assert done == list(range(7))


def test_progress_is_in_files_and_megabytes(file_server: "FileServer", fetch: "Fetch") -> None:
    """Each large file has a bar of its own, which goes when the file has come."""
    _serve(file_server, 210, size=3_500_000)
    seen: list[tuple[str, int, int]] = []
    fetch([210], progress=lambda label, done, total, /: seen.append((label, done, total)))
    label = "case_00210/imaging.nii.gz (MB)"
    steps = [step for step in dict.fromkeys(seen) if step[0] == label]
    assert steps == [(label, 0, 4), (label, 1, 4), (label, 2, 4), (label, 3, 4), (label, 1, 1)]
    assert [step for step in seen if step[0] == "files"] == [("files", 0, 1), ("files", 1, 1)]


def test_an_existing_description_is_kept(
    file_server: "FileServer", fetch: "Fetch", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that differs is left as it is, and said so; the same one is not worth a word."""
    _serve(file_server, 210)
    caplog.set_level(logging.INFO)
    fetch([210])
    fetch([210])
    assert "is left as it is" not in caplog.text
    description = tmp_path / "kits19" / "kitsattn-dataset.json"
    description.write_text(json.dumps({"name": "mine"}), encoding="utf-8")
    fetch([210])
    assert json.loads(description.read_text(encoding="utf-8")) == {"name": "mine"}
    assert f"{description} says something else, and is left as it is" in caplog.text


def test_one_folder_is_filled_by_one_download(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """Two would write to the same parts; afterwards the folder is free again."""
    _serve(file_server, 210)
    (tmp_path / "kits19").mkdir()
    with (
        FileLock(tmp_path / "kits19" / ".download.lock"),
        pytest.raises(KitsattnError, match="kits19 is in use by another `kitsattn download`"),
    ):
        fetch([210])
    assert fetch([210]).failures == ()


def test_a_folder_that_cannot_be_made(fetch: "Fetch", tmp_path: Path) -> None:
    """A file in its place is named."""
    (tmp_path / "kits19").write_bytes(b"")
    with pytest.raises(KitsattnError, match=r"kits19 cannot be written: .*name another place"):
        fetch([0])


def test_a_failure_on_this_side_ends_the_download(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """Where nothing can be written, no other file is tried."""
    for number in range(30):
        _serve(file_server, number)
    (tmp_path / "kits19").mkdir()
    (tmp_path / "kits19" / "case_00000").write_bytes(b"in the way")
    with pytest.raises(KitsattnError, match=r"segmentation\.nii\.gz cannot be written"):
        fetch(range(30), parallel=1)
    # Before the failure is known here, its thread may have taken the next file.
    assert len(file_server.requests) < 5


def test_a_failure_on_this_side_ends_the_pauses_of_others(
    file_server: "FileServer", fetch: "Fetch", tmp_path: Path
) -> None:
    """The other threads stop where they are, and what the caller gets is the failure, not their stopping."""
    for number in range(6):
        _serve(file_server, number)
        image = file_server.files[f"/images/case_{number:05}.nii.gz"]
        image.fail(times=9, status=503, headers={"Retry-After": "30"})
    (tmp_path / "kits19").mkdir()
    (tmp_path / "kits19" / "case_00005").write_bytes(b"in the way")
    before, begun = set(threading.enumerate()), time.monotonic()
    with pytest.raises(KitsattnError, match=r"segmentation\.nii\.gz cannot be written"):
        fetch(range(6), parallel=8, patience=Patience(timeout_s=5.0))
    while any(thread.name.endswith("(worker)") for thread in set(threading.enumerate()) - before):
        assert time.monotonic() - begun < 10, "a thread goes on behind the caller's back"
        time.sleep(0.01)
