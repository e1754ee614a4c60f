"""One scan in every order and direction of axes: the label map lies in the same place of the patient.

Files are written and read back by nibabel, SimpleITK and pydicom alone, and compared voxel for voxel: no voxel may
differ, also not for the resampling in-plane, since every scan is turned the same way before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage
from torch import Tensor, nn

from kitsattn.checkpoint.header import Header
from kitsattn.predict.case import Prediction
from kitsattn.predict.cases import PredictionCase
from kitsattn.predict.infer import Ensemble, Inference, Member
from kitsattn.predict.run import predict_cases
from kitsattn.predict.scan import predict_volume
from kitsattn.preprocess.plan import Plan
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume

SHAPE = (12, 40, 48)
SPACING_MM = (5.0, 1.7, 2.3)
ORIGIN_MM = (11.0, -30.0, 7.0)
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

AFFINE = np.array([[0, 0, -2.3, -7], [0, -1.7, 0, 30], [5, 0, 0, 11], [0, 0, 0, 1]])
"""From (z, y, x) to mm towards Right, Anterior, Superior: the grid above, worked out by hand."""

LAYOUTS = [(order, flips) for order in permutations(range(3)) for flips in product((False, True), repeat=3)]
"""For each axis of a file, the axis of (z, y, x) that it is, and whether it runs against it."""

Layout = tuple[tuple[int, ...], tuple[bool, ...]]
Grid = tuple[np.ndarray, np.ndarray]
"""Voxels as they lie in a file, and the affine from their indices to mm towards Right, Anterior, Superior."""


class Crooked(nn.Module):
    """Convolutions of random weights over three slices, whose answer also depends on the place in-plane."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        ramp = torch.linspace(0.5, 1, height)[:, None] + torch.linspace(0, 1, width)
        logits: Tensor = self.second(torch.relu(self.first(x * ramp)))
        return logits


@pytest.fixture(scope="module")
def ensemble(header: Header) -> Ensemble:
    """The network, which wants slices of another spacing than the scan's."""
    plan = Plan(spacing_mm=(2.0, 2.0), mean_hu=0.0, std_hu=100.0, patch_size=(64, 64))
    return Ensemble((Path("a"),), (header,), (Member(Crooked().eval(), 3, None),), plan, torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    """A scan without any symmetry: (z, y, x), int16, HU."""
    noise = np.random.default_rng(0).normal(size=SHAPE)
    smooth = ndimage.gaussian_filter(noise, (0.7, 2, 2))
    array: np.ndarray = (150 * smooth / smooth.std()).clip(-900, 900).astype(np.int16)
    return array


def _predict(ensemble: Ensemble, array: np.ndarray, inference: Inference | None = None) -> np.ndarray:
    scan = Volume(np.ascontiguousarray(array), Geometry.axial(SHAPE, SPACING_MM, ORIGIN_MM))
    labels: np.ndarray = predict_volume(ensemble, scan, inference)[0].array
    return labels


@pytest.fixture(scope="module")
def expected(ensemble: Ensemble, array: np.ndarray) -> np.ndarray:
    """The label map of the scan as it is in memory, (z, y, x)."""
    return _predict(ensemble, array)


def test_the_answer_depends_on_every_axis(ensemble: Ensemble, array: np.ndarray, expected: np.ndarray) -> None:
    """Turned against the patient, in any way that keeps its shape, the scan has another label map: a mistake shows."""
    assert np.bincount(expected.ravel(), minlength=3).min() > 0.05 * expected.size
    for flips in product((False, True), repeat=3):
        axes = tuple(axis for axis in range(3) if flips[axis])
        turned = np.flip(_predict(ensemble, np.flip(array, axes)), axes)
        assert np.mean(turned != expected) > 0.1 or not axes


def _lay_out(array: np.ndarray, layout: Layout) -> Grid:
    """Turn the scan into a file's order of axes."""
    order, flips = layout
    index = np.eye(4)[[*order, 3]].T  # from the file's indices to (z, y, x)
    for axis in range(3):
        if flips[axis]:
            index[:3, axis] *= -1
            index[order[axis], 3] = SHAPE[order[axis]] - 1
    return np.flip(array.transpose(order), tuple(axis for axis in range(3) if flips[axis])), AFFINE @ index


def _put_back(grid: Grid) -> np.ndarray:
    """Return voxels of a file where they lie in the patient, on (z, y, x); 255 where none lies."""
    values, affine = grid
    places = np.linalg.inv(AFFINE) @ affine @ np.array([*np.indices(values.shape).reshape(3, -1), np.ones(values.size)])
    indices = places[:3].round().astype(int)
    np.testing.assert_allclose(places[:3], indices, atol=1e-3)
    canonical = np.full(SHAPE, 255)
    canonical[tuple(indices)] = values.ravel()
    return canonical


def _write_nifti(path: Path, grid: Grid) -> None:
    nib.Nifti1Image(*grid).to_filename(path)


def _read_nifti(path: Path) -> Grid:
    image: Any = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def _write_itk(path: Path, grid: Grid) -> None:
    values, affine = grid
    affine = LPS_FROM_RAS @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, path)


def _read_itk(path: Path) -> Grid:
    image = SimpleITK.ReadImage(path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, LPS_FROM_RAS @ affine


def _write_dicom(path: Path, grid: Grid) -> None:
    """Write the file's axes as columns, rows and slices."""
    values, affine = grid
    affine = LPS_FROM_RAS @ affine
    columns, rows, step = affine[:3, :3].T
    column_mm, row_mm = np.linalg.norm(columns), np.linalg.norm(rows)
    path.mkdir()
    for number in range(values.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"1.2.3.{number + 1}"
        dataset.Modality, dataset.SeriesInstanceUID = "CT", "1.2.3"
        dataset.ImagePositionPatient = [round(float(mm), 6) for mm in affine[:3, 3] + number * step]
        dataset.ImageOrientationPatient = [*(columns / column_mm).round(6), *(rows / row_mm).round(6)]
        dataset.PixelSpacing = [round(float(row_mm), 6), round(float(column_mm), 6)]
        dataset.Rows, dataset.Columns = values.shape[1], values.shape[0]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = values[:, :, number].T.astype("<i2").tobytes()
        dataset["PixelData"].VR = "OW"
        pydicom.dcmwrite(path / f"{values.shape[2] - number}.dcm", dataset, enforce_file_format=True)


@dataclass(frozen=True)
class Format:
    """How scans are written and label maps read back."""

    scan: str
    labels: str
    write: Callable[[Path, Grid], None]
    read: Callable[[Path], Grid]
    right_handed: bool = False


FORMATS = {
    "NIfTI": Format(".nii.gz", ".nii.gz", _write_nifti, _read_nifti),
    "NRRD": Format(".nrrd", ".nrrd", _write_itk, _read_itk),
    "MHA": Format(".mha", ".mha", _write_itk, _read_itk),
    "DICOM": Format("", ".nii.gz", _write_dicom, _read_nifti, right_handed=True),
}


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_every_layout_of_a_scan_has_its_label_map_in_the_same_place(
    ensemble: Ensemble, array: np.ndarray, expected: np.ndarray, tmp_path: Path, form: Format
) -> None:
    """All 48 orders and directions of axes, of DICOM the 24 right-handed; the file's own grid is kept."""
    grids = [_lay_out(array, layout) for layout in LAYOUTS]
    if form.right_handed:
        grids = [(values, affine) for values, affine in grids if np.linalg.det(affine) > 0]
    assert len(grids) == (24 if form.right_handed else 48)
    cases = []
    for number, grid in enumerate(grids):
        source, target = tmp_path / f"scan{number}{form.scan}", tmp_path / f"labels{number}{form.labels}"
        form.write(source, grid)
        cases.append(PredictionCase(name=str(number), source=source, target=target))

    results = predict_cases(ensemble, cases, rules=None)

    differing = {}
    for (values, affine), case, result in zip(grids, cases, results, strict=True):
        assert isinstance(result, Prediction), result
        labels, own = form.read(case.target)
        assert labels.shape == values.shape
        np.testing.assert_allclose(own, affine, atol=1e-5)
        if case.source.is_file():
            np.testing.assert_array_equal(own, form.read(case.source)[1])
        differing[case.name] = np.count_nonzero(_put_back((labels, own)) != expected)
    assert set(differing.values()) == {0}, differing


def test_the_batch_changes_no_label(ensemble: Ensemble, array: np.ndarray, expected: np.ndarray) -> None:
    """One slice at a time, a number that does not divide the slices, or more at once."""
    for batch_size in (1, 3, 8):
        np.testing.assert_array_equal(_predict(ensemble, array, Inference(batch_size=batch_size)), expected)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_two_runs_write_the_same_bytes(ensemble: Ensemble, array: np.ndarray, tmp_path: Path, suffix: str) -> None:
    """On the CPU: nothing in a label map depends on when or where it was made."""
    _write_nifti(tmp_path / "scan.nii", (array.T, AFFINE[:, [2, 1, 0, 3]]))
    targets = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    for target in targets:
        (result,) = predict_cases(ensemble, [PredictionCase(name="a", source=tmp_path / "scan.nii", target=target)])
        assert isinstance(result, Prediction)
    assert targets[0].read_bytes() == targets[1].read_bytes()
