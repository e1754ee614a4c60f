"""What was lost before a scan came here is found, and nothing where nothing was."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from scipy import ndimage

from kitsattn.volume.cuts import note_cuts
from kitsattn.volume.hu import check_hu
from kitsattn.volume.nifti import read_scan
from kitsattn.volume.volume import Volume

Abdomen = tuple[Volume, Volume]
CUT, ZERO, FILLED = "cut off at", "0 HU stands for air", "filled in by resampling"


def notes_of(scan: Volume, array: np.ndarray) -> tuple[str, ...]:
    """Return what is noted of a scan with other values, which is taken for HU."""
    return note_cuts(check_hu(replace(scan, array=array, geometry=replace(scan.geometry, shape=array.shape)))).notes


def with_bone(abdomen: Abdomen) -> np.ndarray:
    """Return HU of the abdomen with a spine of 300 to 900 HU."""
    hu: np.ndarray = abdomen[0].array.copy()
    spine = hu[:, 30:36, 38:44]
    spine[:] = np.random.default_rng(0).normal(600, 120, spine.shape)
    return hu


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_whole_scans_have_no_notes(abdomen: Abdomen, dtype: type) -> None:
    """Air, a crop without air, padding, and a scanner's own limits are no loss."""
    hu: np.ndarray = with_bone(abdomen).astype(dtype)

    for whole in (hu, hu[:, 15:40, 20:60], np.where(hu < -900, -2000, hu), np.clip(hu, -1024, 3071)):
        assert notes_of(abdomen[0], whole.astype(dtype)) == ()


@pytest.mark.parametrize(
    ("window", "named"),
    [
        ((-160, 240), "cut off at -160 and 240 HU"),
        ((-200, 300), "cut off at -200 and 300 HU"),
        ((-500, 3000), "cut off at -500 HU"),
        ((-1000, 400), "cut off at 400 HU"),
        ((-99.7, 250.4), "cut off at -100 and 250 HU"),
    ],
)
def test_a_window_is_named(abdomen: Abdomen, window: tuple[float, float], named: str) -> None:
    """Values that were clipped for display end in a plateau, whatever the window and the field around the body."""
    cut = np.clip(with_bone(abdomen).astype(np.float32), *window)
    wide = np.pad(cut, ((0, 0), (60, 60), (60, 60)), mode="edge")

    for array in (cut, wide):
        (note,) = notes_of(abdomen[0], array)
        assert named in note


@pytest.mark.parametrize("order", [1, 3])
def test_a_window_is_found_after_another_resampling(abdomen: Abdomen, order: Literal[1, 3]) -> None:
    """Splines ring beyond the window; the plateau stays."""
    cut = np.clip(with_bone(abdomen), -160, 3000).astype(np.float32)

    (note,) = notes_of(abdomen[0], ndimage.zoom(cut, (1, 1.7, 1.7), order=order))

    assert f"{CUT} -160 HU" in note


@pytest.mark.parametrize("margin", [0, 150])
def test_air_of_0_is_named(abdomen: Abdomen, margin: int) -> None:
    """A masked scan holds tissue's value around the body, however wide its field."""
    hu = np.where(abdomen[0].array < -500, 0, abdomen[0].array)
    wide = np.pad(hu, ((0, 0), (margin, margin), (margin, margin)))

    (note,) = notes_of(abdomen[0], wide.astype(np.int16))

    assert ZERO in note


@pytest.mark.parametrize(("value", "named"), [(0, ZERO), (-300, FILLED), (40, FILLED)])
def test_what_turning_filled_in_is_named(abdomen: Abdomen, value: int, named: str) -> None:
    """Corners that a turned scan has from elsewhere are a plateau at the edges of the slices."""
    turned = ndimage.rotate(abdomen[0].array, 12, axes=(1, 2), reshape=False, order=1, cval=value)

    (note,) = notes_of(abdomen[0], turned)

    assert named in note
    assert str(value) in note


def test_real_scan_is_whole_until_it_is_cut(test_data: Path) -> None:
    """A real CT has no notes; clipped to -160 to 240 HU it has."""
    scan = read_scan(test_data / "totalsegmentator-example-ct.nii.gz")

    assert note_cuts(scan) is scan
    assert "-160 and 240 HU" in note_cuts(scan.with_array(np.clip(scan.array, -160, 240))).notes[0]
