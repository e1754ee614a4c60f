import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import FileGrid, Volume, copy_tiles


def test_file_grid_turns_arrays_both_ways() -> None:
    """A file whose axes run to Right, Inferior and Posterior becomes (z, y, x) and back."""
    grid = FileGrid(Path("scan.nii"), order=(1, 2, 0), flipped=(True, False, True), header=None)
    stored = np.arange(24).reshape(2, 3, 4)

    canonical = grid.to_canonical(stored)

    assert canonical.shape == (3, 4, 2)
    assert canonical[0, 0, 0] == stored[1, 2, 0]
    assert canonical[2, 3, 0] == stored[1, 0, 3]
    assert np.array_equal(grid.to_file(canonical), stored)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_copy_in_parts_is_the_whole_turned_array(order: tuple[int, int, int], layout: Literal["C", "F"]) -> None:
    """Whatever the file's axes and whichever lies fastest, the copy is contiguous and holds what the view shows."""
    grid = FileGrid(Path("scan.nii"), order=order, flipped=(True, False, True), header=None)
    stored = np.array(np.arange(37 * 40 * 43, dtype=np.int32).reshape(37, 40, 43), order=layout)

    copy = grid.copy_canonical(stored)

    assert copy.flags.c_contiguous
    assert np.array_equal(copy, grid.to_canonical(stored))


def test_array_must_fit_its_geometry() -> None:
    """A volume whose array has another shape than its geometry cannot be made."""
    with pytest.raises(ValueError, match="array of shape"):
        Volume(np.zeros((2, 2, 3), np.int16), Geometry.axial((2, 2, 2), (1.0, 1.0, 1.0)))


def test_volume_module_needs_no_file_libraries() -> None:
    """Importing the Volume type loads neither nibabel nor SimpleITK."""
    script = "import sys, kitsattn.volume.volume; print({'nibabel', 'SimpleITK'} & set(sys.modules))"

    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("shape", [(70, 9, 33), (1, 20, 1), (32, 8, 32)])
def test_tiles_cover_an_array(shape: tuple[int, int, int]) -> None:
    """Whatever its shape, and whichever way its axes run."""
    source = np.flip(np.arange(np.prod(shape)).reshape(shape[::-1]).T, 0)
    target = np.full(shape, -1)
    copy_tiles(target, source)
    np.testing.assert_array_equal(target, source)
