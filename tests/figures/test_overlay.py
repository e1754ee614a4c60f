from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from kitsattn.figures.overlay import _axial_view, _coronal_view, overlay_sheet
from kitsattn.figures.slices import choose_slices
from kitsattn.files import write_bytes
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume

SHAPE = (40, 60, 80)
SPACING_MM = (5.0, 2.0, 2.0)
KIDNEY_BLUE, TUMOUR_ORANGE = (0x56, 0xB4, 0xE9), (0xF2, 0x6B, 0x1D)
HEADER_PIXELS = 125


@pytest.fixture
def scan() -> Volume:
    """Soft tissue all over, 200 x 120 x 160 mm, with voxels 2.5 times as deep as wide."""
    return Volume(np.full(SHAPE, 40, dtype=np.int16), Geometry.axial(SHAPE, SPACING_MM))


def ball(centre_mm: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    """Return the mask of a ball around a point given as z, y, x."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    distances = [index * step - c for index, step, c in zip((z, y, x), SPACING_MM, centre_mm, strict=True)]
    return np.asarray(sum(distance**2 for distance in distances) <= radius_mm**2)


def find(path: Path, colour: tuple[int, int, int], tolerance: int = 12) -> tuple[np.ndarray, np.ndarray, float]:
    """Return rows and columns of the pixels of one colour, in units of the sheet's three columns, and the height."""
    pixels = np.round(imread(path)[..., :3] * 255).astype(int)
    near = np.abs(pixels - colour).max(axis=-1) <= tolerance
    near[:HEADER_PIXELS] = False
    rows, columns = np.nonzero(near)
    return rows, columns / (pixels.shape[1] / 3), float(pixels.shape[0])


def find_coronal(
    path: Path, colour: tuple[int, int, int], labels: np.ndarray, tolerance: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same rows and columns of the coronal view alone, which is the last in a sheet of two rows."""
    rows, columns, height = find(path, colour, tolerance)
    column = len(choose_slices([labels], Geometry.axial(SHAPE, SPACING_MM)).axial) % 3
    coronal = (rows > height / 2) & (np.floor(columns) == column)
    return rows[coronal], columns[coronal]


def test_patient_right_is_on_the_left_and_superior_on_top(tmp_path: Path, scan: Volume) -> None:
    """A tumour at the upper pole of the right kidney is left in every panel, and on top in the coronal one."""
    labels = np.where(ball((100, 60, 45), 30) | ball((100, 60, 115), 30), 1, 0).astype(np.uint8)
    labels[ball((118, 60, 45), 10)] = 2

    write_bytes(tmp_path / "sheet.png", overlay_sheet(scan, labels, None, title="a case"))

    _, columns, _ = find(tmp_path / "sheet.png", TUMOUR_ORANGE)
    assert len(columns) > 100
    assert np.all(columns % 1 < 0.5)
    kidney_rows, _ = find_coronal(tmp_path / "sheet.png", KIDNEY_BLUE, labels)
    tumour_rows, _ = find_coronal(tmp_path / "sheet.png", TUMOUR_ORANGE, labels)
    assert tumour_rows.mean() < (kidney_rows.min() + kidney_rows.max()) / 2


def test_scan_lies_under_the_outlines(tmp_path: Path) -> None:
    """Bright tissue at the upper right of the patient is drawn where the outline of the same voxels is."""
    lesion = ball((130, 60, 45), 25)
    kidneys = (lesion | ball((70, 60, 115), 25)).astype(np.uint8)
    scan = Volume(np.where(lesion, 1000, 0).astype(np.int16), Geometry.axial(SHAPE, SPACING_MM))

    write_bytes(tmp_path / "sheet.png", overlay_sheet(scan, kidneys, None, title="a case"))

    _, columns, _ = find(tmp_path / "sheet.png", (255, 255, 255), tolerance=2)
    assert len(columns) > 1000
    assert np.all(columns % 1 < 0.5)
    white_rows, _ = find_coronal(tmp_path / "sheet.png", (255, 255, 255), kidneys, tolerance=2)
    kidney_rows, _ = find_coronal(tmp_path / "sheet.png", KIDNEY_BLUE, kidneys)
    assert white_rows.max() < (kidney_rows.min() + kidney_rows.max()) / 2


def test_captions_give_places_in_the_patient() -> None:
    """Slices are counted from 1, and their centres are given in mm along the patient's axes."""
    scan = Volume(np.zeros((4, 3, 5), np.int16), Geometry.axial((4, 3, 5), SPACING_MM, (-100.0, 30.0, 7.0)))
    slices = choose_slices([], scan.geometry)

    assert _axial_view(scan, [], slices, 3).caption == "axial 4 of 4,  z = -85.0 mm"
    assert _coronal_view(scan, [], slices).caption == "coronal 2 of 3,  y = 32.0 mm"


def test_anisotropic_voxels_keep_their_shape(tmp_path: Path, scan: Volume) -> None:
    """A ball is as high as wide in the coronal view, though it has 2.5 times fewer slices than columns."""
    labels = ball((100, 60, 80), 40).astype(np.uint8)

    write_bytes(tmp_path / "sheet.png", overlay_sheet(scan, labels, None, title="a case"))

    rows, columns = find_coronal(tmp_path / "sheet.png", KIDNEY_BLUE, labels)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns) * 500, rel=0.07)


def test_reference_has_colours_of_its_own(tmp_path: Path, scan: Volume) -> None:
    """The prediction's colours do not appear where there is only a reference."""
    labels = ball((100, 60, 80), 40).astype(np.uint8) * 2

    write_bytes(tmp_path / "sheet.png", overlay_sheet(scan, None, labels, title="a case"))

    assert len(find(tmp_path / "sheet.png", TUMOUR_ORANGE)[0]) == 0
    assert len(find(tmp_path / "sheet.png", (0xFF, 0xE1, 0x4D))[0]) > 100


def test_empty_label_maps_are_named_as_such(tmp_path: Path, scan: Volume) -> None:
    """A scan in which no kidney was found is shown all the same, and the sheet says so."""
    write_bytes(tmp_path / "sheet.png", overlay_sheet(scan, np.zeros(SHAPE, np.uint8), None, title="case_00072"))

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.info["Title"] == "case_00072: no kidney found"
    assert len(find(tmp_path / "sheet.png", KIDNEY_BLUE)[0]) == 0


def test_scan_without_label_maps_is_shown_as_it_is(tmp_path: Path, scan: Volume) -> None:
    """Where nothing was looked for, nothing is said of what was found; a title is plain text, not a formula."""
    write_bytes(tmp_path / "sheet.png", overlay_sheet(scan, None, None, title=r"$\frac$ {b}", note="SYNTHETIC phantom"))

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.info["Title"] == r"$\frac$ {b}"
        assert sheet.info["Description"] == "SYNTHETIC phantom"


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 1, 1), (7, 1, 30)])
def test_smallest_volumes_are_drawn(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """A label map that fills the whole scan, a single slice and a single row are no special cases."""
    scan = Volume(np.zeros(shape, np.float32), Geometry.axial(shape, SPACING_MM))

    write_bytes(
        tmp_path / "sheet.png",
        overlay_sheet(scan, np.ones(shape, np.uint8), np.full(shape, 2, np.uint8), title="small"),
    )

    assert len(find(tmp_path / "sheet.png", KIDNEY_BLUE)[0]) > 0


def test_label_map_of_another_shape_is_refused(tmp_path: Path, scan: Volume) -> None:
    """Nothing is drawn, and no file is left behind."""
    with pytest.raises(ValueError, match=r"a reference label map of shape \(2, 2, 2\) on a scan of shape"):
        write_bytes(tmp_path / "sheet.png", overlay_sheet(scan, None, np.zeros((2, 2, 2), np.uint8), title="a case"))

    assert list(tmp_path.iterdir()) == []


def test_cysts_have_an_outline_of_their_own(tmp_path: Path, scan: Volume) -> None:
    """A cyst is outlined in its colour; where there is none, that colour does not appear."""
    kidney = ball((100, 60, 80), 40).astype(np.uint8)
    cyst = np.where(ball((100, 60, 80), 20), 3, kidney).astype(np.uint8)

    write_bytes(tmp_path / "cyst.png", overlay_sheet(scan, cyst, None, title="a case"))
    write_bytes(tmp_path / "kidney.png", overlay_sheet(scan, kidney, None, title="a case"))

    assert len(find(tmp_path / "cyst.png", (0x2F, 0xD6, 0xA0))[0]) > 100
    assert len(find(tmp_path / "cyst.png", TUMOUR_ORANGE)[0]) == 0
    assert len(find(tmp_path / "kidney.png", (0x2F, 0xD6, 0xA0))[0]) == 0
