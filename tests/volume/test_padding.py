"""Padding becomes air, in every format; tissue and metal stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kitsattn.volume.dicom.series import read_dicom
from kitsattn.volume.formats import from_image, read_scan
from kitsattn.volume.padding import AIR_HU

WriteSlice = Callable[..., Path]
SIZE = 16
OUTSIDE = np.hypot(*(np.indices((SIZE, SIZE)) - (SIZE - 1) / 2)) > SIZE / 2
"""The corners around the circle of the image."""

PADDING, LIMIT = 0x00280120, 0x00280121


def write_words(write: WriteSlice, folder: Path, words: NDArray[Any], raw: dict[int, Any], **changes: Any) -> Path:
    """Write stored words, (slice, row, column), as a series."""
    changes = {"BitsAllocated": 8 * words.itemsize, "PixelRepresentation": int(words.dtype.kind == "i"), **changes}
    for number, one in enumerate(words):
        name = folder / f"IM{number}"
        write(name, np.zeros(one.shape), 5.0 * number, raw=raw, PixelData=one.tobytes(), **changes)
    return folder


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stored=st.sampled_from([(16, 16), (16, 12), (16, 13), (16, 10), (32, 32), (32, 20), (8, 8)]),
    signed=st.booleans(),
    value=st.integers(-(1 << 15), (1 << 16) - 1),
    reach=st.one_of(st.none(), st.integers(-60, 60)),
    kind=st.sampled_from(["US", "SS"]),
    slope=st.sampled_from([1, 2, 0.5]),
    seed=st.integers(0, 100),
)
@example(stored=(16, 16), signed=False, value=63536, reach=None, kind="US", slope=1, seed=0)
@example(stored=(16, 16), signed=False, value=-2000, reach=None, kind="SS", slope=1, seed=0)
@example(stored=(16, 12), signed=False, value=63536, reach=None, kind="US", slope=1, seed=0)
@example(stored=(16, 12), signed=True, value=-32768, reach=None, kind="SS", slope=1, seed=0)
@example(stored=(16, 12), signed=True, value=-2048, reach=40, kind="SS", slope=1, seed=0)
@example(stored=(16, 12), signed=False, value=0, reach=None, kind="US", slope=1, seed=0)
@example(stored=(16, 16), signed=True, value=100, reach=None, kind="US", slope=1, seed=0)
def test_stated_padding_is_air_and_the_image_stays(write_slice: WriteSlice, tmp_path: Path, **drawn: Any) -> None:
    """Whatever the pixel format and the representation of the value: around the circle is air, within are its HU."""
    (allocated, bits), signed, slope = drawn["stored"], drawn["signed"], drawn["slope"]
    word = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    least = -(1 << (bits - 1)) if signed else 0
    end = least + (1 << bits)
    pattern = drawn["value"] % (1 << 16)
    value = pattern - (1 << 16) if signed and pattern >= 1 << 15 else pattern
    limit = value + (drawn["reach"] or 0)
    low, high = min(value, limit), max(value, limit)
    assume((least <= low and high < end) or (low == high and np.iinfo(word).min <= low <= np.iinfo(word).max))
    assume(-(1 << 15) <= limit < 1 << 15 if signed else limit < 1 << 16)
    rng = np.random.default_rng(drawn["seed"])
    image = rng.integers(max(least, -1000), min(end, 3000), (3, SIZE, SIZE))
    # Within the image no voxel has the value of padding.
    image = np.where((image >= low) & (image <= high), high + 1 if high + 1 < end else low - 1, image)
    words = np.where(OUTSIDE, rng.integers(low, high + 1, image.shape), image).astype(word)
    intercept = 0 if signed else -1000
    raw = {PADDING: (drawn["kind"], pattern.to_bytes(2, "little"))}
    if drawn["reach"] is not None:
        raw[LIMIT] = (drawn["kind"], (limit % (1 << 16)).to_bytes(2, "little"))
    changes = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": slope, "RescaleIntercept": intercept}

    array = read_dicom(write_words(write_slice, tmp_path, words, raw, **changes)).array

    assert np.all(array[:, OUTSIDE] == AIR_HU)
    assert np.allclose(array[:, ~OUTSIDE], (image * slope + intercept)[:, ~OUTSIDE])


def test_tissue_with_the_value_of_padding_stays(write_slice: WriteSlice, tmp_path: Path) -> None:
    """A padding of 0 HU is water too: only what reaches the edge of the slice is air."""
    words = np.full((3, SIZE, SIZE), 40, np.int16)
    words[:, OUTSIDE] = 0
    words[:, 6:10, 6:10] = 0
    raw = {PADDING: ("SS", b"\0\0")}

    array = read_dicom(write_words(write_slice, tmp_path, words, raw, RescaleIntercept=0)).array

    assert np.all(array[:, OUTSIDE] == AIR_HU)
    assert np.all(array[:, 6:10, 6:10] == 0)
    assert np.all(array[:, ~OUTSIDE] >= 0)


def test_values_that_nothing_states_to_be_padding_stay(write_slice: WriteSlice, tmp_path: Path) -> None:
    """A limit without a value states nothing."""
    words = np.where(OUTSIDE, 24, np.full((3, SIZE, SIZE), 1064)).astype(np.uint16)

    array = read_dicom(write_words(write_slice, tmp_path, words, {LIMIT: ("US", b"\x18\0")})).array

    assert np.all(array[:, OUTSIDE] == -1000)


def write_scan(folder: Path, kind: str, array: NDArray[Any]) -> Path:
    """Write a scan, (x, y, z), as NIfTI or in another format."""
    path = folder / f"scan.{kind}"
    if kind.startswith("nii"):
        nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2.0, 5.0, 1.0])), path)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T)), path)
    return path


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["nii", "nrrd", "mha"]),
    dtype=st.sampled_from(["int16", "int32", "float32", "float64"]),
    value=st.one_of(st.sampled_from([-1500, -2000, -2048, -3024, -32768, 62512, 64511]), st.integers(-(10**6), -1500)),
    metal=st.sampled_from([3000, 3071, 30000, 32767]),
)
@example(kind="nii", dtype="float32", value=-(10**30), metal=40000)
def test_padding_of_a_file_is_air_and_metal_stays(
    tmp_path: Path, kind: str, dtype: str, value: int, metal: int
) -> None:
    """Far below air, and above all HU in all corners; noise of air and metal are values of the image."""
    assume(not dtype.startswith("int") or np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
    array = np.random.default_rng(0).integers(-1200, 1500, (SIZE, SIZE, 3)).astype(dtype)
    array[6:8, 6:8, 1] = metal
    whole = array.copy()
    array[OUTSIDE] = value

    scan = read_scan(write_scan(tmp_path, kind, array))

    inside = np.broadcast_to(~OUTSIDE, scan.array.shape)
    assert np.all(scan.array[~inside] == AIR_HU)
    assert np.array_equal(np.sort(scan.array[inside]), np.sort(whole[~OUTSIDE].ravel()))
    assert any(f"{value:g} HU" in note for note in scan.notes) == (value > 0)


def test_metal_in_a_corner_is_no_padding(tmp_path: Path) -> None:
    """Above all HU is padding in all corners alone."""
    array = np.full((SIZE, SIZE, 3), 40, np.int32)
    array[0], array[-1, :, 1:] = 40000, 40000

    assert np.count_nonzero(read_scan(write_scan(tmp_path, "nii", array)).array == 40000) == np.sum(array == 40000)


@pytest.mark.parametrize("library", ["nibabel", "SimpleITK"])
def test_images_in_memory_keep_their_padding(library: str) -> None:
    """The volume has air, the image that it was made from is left as it was."""
    array = np.where(OUTSIDE[..., None], -3024, np.full((SIZE, SIZE, 3), 40)).astype(np.int16)
    image = nib.Nifti1Image(array, np.eye(4)) if library == "nibabel" else SimpleITK.GetImageFromArray(array.T)

    scan = from_image(image)

    assert set(np.unique(scan.array)) == {AIR_HU, 40}
    kept = SimpleITK.GetArrayFromImage(image) if isinstance(image, SimpleITK.Image) else np.asanyarray(image.dataobj)
    assert kept.min() == -3024
