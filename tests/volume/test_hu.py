from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from kitsattn.errors import KitsattnError
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.hu import check_hu
from kitsattn.volume.nifti import read_scan
from kitsattn.volume.volume import FileGrid, Volume

Abdomen = tuple[Volume, Volume]
NOT_HU = "does not seem to be a CT scan in Hounsfield units"


def changed(abdomen: Abdomen, array: np.ndarray) -> Volume:
    """Return the abdomen's scan with other values, as if read from a file."""
    return replace(abdomen[0], array=array, source=FileGrid(Path("scan.nii.gz"), (0, 1, 2), (False,) * 3, None))


def scan_of(array: np.ndarray) -> Volume:
    """Return a scan of these values, voxels of 1 mm."""
    return Volume(array, Geometry.axial(array.shape, (1.0, 1.0, 1.0)))


@dataclass(frozen=True)
class Body:
    """A body in a field of 192 x 192 mm: an infant in a wide field, or one that fills it.

    Attributes:
        radius: Of the body, in mm.
        fat: Thickness of its fat, in mm.
        kidney, spine: HU of these.
        noise: Standard deviation in HU.
        seed: Of the noise.
    """

    radius: int
    fat: int
    kidney: int
    spine: int
    noise: int
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers of this body."""
        return np.random.default_rng(self.seed)

    def paint(self) -> np.ndarray:
        """Return HU, (z, y, x): air, fat, muscle, kidneys, bone."""
        y, x = np.indices((192, 192)) - 95.5
        distance = np.hypot(y / 0.8, x)
        hu: np.ndarray = np.full((2, 192, 192), -1000.0)
        hu[:, distance < self.radius] = -100
        hu[:, distance < max(self.radius - self.fat, self.radius / 3)] = 50
        for side in (-1, 1):
            hu[:, np.hypot(y, x - side * self.radius / 3) < self.radius / 7] = self.kidney
        hu[:, np.hypot(y - self.radius / 3, x) < self.radius / 9] = self.spine
        noisy: np.ndarray = hu + self.rng.normal(0, self.noise, hu.shape)
        return noisy


def bodies(
    fat: st.SearchStrategy[int] = st.integers(2, 20),  # noqa: B008 - it never changes
    noise: st.SearchStrategy[int] = st.sampled_from([3, 15, 40]),  # noqa: B008 - it never changes
) -> st.SearchStrategy[Body]:
    """Return bodies of all sizes."""
    kidney, spine = st.sampled_from([30, 180]), st.sampled_from([250, 700, 1100])
    return st.builds(Body, st.integers(20, 90), fat, kidney, spine, noise, st.integers(0, 99))


def whole(values: np.ndarray) -> np.ndarray:
    """Return values as a file of whole numbers holds them."""
    return np.asarray(np.rint(values), np.int16)


@settings(max_examples=40)
@given(bodies())
def test_bodies_of_all_sizes_in_all_fields_are_in_hu(body: Body) -> None:
    """Infants, lean patients, wide fields and narrow crops are judged over the body, not over the air around it."""
    scan = scan_of(whole(body.paint()))
    middle = scan_of(scan.array[:, 66:126, 56:136])

    assert check_hu(scan) is scan
    if np.mean(np.abs(middle.array + 100) < 50) > 0.02:  # a crop within muscle shows no sign of HU
        assert check_hu(middle) is middle


@settings(max_examples=40)
@given(bodies(fat=st.just(0)), st.sampled_from([-1000, -1024]))
def test_phantoms_without_fat_are_in_hu(body: Body, air: int) -> None:
    """Air, measured or of one single value, and a body of soft tissue are enough."""
    hu = whole(body.paint())
    painted = scan_of(np.where(hu < -500, air, hu).astype(np.int16))
    water = scan_of(np.where(hu < -500, air, 0).astype(np.int16))

    for scan in (scan_of(hu), painted, water):
        assert check_hu(scan) is scan


@settings(max_examples=40)
@given(bodies(noise=st.integers(3, 15)))
def test_offset_of_1024_is_corrected_in_all_fields(body: Body) -> None:
    """Unsigned CT comes back in HU, however small the body."""
    hu = whole(body.paint())

    corrected = check_hu(scan_of(np.maximum(hu + 1024, 0).astype(np.int16)))

    assert np.array_equal(corrected.array, np.maximum(hu, -1024))
    assert len(corrected.notes) == 1


@settings(max_examples=40)
@given(bodies(), st.sampled_from(["grey", "mr", "mr in padding", "z-score", "0 to 1", "offset", "twice", "tenfold"]))
def test_other_values_are_refused_in_all_fields(body: Body, kind: str) -> None:
    """Grey values, MR, normalised values and wrong offsets are no HU, however much air surrounds the body."""
    hu, rng = body.paint(), body.rng
    mr = np.abs(rng.normal(0, 15, hu.shape) + np.where(hu > -30, 350, np.where(hu > -500, 1100, 0)))
    mr *= 1 + np.arange(hu.shape[2]) / hu.shape[2]  # a coil on one side
    frame = np.zeros(hu.shape, bool)
    frame[:, 8:-8, 8:-8] = True
    values = {
        "grey": np.clip((hu + 160) / 400 * 255, 0, 255),
        "mr": mr,
        "mr in padding": np.where(frame, mr, -1000),
        "z-score": (hu - hu.mean()) / hu.std(),
        "0 to 1": (hu - hu.min()) / np.ptp(hu),
        "offset": hu + 1000,
        "twice": hu - 1024,
        "tenfold": hu * 10,
    }[kind]

    with pytest.raises(KitsattnError, match=NOT_HU):
        check_hu(scan_of(values.astype(np.float32) if kind in {"z-score", "0 to 1"} else whole(values)))


def test_who_knows_better_is_believed(abdomen: Abdomen) -> None:
    """Values that are assumed to be HU stay as they are, and a note says that nobody checked."""
    stored = abdomen[0].array + np.int16(1024)

    scan = check_hu(changed(abdomen, stored), assume=True)

    assert scan.array is stored
    assert scan.notes == ("The values were taken as HU without a check (--assume-hu).",)


def test_scan_in_hu_passes_as_it_is(abdomen: Abdomen) -> None:
    """A CT in HU is returned itself, without a note."""
    assert check_hu(abdomen[0]) is abdomen[0]


@pytest.mark.parametrize("padding", [-1024, -2000, -2048, -3024, -32768])
def test_padding_outside_the_field_of_view_is_normal(abdomen: Abdomen, padding: int) -> None:
    """Scanners fill the corners with values far below air."""
    scan = changed(abdomen, np.where(abdomen[0].array < -900, padding, abdomen[0].array).astype(np.int16))

    assert check_hu(scan) is scan


@pytest.mark.parametrize("padding", [-2000, -2048])
def test_padding_that_was_resampled_is_no_air(abdomen: Abdomen, padding: int) -> None:
    """Splines lead to many values around padding; the one value of padding is still the most frequent by far."""
    array = abdomen[0].array.astype(np.float32)
    y, x = np.indices(array.shape[1:])
    array[:, np.hypot(y - 29.5, x - 39.5) > 29] = padding
    resampled = ndimage.zoom(array, (1, 1.3, 1.3), order=3)

    scan = scan_of(np.rint(resampled).astype(np.int16))
    assert np.unique(scan.array[(scan.array > padding - 90) & (scan.array < padding + 90)]).size > 30
    assert check_hu(scan) is scan


def test_an_offset_subtracted_twice_is_named(abdomen: Abdomen) -> None:
    """Air lies around -2024 then, with its noise."""
    with pytest.raises(KitsattnError, match=r"air seems to be around -2024, .* subtracted twice"):
        check_hu(changed(abdomen, abdomen[0].array - np.int16(1024)))


@pytest.mark.parametrize("offset", [0, 1024])
def test_padding_does_not_count_as_evidence(abdomen: Abdomen, offset: int) -> None:
    """A small scan in a large field of padding is judged by what was measured."""
    wide = np.pad(abdomen[0].array + np.int16(offset), ((0, 0), (120, 120), (160, 160)), constant_values=-2000)

    checked = check_hu(Volume(wide, replace(abdomen[0].geometry, shape=wide.shape)))

    assert np.array_equal(checked.array[:, 120:180, 160:240], np.maximum(abdomen[0].array, -1024 if offset else -2000))


def test_cropped_and_windowed_scans_pass(abdomen: Abdomen) -> None:
    """Without any air, and clipped to a soft-tissue window, a CT still has its fat."""
    inside = abdomen[0].array[:, 15:40, 20:60]

    assert check_hu(Volume(inside, replace(abdomen[0].geometry, shape=inside.shape))).notes == ()
    assert check_hu(changed(abdomen, np.clip(abdomen[0].array, -160, 240))).notes == ()
    assert check_hu(changed(abdomen, abdomen[0].array.astype(np.float32))).notes == ()


@pytest.mark.parametrize("padding", [None, 0, -2000])
def test_offset_of_1024_is_mended_and_noted(abdomen: Abdomen, padding: int | None) -> None:
    """Unsigned CT, with or without padding, comes back in HU with a note; padding becomes air."""
    hu = abdomen[0].array
    stored = hu + np.int16(1024)
    expected = hu.copy()
    if padding is not None:
        stored[:, :4] = padding
        expected[:, :4] = -1024

    fixed = check_hu(changed(abdomen, stored))

    assert fixed.notes == ("The values had an offset of 1024; it was subtracted to get HU.",)
    assert fixed.array.dtype == np.int16
    assert np.array_equal(fixed.array, np.maximum(expected, -1024))
    assert check_hu(fixed) is fixed


def test_offset_that_is_not_certain_is_refused(abdomen: Abdomen) -> None:
    """An offset of 1000, or one of 1024 without any air to show it, or of real numbers, is not guessed at."""
    hu = abdomen[0].array
    inside = hu[:, 15:40, 20:60] + np.int16(1024)
    for scan in (
        changed(abdomen, np.maximum(hu + np.int16(1000), 0)),
        Volume(inside, replace(abdomen[0].geometry, shape=inside.shape)),
        changed(abdomen, (hu + 1024.0).astype(np.float32)),
    ):
        with pytest.raises(KitsattnError, match=f"{NOT_HU} \\(soft tissue seems to be around 1024"):
            check_hu(scan)


def test_wide_spread_around_1024_is_no_offset(abdomen: Abdomen) -> None:
    """Tissue from 300 to 1700 beside dark air is MR, though part of it lies where offset CT would."""
    hu = abdomen[0].array
    spread = np.random.default_rng(3).integers(300, 1700, hu.shape)
    mr = np.where(hu < -500, hu + 1024, spread).astype(np.int16)

    with pytest.raises(KitsattnError, match="this is not certain"):
        check_hu(changed(abdomen, mr))


def test_grey_values_are_refused(abdomen: Abdomen) -> None:
    """A scan mapped into 0..255 is named as that."""
    grey = np.clip((abdomen[0].array + 200) // 2, 0, 255).astype(np.int16)

    with pytest.raises(
        KitsattnError, match=rf"scan\.nii\.gz {NOT_HU} \(the values run from 0 to 217, as grey values do"
    ):
        check_hu(changed(abdomen, grey))


@pytest.mark.parametrize("kind", ["mr", "z-score", "twice subtracted", "only air", "only padding"])
def test_other_values_are_refused(abdomen: Abdomen, kind: str) -> None:
    """MR, normalised values, an offset that was subtracted twice, and emptiness are no CT."""
    hu = abdomen[0].array.astype(np.float32)
    values = {
        "mr": np.maximum(hu + 1000, 0) ** 0.9 * (1 + np.arange(80) / 40),
        "z-score": (hu - hu.mean()) / hu.std(),
        "twice subtracted": hu - 1024,
        "only air": np.full_like(hu, -1000),
        "only padding": np.full_like(hu, -2000),
    }[kind]

    with pytest.raises(KitsattnError, match=NOT_HU):
        check_hu(changed(abdomen, values.astype(np.float32 if kind == "z-score" else np.int16)))


@pytest.mark.parametrize("rows", [slice(None), slice(25, 70)])
def test_real_scan_passes_and_its_offset_is_mended(test_data: Path, rows: slice) -> None:
    """A real CT is in HU, whole or cropped; with 1024 added the whole one is fixed exactly."""
    scan = read_scan(test_data / "totalsegmentator-example-ct.nii.gz")
    array = scan.array[:, rows]
    part = Volume(array, replace(scan.geometry, shape=array.shape))

    assert check_hu(part) is part
    fixed = check_hu(part.with_array(part.array + np.int16(1024)))
    assert np.array_equal(fixed.array, np.maximum(part.array, -1024))
