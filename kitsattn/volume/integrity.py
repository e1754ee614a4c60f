"""What SimpleITK does not check of NRRD and MetaImage files: that they hold the voxels their header announces, whole.

SimpleITK asks for as much memory as a header announces. Where compressed voxels are damaged, MetaImage is read all the
same, with whatever memory held before (60 of 60 files with one changed bit), and no checksum of NRRD is compared (3 of
60 were read, with wrong values). So the compressed ones are unpacked once before, as a check. A MetaImage of more axes
than it has room for ends the process, and so can an NRRD whose header runs into its voxels.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kitsattn.errors import KitsattnError
from kitsattn.files import unreadable
from kitsattn.machine import available_memory

_DEFLATE_AT_MOST = 1032
"""How many bytes one byte of gzip can stand for: the most that zlib's own account of the format gives."""

_LONGEST_HEADER = 1 << 20
_NRRD_MAGIC = b"NRRD"
_NRRD_END = re.compile(rb"\n\r?\n")
_META_END = re.compile(rb"^ElementDataFile[^\n]*\n?", re.MULTILINE)
_META_SUFFIXES = (".mha", ".mhd")
_LONGEST_SHOWN = 20
_BLOCK_BYTES = 1 << 16
_GZIP = 31
"""zlib's code for: gzip, with the largest window."""
_ANY_DEFLATE = 47
"""zlib's code for: zlib's format or gzip, whichever it is, with the largest window."""


@dataclass(frozen=True)
class _Stored:
    """Where the voxels of a file are.

    Attributes:
        file: The file that holds them.
        begin: Its first byte of theirs.
        size: How many bytes they take at most.
        packed: Whether they are compressed.
    """

    file: Path
    begin: int
    size: int
    packed: bool


def check_header(path: Path) -> None:
    """Refuse a header of NRRD or MetaImage that would end the process, which SimpleITK does not look after.

    Raises:
        KitsattnError: If the header is not text, or that of a MetaImage does not state 1 to 10 axes.
    """
    start = _read_start(path)
    if start.startswith(_NRRD_MAGIC):
        end = _NRRD_END.search(start)
    elif path.suffix.lower() in _META_SUFFIXES:
        end = _META_END.search(start)
    else:
        return
    header = start[: end.end()] if end else start
    if b"\0" in header:
        raise _damaged(path, "its header is not text")
    axes = re.search(rb"^\s*NDims\s*=([^\n]*)", header, re.MULTILINE)
    if axes is not None and not re.fullmatch(rb"\s*0*([1-9]|10)\s*", axes[1]):
        stated = axes[1].decode("ascii", "replace").strip()[:_LONGEST_SHOWN]
        raise _damaged(path, f"its header states {stated!r} axes")


def check_voxels(path: Path, needed: int) -> None:
    """Refuse a file that holds fewer voxels than its header announces, or damaged ones, or more than memory holds.

    Voxels that are text, or are in several files, or in formats other than NRRD and MetaImage, are only compared with
    the memory that is free.

    Args:
        path: The file, whose header SimpleITK has read.
        needed: Bytes that its voxels take in memory.

    Raises:
        KitsattnError: If it is truncated or damaged, or announces more than memory holds.
    """
    stored = _find_voxels(path)
    if stored is not None:
        _check_stored(stored, needed, path)
    free = available_memory()
    if needed > free:
        msg = (
            f"{path} announces {needed / 2**30:.1f} GiB of voxels, and {free / 2**30:.1f} GiB of memory are free: "
            "see that its header is right, or use a machine with more memory"
        )
        raise KitsattnError(msg)


def _check_stored(stored: _Stored, needed: int, path: Path) -> None:
    try:
        refuse_short(needed, stored.size, packed=stored.packed)
        unpacked = _count_unpacked(stored) if stored.packed else needed
    except OSError as error:
        raise unreadable(stored.file, error) from error
    except (EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    if unpacked != needed:
        raise _damaged(path, f"{unpacked} of {needed} bytes of voxels")


def refuse_short(needed: int, size: int, *, packed: bool) -> None:
    """Refuse a file that is too short for its voxels before memory is asked for them: its header may be damaged.

    Args:
        needed: Bytes that the voxels take in memory.
        size: Bytes that the file has for them.
        packed: Whether these are compressed.

    Raises:
        EOFError: If they cannot hold the voxels.
    """
    there = size * (_DEFLATE_AT_MOST if packed else 1)
    if there < needed:
        msg = f"its header announces {needed} bytes of voxels, and it holds {'at most ' if packed else ''}{there}"
        raise EOFError(msg)


def _count_unpacked(stored: _Stored) -> int:
    """Unpack voxels, as far as their end and checksum, without keeping them."""
    unpacker = zlib.decompressobj(_ANY_DEFLATE)
    unpacked, left = 0, stored.size
    with stored.file.open("rb") as file:
        file.seek(stored.begin)
        while not unpacker.eof:
            block = file.read(min(_BLOCK_BYTES, left))
            if not block:
                msg = f"its compressed voxels end early, after {unpacked} bytes"
                raise EOFError(msg)
            left -= len(block)
            unpacked += len(unpacker.decompress(block))
    return unpacked


def find_gzip_end(path: Path) -> int | None:
    """Return the byte where the whole gzip members of a file end; None if there is none, or nothing is after them."""
    end = None
    with path.open("rb") as file:
        while (member := _skip_member(file)) is not None:
            end = member
        return end if end is not None and end < path.stat().st_size else None


def _skip_member(file: IO[bytes]) -> int | None:
    """Read a gzip member and return where it ends; None if what is there is not a whole one."""
    unpacker = zlib.decompressobj(_GZIP)
    while not unpacker.eof:
        block = file.read(_BLOCK_BYTES)
        if not block:
            return None
        try:
            unpacker.decompress(block)
        except zlib.error:
            return None
    return file.seek(file.tell() - len(unpacker.unused_data))


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_HEADER)
    except OSError as error:
        raise unreadable(path, error) from error


def _find_voxels(path: Path) -> _Stored | None:
    """Return where the voxels are; None where that cannot be said simply."""
    start = _read_start(path)
    return _find_nrrd(path, start) if start.startswith(_NRRD_MAGIC) else _find_meta(path, start)


def _find_nrrd(path: Path, start: bytes) -> _Stored | None:
    end = _NRRD_END.search(start)
    fields = _fields(start[: end.start() if end else None], b":")
    encoding = fields.get(b"encoding", b"").lower()
    if encoding not in {b"raw", b"gz", b"gzip"} or {b"lineskip", b"byteskip"} & fields.keys():
        return None
    return _stored(path, fields.get(b"datafile", b"LOCAL"), end.end() if end else len(start), packed=encoding != b"raw")


def _find_meta(path: Path, start: bytes) -> _Stored | None:
    end = _META_END.search(start)
    if end is None:
        return None
    fields = _fields(start[: end.end()], b"=")
    if fields.get(b"binarydata", b"False")[:1] not in b"Tt1" or b"headersize" in fields:
        return None
    packed = fields.get(b"compresseddata", b"False")[:1] in b"Tt1"
    stored = _stored(path, fields[b"elementdatafile"], end.end(), packed=packed)
    size = fields.get(b"compresseddatasize", b"")
    if stored is None or not packed or not size.isdigit() or int(size) == 0:
        return stored
    return _Stored(stored.file, stored.begin, min(stored.size, int(size)), packed)


def _fields(header: bytes, separator: bytes) -> dict[bytes, bytes]:
    """Return a header's fields; names in small letters, without spaces."""
    pairs = (line.partition(separator) for line in header.splitlines())
    return {name.replace(b" ", b"").lower(): value.strip() for name, _, value in pairs}


def _stored(path: Path, named: bytes, end: int, *, packed: bool) -> _Stored | None:
    """Return where voxels are that a header puts behind itself (`LOCAL`) or into a file."""
    if named.upper() == b"LOCAL":
        file, begin = path, end
    else:
        file, begin = path.parent / named.decode("utf-8", "surrogateescape"), 0
    if not file.is_file():  # a list or a pattern of several, or missing, which SimpleITK tells
        return None
    return _Stored(file, begin, max(0, file.stat().st_size - begin), packed)


def _damaged(path: Path, reason: str) -> KitsattnError:
    return KitsattnError(f"{path} is truncated or damaged ({reason}): copy or download it again")
