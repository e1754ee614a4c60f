"""The voxels of DICOM images as they are stored: numpy takes them where they are plain, else they are decoded."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.volume.archive import READ_ERRORS
from kitsattn.volume.dicom.decoder import Decoder
from kitsattn.volume.dicom.headers import NATIVE_SYNTAXES, Image

_PIXEL_DATA = (0x7FE0, 0x0010)
_UNDEFINED_LENGTH = 0xFFFFFFFF
_BITS = (8, 16, 32)
_SPARE_BYTES = 1 << 20
"""How much more than twice the plain voxels the compressed ones may take."""


def check_format(image: Image, path: Path) -> None:
    """Refuse an image whose pixel format is no CT's, or that is too short for the voxels that it announces.

    Raises:
        KitsattnError: If the image cannot be read as CT.
    """
    where = f"{image.member.name} in {path}"
    if image.samples != 1 or not image.photometric.startswith("MONOCHROME"):
        msg = (
            f"{where} is a colour picture ({image.photometric or 'unnamed'}): a CT slice holds one real number a voxel"
        )
        raise KitsattnError(msg)
    fits = 0 < image.bits_stored <= image.high_bit + 1 <= image.bits_allocated
    if image.bits_allocated not in _BITS or not fits:
        msg = (
            f"{where} stores bits up to {image.high_bit} of {image.bits_allocated}, {image.bits_stored} of them used: "
            "8, 16 or 32 bits a voxel are read, so export it again"
        )
        raise KitsattnError(msg)
    needed = image.pixels_at + image.frame_bytes * len(image.frames)
    if image.syntax in NATIVE_SYNTAXES and image.member.size < needed:
        raise _damaged(where, f"{image.member.size} of {needed} bytes")


def read_stored(
    image: Image, frames: Sequence[int], decoder: Decoder, path: Path
) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
    """Read slices of one file, without slope and intercept.

    Args:
        image: Of a format that `check_format` lets pass.
        frames: Which of its frames to read, from 0.
        decoder: Decodes them if they are compressed.
        path: The folder or archive; named in errors.

    Yields:
        The slices, (rows, columns), integers; and of each which voxels are padding, None where the header states no
        padding.

    Raises:
        KitsattnError: If the file is truncated or damaged, or compressed in a way that is not read.
    """
    where = f"{image.member.name} in {path}"
    try:
        with image.member.open() as file:
            file.seek(image.pixels_at)
            length = _element_length(file, image)
            if image.syntax in NATIVE_SYNTAXES:
                yield from _read_native(file, length, image, frames)
            else:
                encoded = _read_encoded(file, length, image)
                for frame in frames:
                    decoded = _decode(encoded[frame], decoder, image, where)
                    yield decoded, _find_padding(decoded, decoded, image)
    except READ_ERRORS as error:
        raise _damaged(where, "its voxels end early or are scrambled") from error


def _element_length(file: IO[bytes], image: Image) -> int:
    """Read the start of the element of the voxels; the file is left where they begin."""
    order = ">" if image.big_endian else "<"
    size = 8 if image.implicit else 12
    start = file.read(size)
    if len(start) < size or struct.unpack(f"{order}HH", start[:4]) != _PIXEL_DATA:
        msg = "no voxels"
        raise EOFError(msg)
    (length,) = struct.unpack(f"{order}I", start[-4:])
    return int(length)


def _read_native(
    file: IO[bytes], length: int, image: Image, frames: Sequence[int]
) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
    needed = image.frame_bytes * len(image.frames)
    if length not in {needed, needed + needed % 2}:  # values are padded to an even number of bytes
        msg = f"{length} bytes of voxels where {needed} are stated"
        raise EOFError(msg)
    kind = "i" if image.signed else "u"
    stored = np.dtype(f"{'>' if image.big_endian else '<'}{kind}{image.bits_allocated // 8}")
    begin = file.tell()
    for frame in frames:
        file.seek(begin + frame * image.frame_bytes)
        words = np.frombuffer(file.read(image.frame_bytes), stored).reshape(image.rows, image.columns)
        words = words.astype(stored.newbyteorder("="), copy=False)
        values = _used_bits(words, image)
        yield values, _find_padding(words, values, image)
    file.read(_SPARE_BYTES)  # to the end of a member of an archive, where its checksum is compared


def _used_bits(values: NDArray[Any], image: Image) -> NDArray[Any]:
    """Clear the bits around the value, where old files keep overlays, and spread its sign."""
    if image.bits_stored == image.bits_allocated:
        return values
    above = image.bits_allocated - 1 - image.high_bit
    used: NDArray[Any] = np.right_shift(np.left_shift(values, above), image.bits_allocated - image.bits_stored)
    return used


def _find_padding(words: NDArray[Any], values: NDArray[Any], image: Image) -> NDArray[np.bool_] | None:
    """Return which voxels are padding, PixelPaddingValue (0028,0120) up to PixelPaddingRangeLimit (0028,0121).

    A padding that the stored bits cannot hold, such as 63536 of 12 bits, takes all the bits of a voxel.
    """
    if image.padding is None:
        return None
    low, high = image.padding
    least = -(1 << (image.bits_stored - 1)) if image.signed else 0
    held = values if least <= low and high < least + (1 << image.bits_stored) else words
    return (held >= low) & (held <= high)


def _read_encoded(file: IO[bytes], length: int, image: Image) -> list[bytes]:
    from pydicom.encaps import generate_frames  # noqa: PLC0415 - who reads no DICOM need not wait for it

    if length != _UNDEFINED_LENGTH:
        raise EOFError
    encoded = file.read(2 * image.frame_bytes * len(image.frames) + _SPARE_BYTES)
    frames = list(generate_frames(encoded, number_of_frames=len(image.frames)))
    if len(frames) != len(image.frames):
        raise EOFError
    return frames


def _decode(encoded: bytes, decoder: Decoder, image: Image, where: str) -> NDArray[Any]:
    try:
        return decoder.decode(encoded, image)
    except ValueError as error:
        msg = (
            f"{where} is damaged, or compressed in a way that is not read (transfer syntax {image.syntax}): "
            "copy it again, or decompress the series, with gdcmconv --raw say"
        )
        raise KitsattnError(msg) from error


def _damaged(where: str, reason: str) -> KitsattnError:
    return KitsattnError(f"{where} is truncated or damaged ({reason}): copy or download it again")
