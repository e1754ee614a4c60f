"""Scans and label maps in any format: NIfTI through nibabel, DICOM by `dicom/`, all else through SimpleITK."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.files import atomic_path, missing, unreadable
from kitsattn.volume import nifti
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.integrity import check_header, check_voxels
from kitsattn.volume.label_table import slicer_fields
from kitsattn.volume.orientation import RAS_FROM_LPS, SPATIAL_AXES, canonical_grid, file_affine, layout
from kitsattn.volume.padding import fill_padding
from kitsattn.volume.volume import FileGrid, Volume
from kitsattn.volume.voxels import label_values, refuse_non_numbers, scan_values

if TYPE_CHECKING:
    import SimpleITK
    from nibabel.nifti1 import Nifti1Image
    from nibabel.spatialimages import SpatialImage

    ScanImage: TypeAlias = SpatialImage | SimpleITK.Image
    LabelImage: TypeAlias = Nifti1Image | SimpleITK.Image

OUTPUT_SUFFIXES = (*nifti.SUFFIXES, ".nrrd", ".mha")
"""Formats that label maps are written in: those that keep header and voxels in one file."""

_MOST_VOXEL_BYTES = 8
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_DICOM_MAGIC = b"DICM"
_DICOM_MAGIC_OFFSET = 128


def read_scan(path: Path, series: str | None = None) -> Volume:
    """Read a CT scan: NIfTI (.nii, .nii.gz), another format of SimpleITK (.nrrd, .mha, .mhd, …), or DICOM.

    Args:
        path: A file; for DICOM the folder of a series, or a .zip archive of one.
        series: Which series of several in DICOM: its number or SeriesInstanceUID, with `:acquisition=2` or the like
            where it holds several scans; without it the axial CT series with the most slices.

    Returns:
        The scan in (z, y, x): int16 where the file's values fit without loss, else float32. Padding is air, see
        `padding`.

    Raises:
        KitsattnError: If the file is missing, damaged, or not a scan of three axes with finite values and an
            orthogonal grid.
    """
    return fill_padding(_read_scan(path, series))


def _read_scan(path: Path, series: str | None) -> Volume:
    if _is_dicom(path):
        from kitsattn.volume.dicom.series import read_dicom  # noqa: PLC0415 - NIfTI users need not wait for it

        return read_dicom(path, series)
    if series is not None:
        msg = f"{path} is not a DICOM folder or archive and has no series: leave --series out"
        raise KitsattnError(msg)
    if _is_nifti(path):
        return nifti.read_scan(path)
    stored, grid, geometry = _read_itk(path)
    return Volume(grid.copy_canonical(scan_values(stored, 1.0, 0.0, path)), geometry, grid)


def from_image(image: Any) -> Volume:  # noqa: ANN401 - whatever a caller gives
    """Turn a scan in memory, an image of nibabel or SimpleITK, into a volume.

    Returns:
        As `read_scan` does.

    Raises:
        KitsattnError: If it is neither, or not a scan of three axes with finite values and an orthogonal grid.
    """
    if hasattr(image, "dataobj"):
        return fill_padding(nifti.from_image(image))
    import SimpleITK  # noqa: PLC0415 - nibabel's users need not wait for it

    if not isinstance(image, SimpleITK.Image):
        msg = f"a scan is a path, an image of nibabel or one of SimpleITK, not {type(image).__name__}"
        raise KitsattnError(msg)
    name = Path("the image")
    grid, geometry = _itk_grid(image, name)
    stored = SimpleITK.GetArrayViewFromImage(image).T
    refuse_non_numbers(stored.dtype, name)
    return fill_padding(Volume(grid.copy_canonical(scan_values(stored, 1.0, 0.0, name)), geometry, grid))


def read_labels(path: Path, *, contiguous: bool = True) -> Volume:
    """Read a label map from NIfTI (.nii, .nii.gz) or another format of SimpleITK (.nrrd, .mha, .mhd, …).

    Args:
        path: The file.
        contiguous: Whether voxels are in memory in the order of the array. Whoever wants a part of it only saves a
            copy of the whole: 0.1 s for a KiTS19 label map of 270 x 512 x 512.

    Returns:
        The label map in (z, y, x), uint8.

    Raises:
        KitsattnError: If the file is missing, damaged, DICOM, or not a map of three axes with whole numbers from 0
            to 255 and an orthogonal grid.
    """
    _refuse_dicom(path)
    if _is_nifti(path):
        return nifti.read_labels(path, contiguous=contiguous)
    stored, grid, geometry = _read_itk(path)
    return Volume(grid.copy_canonical(label_values(stored, 1.0, 0.0, path)), geometry, grid)


def read_grid(path: Path) -> tuple[Geometry, FileGrid, int]:
    """Read where the voxels of a scan or label map are, from its header alone.

    Returns:
        The geometry in (z, y, x), how the array is in the file, and the bytes of a stored voxel at most.

    Raises:
        KitsattnError: If the file is missing, DICOM, or has no header of three axes with an orthogonal grid.
    """
    _refuse_dicom(path)
    if _is_nifti(path):
        return nifti.read_grid(path)
    import SimpleITK  # noqa: PLC0415 - NIfTI users need not wait for it

    check_header(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with _itk_errors(path):
        reader.ReadImageInformation()
    grid, geometry = _itk_grid(reader, path)
    return geometry, grid, _MOST_VOXEL_BYTES


def write_labels(
    path: Path,
    labels: Volume,
    *,
    classes: Mapping[str, int] | None = None,
    note: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a label map in the format that the suffix of `path` names, on the grid of the scan it came from.

    Where the format is the scan's own the grid is copied; where it is another, the array axes and the voxels'
    places in the patient are kept.

    Args:
        path: Ends in .nii.gz, .nii, .nrrd or .mha.
        labels: uint8, with the scan's geometry and source.
        classes: Class name to value; named in the header of NIfTI and NRRD, see `label_table`.
        note: Where the labels come from; kept in the header.
        overwrite: Whether an existing file may be replaced.

    Raises:
        KitsattnError: If the suffix is another, or the file exists and may not be replaced, or cannot be written.
    """
    check_output(path)
    if _is_nifti(path):
        nifti.write_labels(path, labels, classes=classes, note=note, overwrite=overwrite)
    else:
        _write_itk(path, to_itk(labels, classes), note, overwrite=overwrite)


def check_output(path: Path) -> None:
    """Refuse a path whose suffix names no format that label maps are written in.

    Raises:
        KitsattnError: If label maps cannot be written to `path`.
    """
    if not path.name.lower().endswith(OUTPUT_SUFFIXES):
        msg = f"{path} names no format that label maps are written in: choose {', '.join(OUTPUT_SUFFIXES)}"
        raise KitsattnError(msg)


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(nifti.SUFFIXES)


def _refuse_dicom(path: Path) -> None:
    if _is_dicom(path):
        what = "is a folder" if path.is_dir() else "is DICOM or an archive"
        msg = f"{path} {what}: name one file in NIfTI, NRRD or MHA"
        raise KitsattnError(msg)


def _is_dicom(path: Path) -> bool:
    if not path.exists():
        raise missing(path)
    return path.is_dir() or path.suffix.lower() == ".zip" or is_dicom_file(path)


def is_dicom_file(path: Path) -> bool:
    """Tell whether a file is DICOM, by its suffix or its first bytes; not whether it is an archive of such files.

    Raises:
        KitsattnError: If it cannot be read.
    """
    return path.suffix.lower() in _DICOM_SUFFIXES or _starts_as_dicom(path)


def _starts_as_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(_DICOM_MAGIC_OFFSET + len(_DICOM_MAGIC)).endswith(_DICOM_MAGIC)
    except OSError as error:
        raise unreadable(path, error) from error


def _read_itk(path: Path) -> tuple[NDArray[Any], FileGrid, Geometry]:
    """Return stored voxels with axes in SimpleITK's order of indices, how they are in the file and in the patient."""
    import SimpleITK  # noqa: PLC0415 - NIfTI users need not wait for it

    check_header(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with _itk_errors(path):
        reader.ReadImageInformation()
    grid, geometry = _itk_grid(reader, path)
    with _itk_errors(path):
        voxel_bytes = SimpleITK.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    check_voxels(path, math.prod(geometry.shape) * voxel_bytes)
    with _itk_errors(path):
        image = reader.Execute()
    stored: NDArray[Any] = SimpleITK.GetArrayFromImage(image).T
    refuse_non_numbers(stored.dtype, path)
    return stored, grid, geometry


@contextmanager
def _itk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        msg = f"{path} cannot be read ({reason}): a scan is .nii.gz, .nii, .nrrd, .mha or another format of SimpleITK"
        raise KitsattnError(msg) from error


def _itk_grid(image: Any, path: Path) -> tuple[FileGrid, Geometry]:  # noqa: ANN401 - an image, or a reader of one
    """Check what SimpleITK says of a file and return how its array is in file and patient."""
    import SimpleITK  # noqa: PLC0415 - NIfTI users need not wait for it

    if image.GetDimension() != SPATIAL_AXES or min(image.GetSize()) < 1:
        msg = f"{path} has the shape {image.GetSize()}: a scan has three axes, extract one volume from it"
        raise KitsattnError(msg)
    components = (
        image.GetNumberOfComponentsPerPixel() if isinstance(image, SimpleITK.Image) else image.GetNumberOfComponents()
    )
    if components != 1:
        msg = f"{path} holds several values a voxel, such as colours: a scan or label map holds one real number a voxel"
        raise KitsattnError(msg)
    spacing = np.array(image.GetSpacing())
    # A spacing below 0 turns its axis round once an image is read.
    direction = np.reshape(image.GetDirection(), (3, 3)) * np.where(spacing < 0, -1, 1)
    affine = np.eye(4)
    affine[:3, :3] = direction * np.abs(spacing)
    affine[:3, 3] = image.GetOrigin()
    header = SimpleITK.Image([1, 1, 1], SimpleITK.sitkUInt8)
    grid, geometry = canonical_grid(image.GetSize(), RAS_FROM_LPS @ affine, path, header)
    header.SetSpacing(np.abs(spacing).tolist())
    header.SetOrigin(image.GetOrigin())
    header.SetDirection(direction.ravel().tolist())
    return grid, geometry


def _write_itk(path: Path, image: "SimpleITK.Image", note: str | None, *, overwrite: bool) -> None:
    import SimpleITK  # noqa: PLC0415 - NIfTI users need not wait for it

    if note is not None:
        image.SetMetaData("kitsattn", note)
    with atomic_path(path, overwrite=overwrite) as temporary:
        try:
            SimpleITK.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OSError(str(error).strip().splitlines()[-1]) from error


def to_itk(labels: Volume, classes: Mapping[str, int] | None = None) -> "SimpleITK.Image":
    """Return a label map as an image of SimpleITK, on the grid of its `source`'s image, its classes named for NRRD."""
    import SimpleITK  # noqa: PLC0415 - NIfTI users need not wait for it

    grid = labels.source or layout("LPS", Path())
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(grid.to_file(labels.array).T))
    if isinstance(grid.header, SimpleITK.Image):
        image.SetSpacing(grid.header.GetSpacing())
        image.SetOrigin(grid.header.GetOrigin())
        image.SetDirection(grid.header.GetDirection())
    else:
        affine = RAS_FROM_LPS @ file_affine(labels.geometry, grid)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    for key, text in slicer_fields(classes).items() if classes else ():
        image.SetMetaData(key, text)
    return image
