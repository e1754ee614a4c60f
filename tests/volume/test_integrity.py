import random
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from kitsattn.errors import KitsattnError
from kitsattn.volume.formats import read_grid, read_scan
from kitsattn.volume.integrity import check_header

ARRAY = np.random.default_rng(0).integers(-1000, 1000, (5, 20, 24)).astype(np.int16)


def make_scan(path: Path, *, packed: bool = True) -> bytes:
    """Write a scan and return the bytes of the file."""
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ARRAY), path, useCompression=packed)
    return path.read_bytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_whole_files_are_read(tmp_path: Path, suffix: str, packed: bool) -> None:  # noqa: FBT001
    """Compressed or not, with voxels behind the header or in a file of their own."""
    make_scan(tmp_path / f"scan{suffix}", packed=packed)

    assert np.array_equal(read_scan(tmp_path / f"scan{suffix}").array, ARRAY)


@pytest.mark.parametrize("stored", ["scan.nrrd", "scan.raw.gz", "scan.mha", "scan.zraw"])
def test_one_changed_bit_of_compressed_voxels_is_refused(tmp_path: Path, stored: str) -> None:
    """Anywhere in them, their checksum included: SimpleITK would return other values."""
    name = {"scan.raw.gz": "scan.nhdr", "scan.zraw": "scan.mhd"}.get(stored, stored)
    make_scan(tmp_path / name)
    content = (tmp_path / stored).read_bytes()
    ends = {"scan.nrrd": b"\n\n", "scan.mha": b"LOCAL\n"}
    begin = content.index(ends[stored]) + len(ends[stored]) if stored in ends else 0
    header = 10 if stored in {"scan.nrrd", "scan.raw.gz"} else 2  # what gzip says of time and system may be anything
    for seed in range(20):
        changed = bytearray(content)
        changed[random.Random(seed).randrange(begin + header, len(content))] ^= 1 << seed % 8  # noqa: S311 - to be repeated
        (tmp_path / stored).write_bytes(changed)
        with pytest.raises(KitsattnError, match=rf"{name} is truncated or damaged \(.*\): copy or download it again"):
            read_scan(tmp_path / name)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_cut_file_is_refused(tmp_path: Path, suffix: str, packed: bool) -> None:  # noqa: FBT001
    """Its last byte is missed."""
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(make_scan(path, packed=packed)[:-1])

    with pytest.raises(KitsattnError, match="is truncated or damaged"):
        read_scan(path)


def test_a_compressed_size_that_is_too_small_is_refused(tmp_path: Path) -> None:
    """SimpleITK reads no further than a MetaImage says, and fills the rest with anything."""
    content = make_scan(tmp_path / "scan.mha")
    (tmp_path / "scan.mha").write_bytes(re.sub(rb"(CompressedDataSize = )\d+", rb"\g<1>1000", content))

    with pytest.raises(KitsattnError, match="its compressed voxels end early"):
        read_scan(tmp_path / "scan.mha")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("suffix", "size"), [(".nrrd", b"sizes: 24 20 5"), (".mha", b"DimSize = 24 20 5")])
def test_an_announced_size_is_checked_before_memory_is_asked_for(
    tmp_path: Path,
    suffix: str,
    size: bytes,
    packed: bool,  # noqa: FBT001
) -> None:
    """Of 49 GB for a file of a few thousand bytes."""
    path = tmp_path / f"scan{suffix}"
    content = make_scan(path, packed=packed)
    path.write_bytes(content.replace(size, size.replace(b"24 20 5", b"2900 2900 2900")))

    with pytest.raises(KitsattnError, match=r"its header announces 48778000000 bytes of voxels, and it holds"):
        read_scan(path)


def test_voxels_in_several_files_are_compared_with_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sizes are not known, but what is free is."""
    content = make_scan(tmp_path / "scan.mhd", packed=False).replace(b"scan.raw", b"%03d.raw 1 5 1")
    (tmp_path / "scan.mhd").write_bytes(content)
    for number, plane in enumerate(ARRAY, 1):
        (tmp_path / f"{number:03}.raw").write_bytes(plane.tobytes())
    assert np.array_equal(read_scan(tmp_path / "scan.mhd").array, ARRAY)

    monkeypatch.setattr("kitsattn.volume.integrity.available_memory", lambda: 1000)
    with pytest.raises(KitsattnError, match=r"scan\.mhd announces 0\.0 GiB of voxels, and 0\.0 GiB of memory are free"):
        read_scan(tmp_path / "scan.mhd")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_header_that_runs_into_the_voxels_is_refused(tmp_path: Path, suffix: str) -> None:
    """Its end is lost: SimpleITK's reader of NRRD, which looks for fields in the voxels then, can end the process."""
    path = tmp_path / f"scan{suffix}"
    content = make_scan(path, packed=False)
    path.write_bytes(re.sub(rb"(sizes: 24|DimSize = 24)[^\0]*(\n\n|LOCAL\n)", rb"\1", content, count=1))

    with pytest.raises(KitsattnError, match=r"is truncated or damaged \(its header is not text\)"):
        check_header(path)
    for read in (read_scan, read_grid):
        with pytest.raises(KitsattnError, match="its header is not text"):
            read(path)


@pytest.mark.parametrize("axes", [b"255", b"-1", b"0", b"9223372036854775807", b"1e30", b"nan"])
def test_a_number_of_axes_that_would_end_the_process_is_refused(tmp_path: Path, axes: bytes) -> None:
    """SimpleITK's reader of MetaImage writes beyond its memory for them."""
    path = tmp_path / "scan.mha"
    path.write_bytes(make_scan(path).replace(b"NDims = 3", b"NDims = " + axes))

    with pytest.raises(KitsattnError, match=f"its header states '{axes.decode()}' axes"):
        check_header(path)
    for read in (read_scan, read_grid):
        with pytest.raises(KitsattnError, match="is truncated or damaged"):
            read(path)
