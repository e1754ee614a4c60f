"""Atomic writes and checksums: a file with its final name is always whole."""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitsattn.errors import KitsattnError

if TYPE_CHECKING:
    from filelock import SoftFileLease

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

_LEASE_S = 30.0
"""After so many seconds without a sign of life, what a process of another machine has left is taken over."""

_PARTIAL = "." + "[0-9a-f]" * 8 + ".part.*"
"""What a name looks like until the file or folder is whole."""

_CLUTTER = (
    ".ds_store",
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    "@recycle",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)
"""Names, in small letters, that macOS, Windows and file servers (Synology, QNAP) leave in folders and archives."""

_log = logging.getLogger(__name__)


@contextmanager
def atomic_path(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    The temporary name ends like the final one, so that writers which go by the suffix work. If the block
    raises, the temporary file is removed and an existing `path` is left as it was.

    Args:
        path: The final path. Its folder is made if it is missing.
        overwrite: Whether an existing `path` may be replaced.

    Yields:
        The path to write to.

    Raises:
        KitsattnError: If `path` exists and may not be replaced, or if it cannot be written.
    """
    if not overwrite:
        refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.part.{path.name}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # the user's usual permissions: safetensors makes its files private
        rename_durably(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def rename_durably(finished: Path, path: Path) -> None:
    """Rename a finished file of the same folder to `path`, so that a power cut leaves one of the two, whole."""
    _fsync(finished)
    finished.replace(path)
    _fsync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success its files are fsynced, and it takes the place of `path`.

    If the block raises, the temporary folder is removed and an existing `path` is left as it was.

    Args:
        path: The final path. The folder around it is made if it is missing.

    Yields:
        The folder to write files into.

    Raises:
        KitsattnError: If it cannot be written.
    """
    token = uuid.uuid4().hex[:8]
    temporary, replaced = (path.with_name(f".{token}.part.{kind}.{path.name}") for kind in ("new", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _fsync(file)
        _fsync_folder(temporary)
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _restore_or_remove(replaced, path)


def tidy_folder(folder: Path, *, older_s: float = 0.0) -> None:
    """Remove what killed processes left half-written in a folder; what was about to be replaced gets its name back.

    Args:
        folder: It need not exist.
        older_s: What was written to in the last seconds is left: it may be another process's work.
    """
    for remains in folder.glob(_PARTIAL):
        if older_s and _age_s(remains) < older_s:
            continue
        kind, _, name = remains.name.partition(".part.")[2].partition(".")
        if not remains.is_dir():
            remains.unlink(missing_ok=True)
        elif kind == "old":
            _restore_or_remove(remains, folder / name)
        else:
            shutil.rmtree(remains, ignore_errors=True)


def _age_s(path: Path) -> float:
    """Return the seconds since a file was written to; none where it has just got its final name."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _restore_or_remove(replaced: Path, path: Path) -> None:
    """Deal with the folder that was at `path` before: nothing may be lost where nothing took its place."""
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(path)


@contextmanager
def sole_writer(folder: Path, command: str, *, instead: str = "name another folder") -> Iterator[None]:
    """Keep a second process that runs the same command out of a folder: both would write the same files.

    A lock of the system keeps out processes of this machine, also while this process is suspended. A file that is
    touched every few seconds keeps out those of other machines, and holds the owner's process id and host. What a
    process has left that was killed is taken over: at once if it ran on this machine, else after half a minute in which
    nothing has touched the file.

    Args:
        folder: Where the command writes; it is made if it is missing.
        command: What writes there, as in `kitsattn preprocess`.
        instead: What else the user can do than wait, for the message.

    Raises:
        KitsattnError: If another process is at work there, or the folder cannot be written.
    """
    from filelock import FileLock, SoftFileLease, Timeout  # noqa: PLC0415 - `kitsattn --help` does without

    name = command.rpartition(" ")[2]
    lock = FileLock(folder / f".{name}.lock", timeout=0, fallback_to_soft=False)
    lease = SoftFileLease(
        folder / f".{name}.owner",
        lease_duration=_LEASE_S,
        on_compromise=lambda _: _log.warning("%s: another `%s` writes there, too: stop one of them", folder, command),
    )
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(lock)
                held.callback(_remove_lock, Path(lock.lock_file))
            except OSError as error:
                if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
                    raise
                _log.debug("%s: its file system has no locks", folder)
            held.enter_context(_leased(lease))
        except Timeout as error:
            owner = lease.owner
            who = "" if owner is None else f", process {owner.pid} on {owner.hostname.partition('?')[0]}"
            msg = f"{folder} is in use by another `{command}`{who}: wait until it has ended, or {instead}"
            raise KitsattnError(msg) from error
        except OSError as error:
            raise unwritable(folder, error) from error
        yield


def _remove_lock(path: Path) -> None:
    """Leave no file behind; who has opened it by now sees that it has no name any more, and opens the next one."""
    with suppress(OSError):  # not on Windows, while it is open
        path.unlink()


@contextmanager
def _leased(lease: "SoftFileLease") -> Iterator[None]:
    """Hold a lease; where another holds it, look for a while whether that one is alive.

    Raises:
        filelock.Timeout: If it is.
    """
    from filelock import Timeout  # noqa: PLC0415 - see above

    try:
        lease.acquire(timeout=_LEASE_S / 30)
    except Timeout:
        _log.info("%s: looking for %.0f s whether its process is at work", lease.lock_file, _LEASE_S)
        lease.acquire(timeout=1.2 * _LEASE_S)
    try:
        yield
    finally:
        lease.release()


def is_clutter(name: str) -> bool:
    """Tell whether a file or folder was left by an operating system, archiver or file server, by its name."""
    return name.startswith("._") or name.lower() in _CLUTTER


def is_visible(name: str) -> bool:
    """Tell whether a name is neither hidden nor that of clutter."""
    return not (name.startswith(".") or is_clutter(name))


def visible_entries(folder: Path) -> list[Path]:
    """Return what a folder holds, by name, except hidden entries and clutter.

    Raises:
        OSError: If the folder cannot be read.
    """
    return sorted(path for path in folder.iterdir() if is_visible(path.name))


def is_file_or_dangling(path: Path) -> bool:
    """Tell whether a path is a file, or a link to what is not there: whoever reads it reports the latter."""
    return path.is_file() or is_dangling(path)


def is_dangling(path: Path) -> bool:
    """Tell whether a path is a link to what is not there, as git-annex leaves for files to be fetched."""
    return path.is_symlink() and not path.exists()


def expand_path(named: str | os.PathLike[str]) -> Path:
    """Return a path with `~` and `$VARIABLES` expanded, which a shell does not do in all places.

    A path that exists as it is named stays as it is, and so does a variable that is not set.
    """
    path = Path(named)
    return path if path.exists() else Path(os.path.expandvars(path)).expanduser()


def missing(path: Path) -> KitsattnError:
    """Return the error for a path that is not there."""
    if path.is_symlink():
        return KitsattnError(
            f"{path} is a link to {path.readlink()}, which does not exist: fetch the file that it stands for "
            "(git annex get, dvc pull), or remove the link"
        )
    return KitsattnError(f"{path} does not exist")


def refuse_existing(path: Path) -> None:
    """Raise if `path` exists, so that no output is overwritten unasked.

    Raises:
        KitsattnError: If `path` exists.
    """
    if path.exists():
        msg = f"{path} exists already: choose another name, or add --overwrite to replace it"
        raise KitsattnError(msg)


def check_suffix(path: Path, *suffixes: str) -> None:
    """Refuse a file that is not named as what it will be: it might be a scan or label map, and be lost.

    Raises:
        KitsattnError: If its name ends in none of the suffixes.
    """
    if not path.name.lower().endswith(suffixes):
        msg = f"{path} has no suffix of its format: name it {' or '.join(suffixes)}"
        raise KitsattnError(msg)


def check_target(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists and may not be replaced, or that is its own input.

    Raises:
        KitsattnError: If `target` exists and `overwrite` is not set, or is the same file as `source`.
    """
    if not overwrite:
        refuse_existing(target)
    elif target.exists() and source.exists() and target.samefile(source):
        msg = f"{target} is the input itself, which would be lost: name another output"
        raise KitsattnError(msg)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        # A file's name that is no UTF-8 reaches us with lone surrogates, which cannot be written.
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - anything that json takes
    """Write `content` to `path` atomically, as indented JSON with a final newline."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:  # noqa: ANN401 - the reader checks what it got
    """Read JSON from `path`.

    Raises:
        KitsattnError: If the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"{path} does not exist"
        raise KitsattnError(msg) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = f"{path} cannot be read as JSON ({error}): restore it, or delete it and make it again"
        raise KitsattnError(msg) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file's bytes, as 64 hexadecimal digits.

    Raises:
        KitsattnError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> KitsattnError:
    """Return the error for a `path` that cannot be read."""
    if is_dangling(path):
        return missing(path)
    fix = ": see that you may read it" if isinstance(error, PermissionError) else ""
    return KitsattnError(f"{path} cannot be read ({error.strerror or error}){fix}")


def unwritable(path: Path, error: OSError) -> KitsattnError:
    """Return the error for a `path` that cannot be written: what happened and how to fix it."""
    if error.errno in _NO_SPACE:
        return KitsattnError(f"no space left to write {path}: free some disk space and run the command again")
    reason = error.strerror or error
    return KitsattnError(f"{path} cannot be written: {reason}; name another place, or see that you may write there")


def _fsync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse it; the file itself is whole
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
