from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from kitsattn.volume.geometry import Geometry, Shape
from kitsattn.volume.nifti import read_grid


def test_to_ras_inverts_from_ras() -> None:
    """A rotated, anisotropic affine comes back from the geometry as it went in."""
    cos, sin = np.cos(0.3), np.sin(0.3)
    rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * [5.0, 0.7, 0.9]
    affine[:3, 3] = [-12.0, 30.5, 7.25]

    assert np.allclose(Geometry.from_ras((4, 5, 6), affine).to_ras(), affine, atol=1e-12)


def test_axial_geometry_runs_to_superior_posterior_left() -> None:
    """One step along z, y and x of an unrotated scan leads up, back and to the patient's left."""
    affine = Geometry.axial((4, 5, 6), (5.0, 0.7, 0.9)).to_ras()

    assert np.allclose(affine[:3, :3], [[0, 0, -0.9], [0, -0.7, 0], [5.0, 0, 0]])


def test_voxel_volume_is_in_millilitres() -> None:
    """A voxel of 5 x 2 x 1 mm holds 0.01 ml."""
    assert Geometry.axial((1, 1, 1), (5.0, 2.0, 1.0)).voxel_ml == pytest.approx(0.01)


def test_difference_names_another_shape() -> None:
    """Grids of different shapes differ by their shapes."""
    left, right = Geometry.axial((4, 5, 6), (5.0, 1.0, 1.0)), Geometry.axial((4, 5, 7), (5.0, 1.0, 1.0))

    assert left.difference(right) == "shape (z, y, x) (4, 5, 6) against (4, 5, 7)"


def test_difference_is_the_largest_distance_of_corners() -> None:
    """A spacing that is 0.02 mm too long puts the last of 101 slices 2 mm, or 0.4 voxels, away."""
    left, right = Geometry.axial((101, 2, 2), (5.0, 1.0, 1.0)), Geometry.axial((101, 2, 2), (5.02, 1.0, 1.0))

    assert left.difference(right) == "the grids are up to 0.4 voxels apart"
    assert left.difference(right, tolerance_voxels=0.5) is None


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (Geometry.axial((100, 512, 512), (5.0, 0.7422, 0.7422)), True),
        (Geometry.axial((100, 512, 512), (5.0, 0.7421875, 0.7421875), (0.0, 0.1, 0.1)), True),
        (Geometry.axial((100, 512, 512), (5.0, 0.7421875, 0.7421875), (0.0, 0.371, 0.371)), False),
        (Geometry.axial((100, 512, 512), (5.0, 0.7421875, 0.7421875), (2.5, 0.0, 0.0)), False),
        (Geometry.axial((100, 512, 512), (5.0, 0.75, 0.7421875)), False),
    ],
    ids=["rounded", "tenth of a mm", "half a pixel", "half a slice", "another spacing"],
)
def test_the_tolerance_is_a_quarter_of_a_voxel(other: Geometry, *, same: bool) -> None:
    """Rounded numbers are the same grid; half a voxel and another spacing are not."""
    grid = Geometry.axial((100, 512, 512), (5.0, 0.7421875, 0.7421875))

    assert (grid.difference(other) is None) == (other.difference(grid) is None) == same


@pytest.mark.parametrize("degrees", [0.2, 0.6])
@pytest.mark.parametrize("shape", [(100, 512, 512), (3, 4, 4)])
def test_another_spacing_or_angle_is_another_grid_among_few_voxels(shape: Shape, degrees: float) -> None:
    """One step tells, though it does not lead far; a turn is more than quaternions round from 0.2 degrees on."""
    grid, angle = Geometry.axial(shape, (5.0, 1.0, 1.0)), np.radians(degrees)
    turned = replace(
        grid, direction=((1.0, 0.0, 0.0), (0.0, np.cos(angle), -np.sin(angle)), (0.0, np.sin(angle), np.cos(angle)))
    )
    longer = replace(grid, spacing_mm=(5.1, 1.0, 1.0))

    assert longer.difference(grid) is not None
    assert (turned.difference(grid) is None) == (degrees == 0.2 and shape == (3, 4, 4))


def turn(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    """Return the matrix that turns by an angle in radians around an axis."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


AXES = st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)).filter(lambda axis: np.linalg.norm(axis) > 0.1)
NEARLY = st.floats(-6, -1).map(lambda exponent: 10**exponent)


@settings(max_examples=100)
@given(
    axis=AXES,
    angle=st.one_of(NEARLY, NEARLY.map(lambda angle: np.pi - angle), st.floats(0, np.pi)),
    lps=st.booleans(),
    qform_only=st.booleans(),
    pixel_mm=st.sampled_from([0.6, 0.9765625]),
)
def test_a_grid_stays_the_same_through_other_tools(
    *, axis: tuple[float, float, float], angle: float, lps: bool, qform_only: bool, pixel_mm: float
) -> None:
    """What SimpleITK writes by CopyInformation is on the grid that nibabel wrote, oblique or near 180 degrees.

    Half a voxel further is another grid.
    """
    shape = (100, 512, 512)
    affine = np.eye(4)
    affine[:3, :3] = turn(axis, angle) @ np.diag([-1.0, -1.0, 1.0] if lps else [1.0] * 3) * (pixel_mm, pixel_mm, 5.0)
    affine[:3, 3] = -150.3, 80.7, -411.1
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), affine)
    image.set_qform(affine, 1)
    image.set_sform(None if qform_only else affine, 0 if qform_only else 2)
    with TemporaryDirectory() as folder:
        written, copied = Path(folder) / "scan.nii", Path(folder) / "labels.nii"
        nib.save(image, written)
        copy = SimpleITK.Image([2, 2, 2], SimpleITK.sitkUInt8)
        copy.CopyInformation(SimpleITK.ReadImage(written))
        SimpleITK.WriteImage(copy, copied)
        # A large scan by its header: its voxels need not be written.
        scan, labels = (replace(read_grid(path)[0], shape=shape) for path in (written, copied))

    assert scan.difference(labels) is None
    z, y, x = np.array(scan.origin_mm) + np.array(scan.direction) @ (0.0, 0.5 * pixel_mm, 0.5 * pixel_mm)
    assert scan.difference(replace(scan, origin_mm=(z, y, x))) is not None


def test_axis_without_length_is_refused() -> None:
    """An affine with an empty column has no spacing."""
    with pytest.raises(ValueError, match="no length"):
        Geometry.from_ras((1, 1, 1), np.diag([1.0, 0.0, 1.0, 1.0]))
