import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from kitsattn.errors import KitsattnError
from kitsattn.volume.formats import read_grid, read_labels, read_scan, write_labels
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume


def make_itk(path: Path, array: np.ndarray, *, flip_x: bool = False) -> None:
    """Write an anisotropic image whose axes run to Left (Right if flipped), Posterior and Superior."""
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.9, 0.7, 5.0))
    image.SetOrigin((1.5, -2.5, 3.5))
    if flip_x:
        image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_itk_formats_are_read_into_left_posterior_superior(tmp_path: Path, suffix: str) -> None:
    """SimpleITK's x, y, z run to Left, Posterior, Superior, which is (z, y, x) here without a flip."""
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    make_itk(tmp_path / f"scan{suffix}", stored)

    scan = read_scan(tmp_path / f"scan{suffix}")

    assert np.array_equal(scan.array, stored)
    assert scan.geometry.spacing_mm == pytest.approx((5.0, 0.7, 0.9))
    assert scan.geometry.origin_mm == pytest.approx((3.5, -2.5, 1.5))


def test_itk_axis_that_runs_to_the_right_is_turned(tmp_path: Path) -> None:
    """An x axis towards the Right is flipped, and its last voxel becomes the origin."""
    stored = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    make_itk(tmp_path / "labels.nrrd", stored, flip_x=True)

    labels = read_labels(tmp_path / "labels.nrrd")

    assert np.array_equal(labels.array, stored[..., ::-1])
    assert labels.geometry.origin_mm == pytest.approx((3.5, -2.5, 1.5 - 3 * 0.9))


def test_nifti_and_nrrd_of_one_scan_lie_in_one_place(tmp_path: Path) -> None:
    """A NIfTI file that SimpleITK converts to NRRD reads as the same array in the same place."""
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), Geometry.axial((2, 3, 4), (5.0, 0.7, 0.9)))
    write_nifti(tmp_path / "scan.nii.gz", volume, axes="IPL")
    SimpleITK.WriteImage(SimpleITK.ReadImage(tmp_path / "scan.nii.gz"), tmp_path / "scan.nrrd")

    nifti, nrrd = read_scan(tmp_path / "scan.nii.gz"), read_scan(tmp_path / "scan.nrrd")

    assert np.array_equal(nifti.array, nrrd.array)
    assert nifti.geometry.difference(nrrd.geometry, tolerance_voxels=1e-4) is None


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_label_map_of_an_itk_scan_has_exactly_its_grid(tmp_path: Path, suffix: str) -> None:
    """Size, spacing, origin and direction of the output are the input's, and the note is in the header."""
    path, target = tmp_path / f"scan{suffix}", tmp_path / f"labels{suffix}"
    make_itk(path, np.arange(24, dtype=np.int16).reshape(2, 3, 4), flip_x=True)
    scan = read_scan(path)

    write_labels(target, scan.with_array((scan.array % 3).astype(np.uint8)), note="made by a test")

    before, after = SimpleITK.ReadImage(path), SimpleITK.ReadImage(target)
    for question in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(before, question)() == getattr(after, question)()
    assert after.GetPixelID() == SimpleITK.sitkUInt8
    assert "made by a test" in after.GetMetaData("kitsattn")
    assert np.array_equal(SimpleITK.GetArrayFromImage(after), np.arange(24).reshape(2, 3, 4) % 3)


@pytest.mark.parametrize(("source", "target"), [("scan.nii.gz", "labels.nrrd"), ("scan.nrrd", "labels.nii.gz")])
def test_label_map_in_another_format_keeps_place_and_axes(tmp_path: Path, source: str, target: str) -> None:
    """From NIfTI to NRRD and back, array axes and world positions stay."""
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    if source.endswith(".nrrd"):
        make_itk(tmp_path / source, stored, flip_x=True)
    else:
        nib.save(nib.Nifti1Image(stored, np.diag([5.0, -0.7, 0.9, 1.0])), tmp_path / source)
    scan = read_scan(tmp_path / source)

    write_labels(tmp_path / target, scan.with_array(scan.array.astype(np.uint8)), note="made by a test")

    labels = read_labels(tmp_path / target)
    assert np.array_equal(labels.array, scan.array)
    assert labels.geometry.difference(scan.geometry, tolerance_voxels=1e-4) is None
    assert labels.source is not None
    assert scan.source is not None
    assert (labels.source.order, labels.source.flipped) == (scan.source.order, scan.source.flipped)


def test_label_map_made_in_memory_is_written_as_nrrd(tmp_path: Path) -> None:
    """Without a source the geometry says where the file lies."""
    labels = Volume(np.ones((2, 3, 4), np.uint8), Geometry.axial((2, 3, 4), (5.0, 0.7, 0.9), (1.0, 2.0, 3.0)))

    write_labels(tmp_path / "labels.nrrd", labels)

    assert read_labels(tmp_path / "labels.nrrd").geometry.difference(labels.geometry) is None


@pytest.mark.parametrize("name", ["labels.seg.nrrd", "labels.mha"])
def test_classes_are_named_as_3d_slicer_reads_them(tmp_path: Path, name: str) -> None:
    """One segment a class, in the order of the values; the file is read as before."""
    labels = Volume(np.ones((2, 3, 4), np.uint8), Geometry.axial((2, 3, 4), (5.0, 0.7, 0.9)))

    write_labels(tmp_path / name, labels, classes={"background": 0, "tumour": 2, "kidney": 1})

    image = SimpleITK.ReadImage(tmp_path / name)
    segments = [
        (image.GetMetaData(f"Segment{number}_LabelValue"), image.GetMetaData(f"Segment{number}_Name"))
        for number in range(2)
    ]
    assert segments == [("1", "kidney"), ("2", "tumour")]
    assert "Segment2_Name" not in image.GetMetaDataKeys()
    assert image.GetMetaData("Segment0_Color") == "0.337 0.706 0.914"
    assert np.array_equal(read_labels(tmp_path / name).array, labels.array)


@pytest.mark.parametrize("read", [read_grid, read_labels])
@pytest.mark.parametrize("name", ["series", "slice.dcm", "IM0001", "labels.zip"])
def test_label_maps_are_not_dicom(tmp_path: Path, read: Any, name: str) -> None:
    """A folder, a .dcm file, a DICOM file without suffix and an archive."""
    if name == "series":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(100))

    with pytest.raises(KitsattnError, match=rf"{name} is .*: name one file in NIfTI, NRRD or MHA"):
        read(tmp_path / name)


def test_unknown_format_is_refused_in_one_line(tmp_path: Path) -> None:
    """SimpleITK's traceback of several lines becomes one."""
    (tmp_path / "scan.nrrd").write_text("hello")

    with pytest.raises(KitsattnError, match=r"scan\.nrrd cannot be read") as caught:
        read_scan(tmp_path / "scan.nrrd")

    assert "\n" not in str(caught.value)


def test_truncated_nrrd_is_refused(tmp_path: Path) -> None:
    """Half an NRRD file is no scan."""
    path = tmp_path / "scan.nrrd"
    make_itk(path, np.ones((20, 30, 40), np.int16))
    path.write_bytes(path.read_bytes()[:20000])

    with pytest.raises(KitsattnError, match=r"scan\.nrrd is truncated or damaged \(its header announces 48000 bytes"):
        read_scan(path)


def change_header(path: Path, field: str, value: str) -> None:
    """Replace a field of a MetaImage's header."""
    changed, count = re.subn(rf"(?m)^{field} = .*$".encode(), f"{field} = {value}".encode(), path.read_bytes())
    assert count == 1
    path.write_bytes(changed)


def test_negative_spacing_turns_an_axis_round(tmp_path: Path) -> None:
    """As SimpleITK has it; the header alone says the same."""
    make_itk(tmp_path / "scan.mha", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    change_header(tmp_path / "scan.mha", "ElementSpacing", "0.9 -0.7 5")

    scan, (geometry, _, _) = read_scan(tmp_path / "scan.mha"), read_grid(tmp_path / "scan.mha")

    assert scan.geometry == geometry
    assert geometry.origin_mm == pytest.approx((3.5, -2.5 - 2 * 0.7, 1.5))
    assert np.array_equal(scan.array[0, 0], [8, 9, 10, 11])


@pytest.mark.parametrize("read", [read_scan, read_grid])
@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("DimSize", "4 0 2", r"has the shape \(4, 0, 2\): a scan has three axes"),
        ("ElementSpacing", "0.9 0 5", r"has a spacing of 0\.9 x 0 x 5 mm"),
        ("TransformMatrix", "1 0 0 0 1 0 0 1 0", "has a sheared affine"),
        ("TransformMatrix", "1 0 0 0 1 nan 0 0 1", "has a spacing of .* every axis needs a finite"),
    ],
)
def test_impossible_grids_are_one_line(tmp_path: Path, read: Any, field: str, value: str, told: str) -> None:
    """No voxels, no distance between them, axes in one plane, or no numbers."""
    make_itk(tmp_path / "scan.mha", np.ones((2, 3, 4), np.int16))
    change_header(tmp_path / "scan.mha", field, value)

    with pytest.raises(KitsattnError, match=told) as raised:
        read(tmp_path / "scan.mha")
    assert str(raised.value).isprintable()


def test_pictures_and_colours_are_refused(tmp_path: Path) -> None:
    """A picture with two axes and a volume of colours are no scans."""
    SimpleITK.WriteImage(SimpleITK.Image([4, 5], SimpleITK.sitkUInt8), tmp_path / "picture.png")
    SimpleITK.WriteImage(SimpleITK.Image([4, 5, 6], SimpleITK.sitkVectorUInt8, 3), tmp_path / "colours.nrrd")
    SimpleITK.WriteImage(SimpleITK.Image([4, 5, 6, 2], SimpleITK.sitkInt16), tmp_path / "series.nrrd")

    for name, reason in (("picture.png", "three axes"), ("colours.nrrd", "colours"), ("series.nrrd", "three axes")):
        with pytest.raises(KitsattnError, match=reason):
            read_scan(tmp_path / name)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that is not there says so."""
    with pytest.raises(KitsattnError, match=r"scan\.nrrd does not exist"):
        read_scan(tmp_path / "scan.nrrd")


def test_output_format_must_hold_everything_in_one_file(tmp_path: Path) -> None:
    """An output name with an unknown suffix, or one of two files, is refused before anything is written."""
    labels = Volume(np.ones((2, 3, 4), np.uint8), Geometry.axial((2, 3, 4), (5.0, 0.7, 0.9)))

    for name in ("labels.mhd", "labels.png", "labels"):
        with pytest.raises(KitsattnError, match=r"choose \.nii, \.nii\.gz, \.nrrd, \.mha"):
            write_labels(tmp_path / name, labels)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    """A file where a folder should be is one clear line, for every format."""
    (tmp_path / "file").write_text("")
    labels = Volume(np.ones((2, 3, 4), np.uint8), Geometry.axial((2, 3, 4), (5.0, 0.7, 0.9)))

    for name in ("labels.nrrd", "labels.nii.gz"):
        with pytest.raises(KitsattnError, match="cannot be written"):
            write_labels(tmp_path / "file" / name, labels)


def test_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that fails half way leaves neither the file nor a temporary one."""
    labels = Volume(np.ones((2, 3, 4), np.uint8), Geometry.axial((2, 3, 4), (5.0, 0.7, 0.9)))

    def fail(image: Any, path: str, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        msg = "ITK ERROR: no space left on device"
        raise RuntimeError(msg)

    monkeypatch.setattr(SimpleITK, "WriteImage", fail)

    with pytest.raises(KitsattnError, match=r"labels\.nrrd cannot be written: ITK ERROR: no space left"):
        write_labels(tmp_path / "labels.nrrd", labels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_grid_is_read_from_the_header_alone(tmp_path: Path, suffix: str) -> None:
    """Where the voxels lie is told without reading them, and is what reading them tells."""
    path = tmp_path / f"scan{suffix}"
    image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 4), np.int16))
    image.SetSpacing((0.9, 0.7, 5.0))
    image.SetOrigin((3.0, 12.5, -40.0))
    SimpleITK.WriteImage(image, str(path))

    geometry, grid, voxel_bytes = read_grid(path)

    whole = read_scan(path)
    assert whole.source is not None
    assert geometry == whole.geometry
    assert (grid.order, grid.flipped) == (whole.source.order, whole.source.flipped)
    assert voxel_bytes == 8


def test_header_of_colours_is_refused(tmp_path: Path) -> None:
    """Several values a voxel show in the header."""
    SimpleITK.WriteImage(SimpleITK.Image([2, 2, 2], SimpleITK.sitkVectorUInt8, 3), str(tmp_path / "colours.mha"))

    with pytest.raises(KitsattnError, match=r"colours\.mha holds several values a voxel"):
        read_grid(tmp_path / "colours.mha")
