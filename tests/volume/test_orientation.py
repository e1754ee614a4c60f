from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from kitsattn.errors import KitsattnError
from kitsattn.volume.orientation import canonical_grid, file_affine, layout

PATH = Path("scan.nii.gz")
ALL_AXES = ["".join(codes) for order in permutations(("SI", "PA", "LR")) for codes in product(*order)]


@given(
    axes=st.sampled_from(ALL_AXES),
    angles=st.tuples(*[st.floats(-20, 20)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 6)] * 3),
)
def test_every_layout_keeps_every_voxel_in_its_place(
    axes: str, angles: tuple[float, float, float], spacing: tuple[float, float, float]
) -> None:
    """In all 48 axis orders, oblique or not, a voxel has the same world position before and after turning."""
    grid = layout(axes, PATH)
    shape = (3, 4, 5)
    codes = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    affine = np.eye(4)
    directions = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.array([codes[c] for c in axes]).T
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = [7.0, -3.0, 11.0]

    found, geometry = canonical_grid(shape, affine, PATH, None)

    assert (found.order, found.flipped) == (grid.order, grid.flipped)
    indices = np.moveaxis(np.indices(shape), 0, -1)
    stored = indices @ affine[:3, :3].T + affine[:3, 3]
    canonical = np.stack([found.to_canonical(stored[..., axis]) for axis in range(3)], axis=-1)
    turned = np.moveaxis(np.indices(geometry.shape), 0, -1) @ geometry.to_ras()[:3, :3].T + geometry.to_ras()[:3, 3]
    assert np.allclose(turned, canonical, atol=1e-9)
    assert np.allclose(file_affine(geometry, found), affine, atol=1e-9)


def test_slightly_rounded_axes_pass_and_sheared_axes_are_refused() -> None:
    """A cosine of 0.001 between two axes is rounding, one of 0.05 is a gantry tilt."""
    affine = np.eye(4)
    affine[0, 1] = 0.001
    canonical_grid((2, 2, 2), affine, PATH, None)
    affine[0, 1] = 0.05

    with pytest.raises(KitsattnError, match=r"scan\.nii\.gz has a sheared affine \(cosine 0\.0499"):
        canonical_grid((2, 2, 2), affine, PATH, None)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ((1, 1), 101.0, r"has an axis of 3\.03 m, longer than any scanner: fix the spacing in its header"),
        ((1, 1), 1e300, "has a spacing of 1 x inf x 1 mm"),
        ((1, 3), -2e6, r"has its origin at \(0, -2e\+06, 0\) mm, farther than 1 km"),
    ],
)
def test_grids_of_no_scanner_are_refused(place: tuple[int, int], value: float, told: str) -> None:
    """Resampled, an axis of a kilometre would fill the memory; far away, voxels are no longer told apart."""
    affine = np.eye(4)
    affine[place] = value

    with pytest.raises(KitsattnError, match=told):
        canonical_grid((30, 30, 30), affine, PATH, None)


@pytest.mark.parametrize("axes", ["RAR", "RA", "RAX", "ras"])
def test_axes_must_name_each_direction_once(axes: str) -> None:
    """Axes that leave a direction out, or name an unknown one, are refused."""
    with pytest.raises(ValueError, match="axes must name"):
        layout(axes, PATH)
