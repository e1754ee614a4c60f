import gzip
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import nibabel as nib
import numpy as np
import pytest

from kitsattn.errors import KitsattnError
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import read_grid, read_labels, read_scan, write_labels, write_nifti
from kitsattn.volume.volume import Volume

SPACING_MM = (5.0, 0.7, 0.9)
ORIGIN_MM = (-40.0, 12.5, -3.0)


def make_volume(dtype: Any = np.int16) -> Volume:
    """Return 2 x 3 x 4 voxels of rising values on an anisotropic grid."""
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype)
    return Volume(array, Geometry.axial(array.shape, SPACING_MM, ORIGIN_MM))


def make_image(array: np.ndarray, affine: np.ndarray | None = None) -> nib.Nifti1Image:
    """Return an image in memory; without an affine its axes run to Left, Posterior and Superior."""
    image = nib.Nifti1Image(array, np.diag([-0.9, -0.7, 5.0, 1.0]) if affine is None else affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    return image


def raw_header(path: Path) -> nib.Nifti1Header:
    """Return a header as it lies in the file, which nibabel.load changes."""
    with gzip.open(path) as stream:
        header: nib.Nifti1Header = nib.Nifti1Header.from_fileobj(stream, check=False)
    return header


@pytest.mark.parametrize("axes", ["RAS", "LPS", "IPL", "SAR", "PIR"])
def test_layouts_of_the_file_make_no_difference(tmp_path: Path, axes: str) -> None:
    """KiTS19's slice-first (I, P, L) files and files in any other order read as the same array in the same place."""
    volume = make_volume()
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, volume, axes=axes)

    found = read_scan(path)

    assert "".join(nib.aff2axcodes(nib.Nifti1Image.from_filename(path).affine)) == axes
    assert np.array_equal(found.array, volume.array)
    assert found.array.flags.c_contiguous
    assert found.geometry.difference(volume.geometry, tolerance_voxels=1e-4) is None
    assert found.notes == ()


def test_first_voxel_of_a_kits_file_is_the_top_slice(tmp_path: Path) -> None:
    """In a file of axes (I, P, L) index (0, 0, 0) is the topmost slice, which is the last along z."""
    stored = np.zeros((3, 2, 2), np.uint8)
    stored[0, 0, 1] = 2
    affine = np.array([[0, 0, -0.8, 0], [0, -0.8, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
    nib.save(make_image(stored, affine), tmp_path / "labels.nii.gz")

    labels = read_labels(tmp_path / "labels.nii.gz")

    assert np.argwhere(labels.array).tolist() == [[2, 0, 1]]
    assert labels.geometry.spacing_mm == pytest.approx((3.0, 0.8, 0.8))
    assert labels.geometry.origin_mm == pytest.approx((-6.0, 0.0, 0.0))


def test_new_files_carry_both_forms_and_millimetres(tmp_path: Path) -> None:
    """A new file states its place in sform and qform, its unit, and where it comes from."""
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, make_volume(), axes="IPL", note="a synthetic phantom")

    header = nib.Nifti1Image.from_filename(path).header

    assert np.allclose(header.get_sform(coded=True)[0], header.get_qform(coded=True)[0], atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"
    assert [extension.get_content() for extension in header.extensions] == [b"a synthetic phantom"]


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "dtype"),
    [
        (np.int16, 1, 0, np.int16),
        (np.int32, 1, 0, np.int16),
        (np.uint16, 1, -1024, np.int16),
        (np.int16, 2, -1, np.int16),
        (np.int16, 0.5, 0, np.float32),
        (np.float64, 1, 0, np.float32),
    ],
)
def test_scan_dtype_loses_nothing(tmp_path: Path, stored: Any, slope: float, intercept: float, dtype: Any) -> None:
    """Whole numbers that fit are int16, with their slope and intercept applied; anything else is float32."""
    values = np.arange(24).reshape(2, 3, 4).astype(stored)
    image = make_image(values)
    path = tmp_path / "scan.nii"
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(raw)

    array = read_scan(path).array

    assert array.dtype == dtype
    assert np.array_equal(array, values.T.astype(np.float64) * slope + intercept)


def test_values_beyond_int16_become_float32(tmp_path: Path) -> None:
    """A stored value of 40000 does not fit int16 and is not wrapped around."""
    nib.save(make_image(np.full((2, 2, 2), 40000, np.uint16)), tmp_path / "scan.nii")

    array = read_scan(tmp_path / "scan.nii").array

    assert array.dtype == np.float32
    assert array.max() == 40000


def test_big_endian_files_read_in_native_order(tmp_path: Path) -> None:
    """A file of a big-endian machine reads as native numbers."""
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    values = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0]), header), tmp_path / "scan.nii")

    array = read_scan(tmp_path / "scan.nii").array

    assert array.dtype == np.dtype(np.int16)
    assert np.array_equal(array, values.T)


def test_nifti_2_is_read_and_written_back_as_nifti_2(tmp_path: Path) -> None:
    """A label map for a NIfTI-2 scan is a NIfTI-2 file."""
    nib.save(nib.Nifti2Image(np.zeros((4, 3, 2), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")

    write_labels(tmp_path / "labels.nii.gz", scan.with_array(scan.array.astype(np.uint8)))

    assert isinstance(nib.load(tmp_path / "labels.nii.gz"), nib.Nifti2Image)


def test_units_of_the_file_are_heeded(tmp_path: Path) -> None:
    """A spacing of 700 micrometres is 0.7 mm."""
    image = make_image(np.zeros((4, 3, 2), np.int16), np.diag([-700.0, -700.0, 5000.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "scan.nii.gz")

    assert read_scan(tmp_path / "scan.nii.gz").geometry.spacing_mm == pytest.approx((5.0, 0.7, 0.7))


def test_sform_counts_where_the_forms_disagree(tmp_path: Path) -> None:
    """Where sform and qform put voxels 10 mm, 2 voxels, apart the sform is used, and the note says so."""
    image = make_image(np.zeros((4, 3, 2), np.int16))
    sform = image.affine.copy()
    sform[2, 3] += 10
    image.set_qform(image.affine, code=1)
    image.set_sform(sform, code=1)
    nib.save(image, tmp_path / "scan.nii.gz")

    scan = read_scan(tmp_path / "scan.nii.gz")

    assert scan.geometry.origin_mm[0] == pytest.approx(10.0)
    assert scan.notes == ("The sform and qform are up to 2 voxels apart; the sform was used.",)


def test_qform_counts_where_the_sform_is_not_set(tmp_path: Path) -> None:
    """A file whose sform has code 0 is placed by its qform."""
    image = make_image(np.zeros((4, 3, 2), np.int16))
    image.set_qform(np.diag([-0.9, -0.7, 5.0, 1.0]) + np.eye(4, k=3) * 8, code=1)
    image.set_sform(None)
    nib.save(image, tmp_path / "scan.nii.gz")

    scan = read_scan(tmp_path / "scan.nii.gz")

    assert scan.geometry.origin_mm == pytest.approx((0.0, 0.0, -8.0))
    assert scan.notes == ()


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_qform_counts_where_the_sform_is_singular(tmp_path: Path, value: float) -> None:
    """A file whose sform is marked as set but empty is placed by its qform, and so is the label map of that scan."""
    image = make_image(np.zeros((4, 3, 2), np.int16))
    image.set_qform(image.affine, code=1)
    image.header["srow_x"] = image.header["srow_y"] = 0
    image.header["srow_z"] = value
    image.header["sform_code"] = 1
    nib.Nifti1Image(image.dataobj, None, image.header).to_filename(tmp_path / "scan.nii.gz")

    scan = read_scan(tmp_path / "scan.nii.gz")
    write_labels(tmp_path / "labels.nii.gz", scan.with_array(np.zeros((2, 3, 4), np.uint8)))

    assert scan.notes == ("The sform's matrix is singular; the qform was used.",)
    np.testing.assert_allclose(nib.Nifti1Image.from_filename(tmp_path / "labels.nii.gz").affine, image.get_qform())


def test_missing_orientation_is_reported(tmp_path: Path) -> None:
    """A file without sform and qform is read as (L, A, S), and the note says so."""
    image = nib.Nifti1Image(np.zeros((4, 3, 2), np.int16), None)
    image.to_filename(tmp_path / "scan.nii.gz")

    scan = read_scan(tmp_path / "scan.nii.gz")

    assert scan.source is not None
    assert scan.source.flipped == (False, True, False)
    assert "states no orientation" in scan.notes[0]


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 1), (4, 3, 2, 1, 1)])
def test_label_map_lies_on_the_very_grid_of_its_scan(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Shape with trailing axes, both forms with their codes, and units of the output are the input's."""
    image = make_image(np.arange(24, dtype=np.int16).reshape(shape), np.diag([700.0, -900.0, 5000.0, 1.0]))
    image.set_sform(image.affine + np.eye(4, k=3) * 3, code=4)
    image.set_qform(image.affine, code=2)
    image.header.set_xyzt_units("micron", "sec")
    image.header["cal_max"] = 300
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of a patient"))
    nib.save(image, tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")

    write_labels(
        tmp_path / "labels.nii.gz", scan.with_array((scan.array % 3).astype(np.uint8)), note='{"made_by": "a test"}'
    )

    before, after = raw_header(tmp_path / "scan.nii.gz"), raw_header(tmp_path / "labels.nii.gz")
    same = ["dim", "pixdim", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"]
    same += ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
    for field in same:
        assert np.array_equal(before[field], after[field]), field
    assert after.get_data_dtype() == np.uint8
    assert (after["scl_slope"], after["scl_inter"], after["cal_max"]) == (1, 0, 0)
    assert after["descrip"].item().startswith(b"kitsattn")
    assert [extension.get_content() for extension in after.extensions] == [b'{"made_by": "a test"}']
    assert np.array_equal(
        np.asanyarray(nib.Nifti1Image.from_filename(tmp_path / "labels.nii.gz").dataobj),
        np.arange(24).reshape(shape) % 3,
    )


def test_classes_are_named_in_a_label_table(tmp_path: Path) -> None:
    """The first extension, where TotalSegmentator's reader looks; any name is one, the note follows."""
    classes = {"background": 0, "tumour": 2, "kidney": 1, "<a & b>": 7}

    write_labels(tmp_path / "labels.nii.gz", make_volume(np.uint8), classes=classes, note="made by a test")

    table, note = raw_header(tmp_path / "labels.nii.gz").extensions
    assert (table.get_code(), note.get_code()) == (0, 6)
    entries = ET.fromstring(table.get_content()).findall("VolumeInformation/LabelTable/Label")  # noqa: S314
    assert [(entry.get("Key"), entry.text) for entry in entries] == [("1", "kidney"), ("2", "tumour"), ("7", "<a & b>")]
    assert [entries[0].get(part) for part in ("Red", "Green", "Blue")] == ["0.337", "0.706", "0.914"]
    assert np.array_equal(read_labels(tmp_path / "labels.nii.gz").array, make_volume(np.uint8).array)


def test_labels_written_without_a_source_lie_where_their_geometry_says(tmp_path: Path) -> None:
    """A label map made in memory gets a file of its own layout, in the same place."""
    labels = make_volume(np.uint8)
    write_labels(tmp_path / "labels.nii.gz", labels)

    found = read_labels(tmp_path / "labels.nii.gz")

    assert np.array_equal(found.array, labels.array)
    assert found.geometry.difference(labels.geometry) is None


def test_existing_label_map_is_kept_unless_told(tmp_path: Path) -> None:
    """Writing over a file needs `overwrite`."""
    path = tmp_path / "labels.nii.gz"
    write_labels(path, make_volume(np.uint8))
    before = path.read_bytes()

    with pytest.raises(KitsattnError, match="exists already"):
        write_labels(path, make_volume(np.uint8))

    assert path.read_bytes() == before
    write_labels(path, make_volume(np.uint8), note="again", overwrite=True)
    assert path.read_bytes() != before


def test_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    """No time and no temporary name gets into a compressed file."""
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, make_volume())

    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_suffix_must_be_nifti(tmp_path: Path) -> None:
    """A NIfTI file is not written under another suffix."""
    with pytest.raises(KitsattnError, match=r"name it \.nii\.gz or \.nii"):
        write_nifti(tmp_path / "scan.img", make_volume())


def truncate(path: Path, kept: float) -> None:
    """Keep only the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])


@pytest.mark.parametrize("read", [read_scan, read_labels])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9999])
def test_truncated_gzip_is_refused(tmp_path: Path, read: Any, kept: float) -> None:
    """A download that broke off is found out, in the header, in the voxels and in the checksum at the very end."""
    path = tmp_path / "scan.nii.gz"
    noise = np.random.default_rng(1).integers(0, 200, (30, 40, 50), np.uint8)
    nib.save(make_image(noise), path)
    truncate(path, kept)

    with pytest.raises(KitsattnError, match=r"scan\.nii\.gz is truncated or damaged .* copy or download it again"):
        read(path)


@pytest.mark.parametrize("read", [read_scan, read_grid])
@pytest.mark.parametrize("after", [b"<html>not found</html>", b"\x1f\x8b and no more", b"x"])
def test_bytes_after_the_compressed_voxels_are_reported_and_ignored(tmp_path: Path, read: Any, after: bytes) -> None:
    """What a server or a disk adds behind a gzip member is no damage, also where it begins as gzip does."""
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, make_volume())
    sound = read(path)
    path.write_bytes(path.read_bytes() + after)

    found = read(path)

    if read is read_grid:
        assert found[0] == sound[0]
    else:
        assert np.array_equal(found.array, sound.array)
        assert found.notes == (
            f"{len(after)} byte{'s' if len(after) > 1 else ''} after the compressed data were ignored.",
        )


def test_members_of_gzip_are_one_file(tmp_path: Path) -> None:
    """As bgzip and pigz write them; bytes after the last one are ignored, a member that is cut off is damage."""
    write_nifti(tmp_path / "whole.nii", make_volume())
    content = (tmp_path / "whole.nii").read_bytes()
    first, second = gzip.compress(content[:360], mtime=0), gzip.compress(content[360:], mtime=0)
    path = tmp_path / "scan.nii.gz"
    for packed in (first + second, first + second + bytes(512), first + second + b"after"):
        path.write_bytes(packed)
        assert np.array_equal(read_scan(path).array, make_volume().array)
    for packed in (first + second[:-9], first + b"after", first):
        path.write_bytes(packed)
        with pytest.raises(KitsattnError, match="truncated or damaged"):
            read_scan(path)


def test_flipped_bit_in_gzip_is_refused(tmp_path: Path) -> None:
    """A changed byte in the compressed voxels is found out by the checksum."""
    path = tmp_path / "scan.nii.gz"
    nib.save(make_image(np.random.default_rng(1).integers(0, 200, (30, 40, 50), np.uint8)), path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)

    with pytest.raises(KitsattnError, match="truncated or damaged"):
        read_labels(path)


def test_truncated_uncompressed_file_is_refused(tmp_path: Path) -> None:
    """A plain file that is too short says how much is there."""
    nib.save(make_image(np.zeros((10, 10, 10), np.int16)), tmp_path / "scan.nii")
    truncate(tmp_path / "scan.nii", 0.5)

    with pytest.raises(KitsattnError, match=r"its header announces 2000 bytes of voxels, and it holds 1176"):
        read_scan(tmp_path / "scan.nii")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x89PNG" + bytes(600), gzip.compress(b"no header"), bytes(600)],
    ids=["empty", "text", "picture", "gzip", "zeros"],  # the time in the gzip file would be part of its own
)
def test_other_files_are_no_nifti(tmp_path: Path, content: bytes) -> None:
    """Text, pictures and empty files are named as what they are not."""
    (tmp_path / "scan.nii.gz").write_bytes(content)

    with pytest.raises(KitsattnError, match=r"scan\.nii\.gz is not a NIfTI file"):
        read_scan(tmp_path / "scan.nii.gz")


def test_header_of_a_pair_is_no_scan(tmp_path: Path) -> None:
    """The header of an .hdr and .img pair holds no voxels."""
    (tmp_path / "scan.nii").write_bytes(nib.nifti1.Nifti1PairHeader().binaryblock + bytes(400))

    with pytest.raises(KitsattnError, match="is not a NIfTI file"):
        read_scan(tmp_path / "scan.nii")


def test_unknown_data_type_is_refused(tmp_path: Path) -> None:
    """A header with a data type that NIfTI does not know is one clear line."""
    nib.save(make_image(np.zeros((4, 3, 2), np.int16)), tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    raw[70:72] = np.array([999], "<i2").tobytes()
    (tmp_path / "scan.nii").write_bytes(raw)

    with pytest.raises(KitsattnError, match=r"NIfTI header that cannot be used .*999"):
        read_scan(tmp_path / "scan.nii")


def test_folder_is_no_file(tmp_path: Path) -> None:
    """A folder where a file should be is one clear line."""
    with pytest.raises(KitsattnError, match=r"cannot be read \(Is a directory\)"):
        read_scan(tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that is not there says so."""
    with pytest.raises(KitsattnError, match=r"scan\.nii does not exist"):
        read_scan(tmp_path / "scan.nii")


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3), (4, 3, 2, 1, 3)])
def test_other_numbers_of_axes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A time series or a single picture is no scan."""
    nib.save(make_image(np.zeros(shape, np.int16)), tmp_path / "scan.nii.gz")

    with pytest.raises(KitsattnError, match="a scan has three axes"):
        read_scan(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    """NaN and infinite voxels are counted and refused, in scans and in label maps."""
    array = np.zeros((4, 3, 2), np.float32)
    array[1, 1, 1] = value
    nib.save(make_image(array), tmp_path / "scan.nii.gz")

    for read in (read_scan, read_labels):
        with pytest.raises(KitsattnError, match=r"1 voxel that is (NaN|infinite)"):
            read(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("spacing", [0.0, np.nan, np.inf])
def test_impossible_spacing_is_refused(tmp_path: Path, spacing: float) -> None:
    """A spacing of zero or without an end is refused by its value."""
    nib.save(make_image(np.zeros((4, 3, 2), np.int16)), tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    raw[80:84] = np.array([spacing], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(raw)

    with pytest.raises(KitsattnError, match=rf"spacing of {spacing:g} x 0.7 x 5 mm"):
        read_scan(tmp_path / "scan.nii")


def test_sheared_affine_is_refused(tmp_path: Path) -> None:
    """A scan with an uncorrected gantry tilt is refused."""
    affine = np.diag([-0.9, -0.7, 5.0, 1.0])
    affine[1, 2] = 1.5
    nib.save(make_image(np.zeros((4, 3, 2), np.int16), affine), tmp_path / "scan.nii.gz")

    with pytest.raises(KitsattnError, match="sheared affine"):
        read_scan(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_complex_numbers_and_colours_are_refused(tmp_path: Path, dtype: Any) -> None:
    """A voxel must be one real number."""
    nib.save(make_image(np.zeros((4, 3, 2), dtype)), tmp_path / "scan.nii.gz")

    with pytest.raises(KitsattnError, match="one real number a voxel"):
        read_scan(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize(("value", "named"), [(1.5, "the value 1.5"), (-1.0, "from -1 to 0"), (256.0, "from 0 to 256")])
def test_label_map_holds_whole_numbers(tmp_path: Path, value: float, named: str) -> None:
    """Fractions, negative numbers and numbers above 255 are no labels."""
    array = np.zeros((4, 3, 2), np.float32)
    array[1, 1, 1] = value
    nib.save(make_image(array), tmp_path / "labels.nii.gz")

    with pytest.raises(KitsattnError, match=named):
        read_labels(tmp_path / "labels.nii.gz")


def test_label_map_stored_as_float_is_read(tmp_path: Path) -> None:
    """Whole numbers stored as float64 are labels."""
    array = np.arange(24, dtype=np.float64).reshape(4, 3, 2)
    nib.save(make_image(array), tmp_path / "labels.nii.gz")

    labels = read_labels(tmp_path / "labels.nii.gz").array

    assert labels.dtype == np.uint8
    assert np.array_equal(labels, array.T)


def test_real_scan_reads_the_same_in_four_layouts(tmp_path: Path, test_data: Path) -> None:
    """A real CT, re-oriented three ways by nibabel, gives one array and one place."""
    path = test_data / "totalsegmentator-example-ct.nii.gz"
    scan = read_scan(path)
    image = nib.Nifti1Image.from_filename(path)
    assert scan.array.dtype == np.int16

    for axes in ("IPL", "PIR", "LAS"):
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
        nib.save(image.as_reoriented(turn), tmp_path / f"{axes}.nii.gz")
        turned = read_scan(tmp_path / f"{axes}.nii.gz")
        assert np.array_equal(turned.array, scan.array)
        assert turned.geometry.difference(scan.geometry, tolerance_voxels=1e-4) is None


def write_header(path: Path, **fields: object) -> None:
    """Write a scan whose header has these fields as given, whatever they say."""
    image = make_image(np.zeros((4, 3, 2), np.int16))
    content = bytearray(image.to_bytes())
    header = image.header.copy()
    for name, value in fields.items():
        header[name] = value
    content[: header.sizeof_hdr] = header.binaryblock
    path.write_bytes(content)


@pytest.mark.parametrize("read", [read_scan, read_grid])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim": [3, -4, 3, 2, 1, 1, 1, 1]}, r"has the shape \(-4, 3, 2\)"),
        ({"quatern_b": 1.5, "qform_code": 1, "sform_code": 0}, "its qform is not a rotation"),
        ({"vox_offset": np.nan}, "its voxels begin at byte nan"),
        ({"vox_offset": 1e12}, "its voxels begin at byte 1e\\+12"),
    ],
)
def test_impossible_headers_are_one_line(tmp_path: Path, read: Any, fields: dict[str, object], reason: str) -> None:
    """Single fields that no writer makes, but damage does."""
    write_header(tmp_path / "scan.nii", **fields)

    if read is read_grid and "vox_offset" in fields:
        read(tmp_path / "scan.nii")  # where voxels begin does not matter yet
        return
    with pytest.raises(KitsattnError, match=rf"scan\.nii .*{reason}"):
        read(tmp_path / "scan.nii")


def test_voxels_that_begin_at_0_follow_the_header(tmp_path: Path) -> None:
    """As NIfTI's definition has it; nibabel and SimpleITK take the header for voxels."""
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    image = make_image(array)
    image.to_filename(tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[108:112] = bytes(4)
    (tmp_path / "begins_at_0.nii").write_bytes(content)

    assert np.array_equal(read_scan(tmp_path / "begins_at_0.nii").array, read_scan(tmp_path / "scan.nii").array)


@pytest.mark.parametrize("read", [read_scan, read_grid])
def test_voxels_that_begin_nowhere_are_refused(tmp_path: Path, read: Any) -> None:
    """At infinity: nibabel would raise an error of its own."""
    write_header(tmp_path / "scan.nii", vox_offset=np.inf)

    with pytest.raises(KitsattnError, match=r"scan\.nii .*its voxels begin at byte inf"):
        read(tmp_path / "scan.nii")


def test_values_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    """They would become infinite, with a warning at most."""
    write_header(tmp_path / "scan.nii", scl_slope=1e38, scl_inter=0)
    content = (tmp_path / "scan.nii").read_bytes()
    (tmp_path / "scan.nii").write_bytes(content[:352] + np.full(24, 1000, np.int16).tobytes())

    for read in (read_scan, read_labels):
        with pytest.raises(
            KitsattnError, match=r"has 24 voxels that are |has .* that are infinite|holds values from 1e\+41"
        ):
            read(tmp_path / "scan.nii")


def test_where_a_scan_began_in_its_file_says_nothing_of_its_label_map(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An odd place of the voxels is not copied, and nibabel has nothing to warn of."""
    write_header(tmp_path / "scan.nii", vox_offset=353)
    (tmp_path / "scan.nii").write_bytes((tmp_path / "scan.nii").read_bytes() + b"\0")
    scan = read_scan(tmp_path / "scan.nii")
    caplog.clear()

    write_labels(tmp_path / "labels.nii", scan.with_array(np.ones(scan.array.shape, np.uint8)))

    assert caplog.text == ""
    assert np.asarray(nib.load(tmp_path / "labels.nii").dataobj).min() == 1  # type: ignore[attr-defined]


def test_sform_counts_where_the_qform_is_no_rotation(tmp_path: Path) -> None:
    """A quaternion longer than 1 is reported and left alone."""
    write_header(tmp_path / "scan.nii", quatern_b=1.5, qform_code=1, sform_code=1)

    assert read_scan(tmp_path / "scan.nii").notes == ("The qform is not a rotation; the sform was used.",)


def test_grid_is_read_from_the_header_alone(tmp_path: Path) -> None:
    """A file without a voxel tells where they would lie, and how large each is."""
    write_nifti(tmp_path / "scan.nii", make_volume(), axes="IPL")
    (tmp_path / "scan.nii").write_bytes((tmp_path / "scan.nii").read_bytes()[:352])

    geometry, grid, voxel_bytes = read_grid(tmp_path / "scan.nii")

    assert geometry.difference(make_volume().geometry) is None
    assert (grid.order[0], voxel_bytes) == (0, 2)
