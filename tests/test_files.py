"""Atomic writes."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kitsattn import files
from kitsattn.errors import KitsattnError
from kitsattn.files import (
    atomic_folder,
    atomic_path,
    expand_path,
    is_clutter,
    missing,
    read_json,
    sha256,
    sole_writer,
    tidy_folder,
    visible_entries,
    write_json,
    write_text,
)


def test_a_finished_write_leaves_one_file_under_the_final_name(tmp_path: Path) -> None:
    """The temporary file is renamed, and its name ends like the final one."""
    with atomic_path(tmp_path / "sub" / "a.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert not (tmp_path / "sub" / "a.nii.gz").exists()
        temporary.write_bytes(b"whole")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "sub" / "a.nii.gz").read_bytes() == b"whole"


def test_a_written_file_has_the_users_usual_permissions(tmp_path: Path) -> None:
    """A writer that makes its own file private does not lock out the user's group."""
    (tmp_path / "usual").touch()
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """Whatever ends the write, even Ctrl-C, the file of that name stays as it was."""
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    """The refusal names the option that overwrites, and comes before any work."""
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KitsattnError, match="--overwrite"), atomic_path(path, overwrite=False):
        pytest.fail("the block must not run")
    assert path.read_text() == "old"


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    """Where the system takes no more bytes, the error says to free space, and no part of the file remains."""
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from kitsattn.files import atomic_folder, write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "write_text(Path(sys.argv[1]) / 'a.txt', 'x' * 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "KitsattnError: no space left to write" in done.stderr
    assert "free some disk space" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    """A file where a folder should be is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(KitsattnError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_json_is_written_and_read_back(tmp_path: Path) -> None:
    """Indented, with a final newline."""
    write_json(tmp_path / "a.json", {"a": [1, 2]})
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    assert read_json(tmp_path / "a.json") == {"a": [1, 2]}


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    """The checksum of a file equals that of its content."""
    (tmp_path / "a").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_folder_appears_whole_and_replaces_the_one_before(tmp_path: Path) -> None:
    """Nothing has the final name until the block has ended, and what had it is gone then."""
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "old").touch()

    with atomic_folder(tmp_path / "case") as unfinished:
        (unfinished / "new").write_text("x")
        assert [path.name for path in (tmp_path / "case").iterdir()] == ["old"]

    assert [path.name for path in tmp_path.iterdir()] == ["case"]
    assert [path.name for path in (tmp_path / "case").iterdir()] == ["new"]


def test_a_folder_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the block, or in the last step, is no loss."""
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "old").touch()

    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "case"):
        _ = 1 / 0
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".new." in self.name:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(KitsattnError, match="case cannot be written: Permission denied"),
        atomic_folder(tmp_path / "case"),
    ):
        pass

    assert [path.name for path in tmp_path.iterdir()] == ["case"]
    assert [path.name for path in (tmp_path / "case").iterdir()] == ["old"]


def test_a_folder_is_not_lost_to_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the two renames brings back what was there."""
    (tmp_path / "case").mkdir()
    rename = Path.rename

    def interrupt(self: Path, target: Path) -> Path:
        if ".new." in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "case"):
        pass

    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_what_killed_processes_left_is_tidied_and_nothing_lost(tmp_path: Path) -> None:
    """Half-written files and folders go; a folder that nothing has taken the place of gets its name back."""
    for name in (".00000001.part.new.case_1", ".00000002.part.old.case_1", "case_2", ".00000003.part.old.case_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    (tmp_path / ".00000004.part.case_3.json").touch()
    (tmp_path / "case_3.json").touch()

    tidy_folder(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["case_1", "case_2", "case_3.json"]
    assert (tmp_path / "case_1" / "content").read_text() == ".00000002.part.old.case_1"
    assert (tmp_path / "case_2" / "content").read_text() == "case_2"


def test_what_another_process_may_be_writing_is_left(tmp_path: Path) -> None:
    """Only what nobody has written to for long goes."""
    for name, age_s in ((".00000001.part.a.nii.gz", 7200), (".00000002.part.b.nii.gz", 60)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)

    tidy_folder(tmp_path, older_s=3600)

    assert [path.name for path in tmp_path.iterdir()] == [".00000002.part.b.nii.gz"]


OWNER = """
import errno, fcntl, pathlib, socket, sys, time
from kitsattn import files

folder, host, mode = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if mode == "no locks":
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")
    fcntl.flock = refuse
if host:
    socket.gethostname = lambda: host
files._LEASE_S = 1.5
with files.sole_writer(folder, "kitsattn train"):
    print("at work", flush=True)
    time.sleep(60)
"""


@contextmanager
def _owner(folder: Path, *, host: str = "", locks: bool = True) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to a folder, of another machine too."""
    command = [sys.executable, "-c", OWNER, str(folder), host, "" if locks else "no locks"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="its locks are others")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_second_writer_is_refused_while_the_first_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stopped: bool
) -> None:
    """It is told which process is at work, also one that is suspended; what a killed one has left is taken over."""
    monkeypatch.setattr(files, "_LEASE_S", 1.5)
    with _owner(tmp_path) as process:
        if stopped:
            process.send_signal(signal.SIGSTOP)
            time.sleep(2)
        with (
            pytest.raises(KitsattnError, match=rf"in use by another `kitsattn train`, process {process.pid} on "),
            sole_writer(tmp_path, "kitsattn train"),
        ):
            pass
    assert (tmp_path / ".train.owner").exists()
    with sole_writer(tmp_path, "kitsattn train"):
        assert f"pid={os.getpid()}" in (tmp_path / ".train.owner").read_text()
    assert sys.platform == "win32" or not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="its locks are others")
def test_writers_of_other_machines_are_kept_out_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a sign of life in the folder itself; without one for a while it is taken over."""
    monkeypatch.setattr(files, "_LEASE_S", 1.5)
    with _owner(tmp_path, host="node7", locks=False) as process:
        with (
            pytest.raises(KitsattnError, match=rf"process {process.pid} on node7: .*, or name another --run-name"),
            sole_writer(tmp_path, "kitsattn train", instead="name another --run-name"),
        ):
            pass
        assert process.poll() is None
    began = time.monotonic()
    with sole_writer(tmp_path, "kitsattn train"):
        assert time.monotonic() - began > 1.5


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file may stand where it should be."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(KitsattnError, match="file cannot be written: "),
        sole_writer(tmp_path / "file", "kitsattn preprocess"),
    ):
        pass


def test_what_systems_leave_in_folders_is_not_seen(tmp_path: Path) -> None:
    """Archivers, desktops and file servers leave files and folders; names that only resemble theirs are kept."""
    clutter = ["__MACOSX", "._a.nii.gz", ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", "@eaDir", "#recycle"]
    for name in (*clutter, ".hidden", "a.nii.gz", "Thumbs.db.nii.gz", "macosx"):
        (tmp_path / name).touch()

    assert [path.name for path in visible_entries(tmp_path)] == ["Thumbs.db.nii.gz", "a.nii.gz", "macosx"]
    assert all(map(is_clutter, clutter))
    assert not is_clutter(".hidden")


def test_paths_are_expanded_unless_they_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home folder and `$NAME` a variable; one that is not set, and a file of that name, stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("STUDY", "/data/study")
    monkeypatch.delenv("UNSET", raising=False)

    for named, path in {
        "~/x": "/home/ann/x", "$STUDY/a": "/data/study/a", "${STUDY}_2": "/data/study_2", "$HOME": "/home/ann",
        "a~b": "a~b", "$UNSET/a": "$UNSET/a", "/abs/$STUDY": "/abs//data/study",
    }.items():  # fmt: skip
        assert expand_path(named) == expand_path(Path(named)) == Path(path)
    (tmp_path / "$STUDY").touch()
    assert expand_path("$STUDY") == Path("$STUDY")


def test_a_link_to_nothing_is_reported_with_what_it_leads_to(tmp_path: Path) -> None:
    """Whoever uses git-annex learns what to do."""
    (tmp_path / "a.nii.gz").symlink_to(".git/annex/objects/x")

    for error in (missing(tmp_path / "a.nii.gz"), caught(tmp_path / "a.nii.gz")):
        assert "a.nii.gz is a link to .git/annex/objects/x, which does not exist: fetch" in str(error)
    assert str(missing(tmp_path / "b")) == f"{tmp_path / 'b'} does not exist"


def caught(path: Path) -> KitsattnError:
    """Return the error of reading a file."""
    with pytest.raises(KitsattnError) as error:
        sha256(path)
    return error.value
