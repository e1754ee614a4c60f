"""The files of a folder, or of a zip archive that is read without unpacking it.

Nothing of an archive is written to disk, so none of its names, such as `../x` or `/etc/x`, and none of its links can
lead anywhere. An archive that states more than 16 GiB of contents is refused, whatever it packs them into: that is
several times the largest CT study. Archives within archives are not opened.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO

from kitsattn.errors import KitsattnError
from kitsattn.files import is_clutter, is_dangling, missing, unreadable

MOST_UNPACKED_BYTES = 1 << 34

READ_ERRORS = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, LZMAError, struct.error)
"""What reading a damaged member of an archive can raise."""

_ENCRYPTED = 0x1
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Member:
    """A file of a folder or an archive.

    Attributes:
        name: Its path within the folder or archive, fit to be shown; it is never used as a path.
        size: Its bytes, unpacked.
        open: Opens it to be read.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]


@contextmanager
def members(path: Path) -> Iterator[list[Member]]:
    """Find the files of a folder (with its subfolders) or a .zip archive; any other file is its own only member.

    Links to folders are not followed.

    Args:
        path: The folder, archive or file.

    Yields:
        The files, sorted by name. Those of an archive can be opened until the block ends.

    Raises:
        KitsattnError: If `path` is missing or cannot be read, or is an archive that is damaged, encrypted or too large.
    """
    if not path.exists():
        raise missing(path)
    if path.is_dir():
        yield _folder_members(path)
    elif path.suffix.lower() == ".zip":
        with _open_archive(path) as archive:
            yield _archive_members(archive, path)
    else:
        yield [_file_member(path, path.name)]


def printable(text: str, longest: int) -> str:
    """Return text from a file as messages may show it: on one line, without control characters, cut where long."""
    shown = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _folder_members(folder: Path) -> list[Member]:
    found = []
    try:
        for parent, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = sorted(name for name in folders if not is_clutter(name))
            files = [Path(parent) / name for name in sorted(names) if not is_clutter(name)]
            for file in files:
                if is_dangling(file):
                    raise missing(file)
            # A named pipe would be waited for.
            found += [_file_member(file, str(file.relative_to(folder))) for file in files if file.is_file()]
    except OSError as error:
        raise unreadable(folder, error) from error
    return found


def _raise(error: OSError) -> None:
    raise error


def _file_member(file: Path, name: str) -> Member:
    return Member(printable(name, _LONGEST_NAME), file.stat().st_size, lambda: file.open("rb"))


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise unreadable(path, error) from error
    except READ_ERRORS as error:
        msg = f"{path} is not a zip archive, or is truncated or damaged: copy or download it again"
        raise KitsattnError(msg) from error
    with archive:
        yield archive


def _archive_members(archive: zipfile.ZipFile, path: Path) -> list[Member]:
    entries = sorted(
        (
            entry
            for entry in archive.infolist()
            if entry.filename and not entry.is_dir() and not any(map(is_clutter, entry.filename.split("/")))
        ),
        key=lambda entry: entry.filename,
    )
    if any(entry.flag_bits & _ENCRYPTED for entry in entries):
        msg = f"{path} is encrypted: unpack it with its password, and give the folder"
        raise KitsattnError(msg)
    size = sum(entry.file_size for entry in entries)
    if size > MOST_UNPACKED_BYTES:
        msg = (
            f"{path} states {size / 2**30:.1f} GiB of contents, more than the {MOST_UNPACKED_BYTES >> 30} GiB that are "
            "read from an archive: unpack what is needed, and give the folder"
        )
        raise KitsattnError(msg)
    return [_archive_member(archive, entry) for entry in entries]


def _archive_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member:
    return Member(printable(entry.filename, _LONGEST_NAME), entry.file_size, lambda: archive.open(entry))
