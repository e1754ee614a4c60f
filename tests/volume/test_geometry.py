import numpy as np
import pytest

from kitsattn.volume.geometry import Geometry


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
    """A spacing that is 0.1 mm too long puts the last of 11 slices 1 mm away."""
    left, right = Geometry.axial((11, 2, 2), (5.0, 1.0, 1.0)), Geometry.axial((11, 2, 2), (5.1, 1.0, 1.0))

    assert left.difference(right) == "the grids lie up to 1 mm apart"
    assert left.difference(right, tolerance_mm=1.5) is None


def test_axis_without_length_is_refused() -> None:
    """An affine with an empty column has no spacing."""
    with pytest.raises(ValueError, match="no length"):
        Geometry.from_ras((1, 1, 1), np.diag([1.0, 0.0, 1.0, 1.0]))
