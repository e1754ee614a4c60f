"""NIfTI files, in any orientation: read into (z, y, x), written onto the scan's own grid.

Where sform and qform disagree the sform is used, as nibabel does: it can hold any affine, and it is the one that
tools update. The qform is used where the sform is not set (code 0) or its matrix is singular. If they are more than
`SAME_GRID_VOXELS` apart, that is reported in `Volume.notes`. A file that sets neither is read as running to Left,
Anterior and Superior, and that is reported too.
"""

import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from kitsattn.errors import KitsattnError
from kitsattn.files import atomic_path, missing, unreadable
from kitsattn.version import __version__
from kitsattn.volume.geometry import SAME_GRID_VOXELS, Geometry, voxels_apart
from kitsattn.volume.integrity import find_gzip_end, refuse_short
from kitsattn.volume.label_table import caret_extension
from kitsattn.volume.orientation import SPATIAL_AXES, bad_spacing, canonical_grid, file_affine, layout
from kitsattn.volume.volume import FileGrid, Volume, copy_tiles
from kitsattn.volume.voxels import label_values, refuse_non_numbers, scan_values
from kitsattn.words import number, plural

SUFFIXES = (".nii", ".nii.gz")

_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Unit codes of NIfTI: unknown (taken as mm), metre, millimetre, micrometre."""
_UNIT_BITS = 0b111
_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK_BYTES = 1 << 24
_LEVEL = 1
"""Of compression. A label map of 70 MB takes 0.01 s and 0.45 MB, instead of 0.39 s and 0.32 MB at zlib's level 6."""
_PLANES = 16
"""Written at once."""
_FARTHEST_OFFSET = 1 << 31

_log = logging.getLogger(__name__)

Result = TypeVar("Result")
_Checked: TypeAlias = tuple[nib.Nifti1Header, FileGrid, Geometry, tuple[str, ...]]


def read_scan(path: Path) -> Volume:
    """Read a CT scan.

    Args:
        path: A .nii or .nii.gz file; compression is recognised by content.

    Returns:
        The scan in (z, y, x): int16 where the file's values fit without loss, else float32.

    Raises:
        KitsattnError: If the file is missing, damaged, or not a scan of three axes with finite values and an
            orthogonal grid.
    """
    return _read(path, scan_values)


def read_labels(path: Path, *, contiguous: bool = True) -> Volume:
    """Read a label map.

    Args:
        path: A .nii or .nii.gz file; compression is recognised by content.
        contiguous: Whether voxels are in memory in the order of the array; else they may be as in the file.

    Returns:
        The label map in (z, y, x), uint8.

    Raises:
        KitsattnError: If the file is missing, damaged, or not a map of three axes with whole numbers from 0 to 255
            and an orthogonal grid.
    """
    return _read(path, label_values, contiguous=contiguous)


def read_grid(path: Path) -> tuple[Geometry, FileGrid, int]:
    """Read where the voxels are, from the header alone.

    Args:
        path: A .nii or .nii.gz file; compression is recognised by content.

    Returns:
        The geometry in (z, y, x), how the array is in the file, and the bytes of a stored voxel.

    Raises:
        KitsattnError: If the file is missing, or its header is damaged or not one of three axes with an orthogonal
            grid.
    """
    with _file_errors(path):
        (header, grid, geometry, _), _ = _read_stream(path, partial(_read_checked, path=path))
    return geometry, grid, int(header.get_data_dtype().itemsize)


def write_nifti(
    path: Path, volume: Volume, *, axes: str = "RAS", note: str | None = None, overwrite: bool = True
) -> None:
    """Write a volume as a new NIfTI file.

    Args:
        path: Ends in .nii or .nii.gz.
        volume: Its array keeps its dtype; its geometry becomes sform and qform, in mm.
        axes: Where the file's axes run to: "RAS", KiTS19's "IPL", …
        note: Where the volume comes from; kept in the header, as an extension of the comment kind.
        overwrite: Whether an existing file may be replaced.

    Raises:
        KitsattnError: If the file exists and may not be replaced, or cannot be written.
    """
    _save(path, _image_along(volume, axes), note, overwrite=overwrite)


def write_labels(
    path: Path,
    labels: Volume,
    *,
    classes: Mapping[str, int] | None = None,
    note: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a label map, onto the very grid of the NIfTI file that its `source` came from.

    The output has that file's shape, sform, qform, codes and units; its own extensions are left out, since they
    describe another image. A volume from elsewhere is written by its geometry, with the array axes of its file.

    Args:
        path: Ends in .nii or .nii.gz.
        labels: uint8.
        classes: Class name to value; named in the header, see `label_table`.
        note: Where the labels come from; kept in the header, as an extension of the comment kind.
        overwrite: Whether an existing file may be replaced.

    Raises:
        KitsattnError: If the file exists and may not be replaced, or cannot be written.
    """
    _save(path, to_image(labels, classes), note, overwrite=overwrite)


def from_image(image: SpatialImage) -> Volume:
    """Turn a scan in nibabel's hands into a volume, by the rules of a file.

    Args:
        image: In HU; only its values are read, not kept.

    Returns:
        As `read_scan` does.

    Raises:
        KitsattnError: If it is not a scan of three axes with finite values and an orthogonal grid.
    """
    name = Path("the image")
    kind = type(image) if isinstance(image, nib.Nifti1Image) else nib.Nifti1Image
    # A new one, in whose header is what the image was given since it was loaded.
    image = kind(image.dataobj, image.affine, image.header)
    with _file_errors(name):
        grid, geometry, notes = _read_grid(image.header, name)
    slope, intercept = 1.0, 0.0
    if isinstance(image.dataobj, ArrayProxy):
        stored, slope, intercept = image.dataobj.get_unscaled(), image.dataobj.slope, image.dataobj.inter
    else:
        stored = np.asanyarray(image.dataobj)
    stored = stored.reshape(stored.shape[:SPATIAL_AXES], order="F")
    return Volume(grid.copy_canonical(scan_values(stored, slope, intercept, name)), geometry, grid, notes)


def to_image(labels: Volume, classes: Mapping[str, int] | None = None) -> nib.Nifti1Image:
    """Return a label map as an image of nibabel, on the grid that `write_labels` writes onto, its classes named."""
    image = _label_image(labels)
    if classes is not None:
        image.header.extensions.append(caret_extension(classes))
    return image


def _label_image(labels: Volume) -> nib.Nifti1Image:
    source = labels.source
    if source is None or not isinstance(source.header, nib.Nifti1Header):
        axes = "RAS" if source is None else "".join(nib.aff2axcodes(file_affine(labels.geometry, source)))
        return _image_along(labels, axes)
    header = source.header.copy()
    header.extensions.clear()
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0
    header["vox_offset"] = 0  # nibabel finds it
    header["descrip"] = b""
    sform = header.get_sform(coded=True)[0]
    if sform is not None and _is_singular(sform):
        header.set_sform(None)  # else other tools would use it
    image_class: type[nib.Nifti1Image] = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    array = source.to_file(labels.array).reshape(header.get_data_shape(), order="F")
    return image_class(array, header.get_best_affine(), header)


def write_probabilities(
    path: Path, labels: Volume, probabilities: NDArray[np.uint16], *, unit: int, note: str | None = None
) -> None:
    """Write the probabilities of all classes as NIfTI with a fourth axis, on the grid that `write_labels` writes onto.

    Args:
        path: Ends in .nii or .nii.gz; an existing file is replaced.
        labels: The label map that was made from them.
        probabilities: (classes, z, y, x), in units of 1 / `unit`; the file's slope makes them probabilities again.
        unit: What stands for 1.
        note: Where they come from; kept in the header, as an extension of the comment kind.

    Raises:
        KitsattnError: If the file cannot be written.
    """
    source = labels.source or layout("RAS", path)
    array = np.stack([source.to_file(one) for one in probabilities], axis=-1)
    image = _new_image(array, file_affine(labels.geometry, source))
    image.header.set_slope_inter(1 / unit, 0)
    _save(path, image, note, overwrite=True)


def _read(
    path: Path, convert: Callable[[NDArray[Any], float, float, Path], NDArray[Any]], *, contiguous: bool = True
) -> Volume:
    """Read a file; `convert` turns stored values, slope and intercept into the volume's values."""

    def read(stream: IO[bytes]) -> tuple[_Checked, NDArray[Any]]:
        checked = _read_checked(stream, path)
        return checked, _read_values(stream, checked[0])

    with _file_errors(path):
        ((header, grid, geometry, notes), stored), more = _read_stream(path, read)
        slope, intercept = header.get_slope_inter()
    values = convert(stored, 1.0 if slope is None else slope, 0.0 if intercept is None else intercept, path)
    array = grid.copy_canonical(values) if contiguous else grid.to_canonical(values)
    return Volume(array, geometry, grid, (*more, *notes))


def _read_stream(path: Path, read: Callable[[IO[bytes]], Result]) -> tuple[Result, tuple[str, ...]]:
    """Read a file; if bytes follow its gzip members, without these. Return what was read, and a note on that."""
    try:
        with _open(path) as stream:
            return read(stream), ()
    except (EOFError, igzip.BadGzipFile, isal_zlib.error):  # type: ignore[misc]  # its stub is wrong
        end = find_gzip_end(path)
        if end is None:
            raise
    note = f"{plural(path.stat().st_size - end, 'byte')} after the compressed data were ignored."
    with _open(path, end) as stream:
        return read(stream), (note,)


def _read_checked(stream: IO[bytes], path: Path) -> _Checked:
    """Read the header, and check it and the size of the file."""
    header = _read_header(stream, path)
    grid, geometry, notes = _read_grid(header, path)
    _refuse_short(path, header, packed=isinstance(stream, igzip.IGzipFile))
    return header, grid, geometry, notes


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a file into one line."""
    try:
        yield
    except (EOFError, igzip.BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc]  # its stub is wrong
        msg = f"{path} is truncated or damaged ({error}): copy or download it again"
        raise KitsattnError(msg) from error
    except HeaderDataError as error:
        msg = f"{path} has a NIfTI header that cannot be used ({error}): convert the scan again"
        raise KitsattnError(msg) from error
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def _open(path: Path, end: int | None = None) -> Iterator[IO[bytes]]:
    with path.open("rb") if end is None else io.BytesIO(path.read_bytes()[:end]) as file:
        packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        if not packed:
            yield file
            return
        with igzip.IGzipFile(fileobj=file) as stream:  # type: ignore[no-untyped-call]
            yield stream  # type: ignore[misc]  # it reads like any binary file


def _read_header(stream: IO[bytes], path: Path) -> nib.Nifti1Header:
    """Read the header and leave spatially wrong values as they are, so that they can be refused by name."""
    start = stream.read(nib.Nifti2Header.sizeof_hdr)
    for header_class in (nib.Nifti1Header, nib.Nifti2Header):
        if not header_class.may_contain_header(start):
            continue
        stream.seek(0)
        header: nib.Nifti1Header = header_class.from_fileobj(stream, check=False)
        if bytes(header["magic"]).startswith(header_class.single_magic):
            return header
    msg = f"{path} is not a NIfTI file (.nii or .nii.gz with header and voxels in one): export the scan as NIfTI again"
    raise KitsattnError(msg)


def _read_grid(header: nib.Nifti1Header, path: Path) -> tuple[FileGrid, Geometry, tuple[str, ...]]:
    """Check the header and return how the array is in file and patient, with notes on what was odd."""
    notes = []
    shape = tuple(int(size) for size in header.get_data_shape())
    spatial, further = shape[:SPATIAL_AXES], shape[SPATIAL_AXES:]
    if len(spatial) < SPATIAL_AXES or any(size != 1 for size in further) or min(shape) < 1:
        msg = f"{path} has the shape {shape}: a scan has three axes, extract one volume from it"
        raise KitsattnError(msg)
    if further:
        notes.append(f"The file has the shape {shape}; its trailing axes of length 1 were left out.")
    spacing = header["pixdim"][1:4].astype(np.float64)
    if not np.all(np.isfinite(spacing)) or np.any(spacing == 0):
        raise bad_spacing(path, spacing)
    if np.isinf(header["vox_offset"]):
        msg = f"its voxels begin at byte {header['vox_offset']:g}"
        raise HeaderDataError(msg)
    header.check_fix(logger=_log)
    refuse_non_numbers(header.get_data_dtype(), path)
    affine, affine_notes = _choose_affine(header)
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & _UNIT_BITS, 1.0)
    grid, geometry = canonical_grid(spatial, affine, path, header)
    return grid, geometry, (*notes, *affine_notes)


def _refuse_short(path: Path, header: nib.Nifti1Header, *, packed: bool) -> None:
    needed = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    refuse_short(needed, path.stat().st_size, packed=packed)


def _choose_affine(header: nib.Nifti1Header) -> tuple[NDArray[np.float64], list[str]]:
    """Return the affine that counts, by the rule at the top of this module, in the header's units, and notes."""
    sform = header.get_sform(coded=True)[0]
    try:
        qform = header.get_qform(coded=True)[0]
    except ValueError as error:  # a quaternion longer than 1
        if sform is None:
            msg = f"its qform is not a rotation: {error}"
            raise HeaderDataError(msg) from error
        return sform, ["The qform is not a rotation; the sform was used."]
    if sform is None and qform is None:
        note = "The file states no orientation (sform and qform codes are 0); it was read as Left, Anterior, Superior."
        return header.get_base_affine(), [note]
    if sform is None or qform is None:
        return (qform if sform is None else sform), []
    if _is_singular(sform):
        return qform, ["The sform's matrix is singular; the qform was used."]
    distance = voxels_apart(header.get_data_shape()[:SPATIAL_AXES], sform, qform)
    if not distance <= SAME_GRID_VOXELS:
        apart = number(distance, SAME_GRID_VOXELS)
        return sform, [f"The sform and qform are up to {apart} voxels apart; the sform was used."]
    return sform, []


def _is_singular(affine: NDArray[np.float64]) -> bool:
    return not np.all(np.isfinite(affine)) or bool(np.linalg.matrix_rank(affine) < len(affine))


def _read_values(stream: IO[bytes], header: nib.Nifti1Header) -> NDArray[Any]:
    """Read the stored voxels, in file order and without slope and intercept."""
    shape = header.get_data_shape()[:SPATIAL_AXES]
    dtype = header.get_data_dtype()
    offset = float(header["vox_offset"])
    if not 0 <= offset < _FARTHEST_OFFSET:
        msg = f"its voxels begin at byte {offset:g}"
        raise HeaderDataError(msg)
    stream.seek(max(header.get_data_offset(), header.single_vox_offset))  # 0 stands for the end of the header
    values = np.empty(shape, dtype, order="F")
    buffer = values.reshape(-1, order="F").view(np.uint8).data
    filled = 0
    while filled < len(buffer):
        count = stream.readinto(buffer[filled : filled + _BLOCK_BYTES])  # type: ignore[attr-defined]
        if not count:
            msg = f"{filled} of {len(buffer)} bytes of voxels"
            raise EOFError(msg)
        filled += count
    # The end of a gzip stream holds its checksum, which is only compared when it is read past.
    while stream.read(_BLOCK_BYTES):
        pass
    return values


def _image_along(volume: Volume, axes: str) -> nib.Nifti1Image:
    """Return an image by a volume's geometry; its axes run to `axes`."""
    grid = layout(axes, Path())
    return _new_image(grid.to_file(volume.array), file_affine(volume.geometry, grid))


def _new_image(array: NDArray[Any], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """Return an image with sform and qform, in mm."""
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return image


def _save(path: Path, image: nib.Nifti1Image, note: str | None, *, overwrite: bool) -> None:
    """Write an image atomically, with `note` as an extension of its header."""
    if not path.name.lower().endswith(SUFFIXES):
        msg = f"{path} cannot be written as NIfTI: name it .nii.gz or .nii"
        raise KitsattnError(msg)
    if note is not None:
        image.header["descrip"] = f"kitsattn {__version__}, see the comment in the header's extension".encode()
        image.header.extensions.append(Nifti1Extension("comment", note.encode()))
    with atomic_path(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        if not path.name.lower().endswith(".gz"):
            _write(file, image)
            return
        # Without name and time the same image has the same bytes.
        with igzip.IGzipFile("", "wb", _LEVEL, file, mtime=0) as stream:  # type: ignore[no-untyped-call]
            _write(stream, image)  # type: ignore[arg-type]  # it is written to like any binary file


def _write(stream: IO[bytes], image: nib.Nifti1Image) -> None:
    """Write header and voxels, a few planes at a time: nibabel would hold the whole image several times."""
    header, array = image.header, np.asanyarray(image.dataobj)
    if header.get_slope_inter() == (None, None):
        header.set_slope_inter(1, 0)
    header.write_to(stream)
    stream.write(bytes(header.get_data_offset() - stream.tell()))
    for volume in np.moveaxis(array, -1, 0) if array.ndim > SPATIAL_AXES else [array]:
        for start in range(0, volume.shape[-1], _PLANES):
            planes = _in_file_order(volume[..., start : start + _PLANES], header.get_data_dtype())
            stream.write(planes.reshape(-1, order="F").data)


def _in_file_order(planes: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return planes with their first axis fastest; a copy unless they are that way already."""
    if planes.ndim > SPATIAL_AXES or abs(planes.strides[0]) == planes.itemsize:
        return np.asfortranarray(planes, dtype)
    copy = np.empty(planes.shape, dtype, order="F")
    copy_tiles(copy, planes)
    return copy
