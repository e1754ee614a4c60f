"""`kitsattn download` as people type it, from a server on loopback."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import Result

if TYPE_CHECKING:
    from tests.conftest import FileServer

Command = Callable[..., Result]
Refused = Callable[..., list[Path]]


@pytest.fixture
def mirror(file_server: "FileServer", kits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> "FileServer":
    """A mirror, named by the environment, that has the painted cases."""
    for case in sorted(kits_folder.glob("case_*")):
        file_server.serve(f"/images/{case.name}.nii.gz", (case / "imaging.nii.gz").read_bytes())
        file_server.serve(f"/labels/{case.name}/segmentation.nii.gz", (case / "segmentation.nii.gz").read_bytes())
    monkeypatch.setenv("KITSATTN_KITS19_IMAGES_URL", f"{file_server.url}/images")
    monkeypatch.setenv("KITSATTN_KITS19_LABELS_URL", f"{file_server.url}/labels")
    return file_server


def test_what_is_fetched_can_be_preprocessed(command: Command, mirror: "FileServer") -> None:
    """The licence and what to cite come first; the next command needs no path."""
    result = command("download", "kits19", "--cases", "0,2-3")
    folder = Path("kitsattn-workspace") / "raw" / "kits19"
    assert (result.exit_code, result.stdout) == (0, f"6 files fetched, 0 were there already: {folder}\n")
    first, second, last = result.stderr.splitlines()
    assert first.startswith("KiTS19 is licensed under CC BY-NC-SA 4.0; cite Heller et al., ")
    assert first.endswith("arXiv:1904.00445")
    assert (second, last) == (f"data set: {folder}", "next: kitsattn preprocess")

    prepared = command("preprocess", "--workers", "1", "--json")
    assert prepared.exit_code == 0, prepared.stderr
    content = json.loads(prepared.stdout)
    assert (content["dataset"], content["cases"]) == ("kits19", ["case_00000", "case_00002", "case_00003"])


def test_a_folder_of_its_own(command: Command, mirror: "FileServer") -> None:
    """DIR is used as it is, --workspace moves the default, and the hint names what preprocess needs."""
    shown = command("download", "kits19", "my/data", "--cases", "1").stderr
    assert Path("my/data/case_00001/imaging.nii.gz").is_file()
    assert "next: kitsattn preprocess my/data\n" in shown
    command("download", "kits19", "--cases", "1", "--workspace", "elsewhere")
    assert Path("elsewhere/raw/kits19/case_00001/imaging.nii.gz").is_file()


def test_json_says_what_was_fetched(command: Command, mirror: "FileServer") -> None:
    """Only JSON on stdout: what is new, what was there, what failed and why, and the terms of the data."""
    command("download", "kits19", "d", "--cases", "1")
    del mirror.files["/images/case_00002.nii.gz"]
    result = command("download", "kits19", "d", "--cases", "1-2", "--json")
    content = json.loads(result.stdout)
    url = f"{mirror.url}/images/case_00002.nii.gz"
    image = str(Path("d/case_00002/imaging.nii.gz"))
    assert content.pop("citation").endswith("arXiv:1904.00445")
    assert content == {
        "dataset": "kits19",
        "folder": "d",
        "cases": ["case_00001", "case_00002"],
        "fetched": [str(Path("d/case_00002/segmentation.nii.gz"))],
        "present": [str(Path("d/case_00001") / name) for name in ("segmentation.nii.gz", "imaging.nii.gz")],
        "failed": [{"file": image, "url": url, "reason": f"{url}: the server answered 404 Not Found"}],
        "licence": "CC BY-NC-SA 4.0",
    }
    assert result.exit_code == 1
    *_, warning, error = result.stderr.splitlines()
    assert warning == f"warning: {url}: the server answered 404 Not Found"
    assert error.startswith("error: 1 file could not be fetched: the same command tries it again; ")
    assert "--cases" in error


def test_a_login_page_is_no_scan(command: Command, mirror: "FileServer") -> None:
    """It is named with its address, under -q too, and nothing gets a scan's name."""
    page = b"<!DOCTYPE html><html><title>Sign in</title></html>"
    for path in list(mirror.files):
        mirror.serve(path, page, headers={"Content-Type": "text/html"})
    result = command("-q", "download", "kits19", "d", "--cases", "4")
    assert result.exit_code == 1
    first, second, error = result.stderr.splitlines()
    assert "/case_00004" in first
    assert "/case_00004" in second
    assert first.endswith("is a web page, not a gzip file: a login or proxy page has taken its place")
    assert error.startswith("error: 2 files could not be fetched: ")
    assert not [path for path in Path("d").rglob("*.nii.gz") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "names", "fix"),
    [
        (["--cases", "0-9;12"], "'0-9;12'", "write for example 0-9,15,200-209"),
        (["--cases", "0-300"], "no case 300", "KiTS19 has cases 0 to 299"),
        (["--images-url", "ftp://mirror/kits"], "'ftp://mirror/kits'", "write http(s)://HOST/FOLDER"),
        (["--labels-url", "mirror/kits"], "'mirror/kits'", "write http(s)://HOST/FOLDER"),
    ],
    ids=["list", "range", "images", "labels"],
)
def test_mistakes_are_one_line(refused: Refused, arguments: list[str], names: str, fix: str) -> None:
    """Nothing is written before all of the command is understood."""
    assert refused("download", "kits19", "d", *arguments, names=names, fix=fix) == []


def test_a_killed_download_is_continued(command: Command, mirror: "FileServer") -> None:
    """After kill -9 nothing has a final name that is not whole, and only the rest is fetched."""
    content = gzip.compress(np.random.default_rng(0).bytes(900_000), 1)
    mirror.serve("/images/case_00210.nii.gz", content).fail(cut=600_000, hold=True)
    part = Path("d/case_00210/.imaging.nii.gz.part")
    arguments = ["download", "kits19", "d", "--cases", "210"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kitsattn", *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not part.exists() or part.stat().st_size < 500_000:
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == (-signal.SIGKILL if os.name == "posix" else 1)
    mirror.go_on.set()
    assert [path.name for path in part.parent.glob("[!.]*")] == []
    size = part.stat().st_size

    result = command(*arguments)
    assert result.exit_code == 0, result.stderr
    assert mirror.requests[-1][1]["Range"] == f"bytes={size}-"
    assert part.with_name("imaging.nii.gz").read_bytes() == content
    assert [path.name for path in part.parent.iterdir()] == ["imaging.nii.gz"]
