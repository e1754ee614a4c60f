from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from PIL import Image

from kitsattn.figures.overlay import COMPACT_SIZE, LABELLED
from kitsattn.files import write_bytes
from kitsattn.preprocess.preview import draw_preview

SHAPE = (30, 90, 120)
SPACING_MM = (4.0, 2.5, 2.5)


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    """Soft tissue with noise, two kidneys, and in the right one a tumour above a cyst."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:24, 40:60, 20:40] = 1
    labels[6:24, 40:60, 80:100] = 1
    labels[10:20, 50, 18:42] = 1
    labels[16:22, 44:56, 24:36] = 2
    labels[8:12, 44:56, 24:36] = 3
    scan = np.rint(np.random.default_rng(3).normal(40, 20, SHAPE)).astype(np.int16)
    return scan, labels


def count(path: Path, colour: str, part: tuple[slice, slice] = (slice(40, None), slice(None))) -> int:
    """Return how many pixels below the header are about as `colour` says; WebP blurs thin lines."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[part]
    wanted = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=-1) <= 45).sum())


def test_preview_is_a_small_picture_of_one_size(tmp_path: Path, case: tuple[np.ndarray, np.ndarray]) -> None:
    """All previews have the size that the page keeps room for, and 210 of them fit into one page."""
    for name, rows, columns in (("tall", slice(None), slice(20, 100)), ("wide", slice(30, 70), slice(None))):
        scan, labels = case[0][:, rows, columns], case[1][:, rows, columns]
        write_bytes(tmp_path / f"{name}.webp", draw_preview(scan, labels, spacing_mm=SPACING_MM, case_id=name))
        with Image.open(tmp_path / f"{name}.webp") as picture:
            assert (picture.format, picture.size) == ("WEBP", COMPACT_SIZE)
        assert (tmp_path / f"{name}.webp").stat().st_size < 80_000


def test_each_class_has_a_colour_of_its_own(tmp_path: Path, case: tuple[np.ndarray, np.ndarray]) -> None:
    """Kidney, tumour and cyst are outlined where they are labelled, and only there."""
    scan, labels = case
    write_bytes(tmp_path / "all.webp", draw_preview(scan, labels, spacing_mm=SPACING_MM, case_id="a"))
    write_bytes(
        tmp_path / "kidneys.webp",
        draw_preview(scan, (labels != 0).astype(np.uint8), spacing_mm=SPACING_MM, case_id="a"),
    )

    for colour in (LABELLED.kidney_colour, LABELLED.tumour_colour, LABELLED.cyst_colour):
        assert count(tmp_path / "all.webp", colour) > 100
    assert count(tmp_path / "kidneys.webp", LABELLED.kidney_colour) > 100
    for colour in (LABELLED.tumour_colour, LABELLED.cyst_colour):
        assert count(tmp_path / "kidneys.webp", colour) < 10


def test_coronal_view_has_superior_on_top(tmp_path: Path, case: tuple[np.ndarray, np.ndarray]) -> None:
    """In the last of the four panels the tumour lies above the cyst, on the left, as in the radiologist's view."""
    scan, labels = case
    write_bytes(tmp_path / "a.webp", draw_preview(scan, labels, spacing_mm=SPACING_MM, case_id="a"))

    width, height = COMPACT_SIZE
    upper, lower = slice(height // 2 + 30, height * 3 // 4 + 10), slice(height * 3 // 4 + 10, None)
    left = slice(width // 2, width * 3 // 4)
    assert count(tmp_path / "a.webp", LABELLED.tumour_colour, (upper, left)) > 30
    assert count(tmp_path / "a.webp", LABELLED.cyst_colour, (upper, left)) < 5
    assert count(tmp_path / "a.webp", LABELLED.cyst_colour, (lower, left)) > 30


def test_only_the_slices_that_are_drawn_are_read(tmp_path: Path, case: tuple[np.ndarray, np.ndarray]) -> None:
    """Three axial slices and one row of every slice: a stored scan is never unpacked as a whole."""
    scan, labels = case
    asked: list[Any] = []

    class Stored:
        shape = SHAPE

        def __getitem__(self, key: Any) -> np.ndarray:
            asked.append(key)
            return np.asarray(scan[key])

    draw_preview(Stored(), labels, spacing_mm=SPACING_MM, case_id="a")  # type: ignore[arg-type]

    # The first of the equally wide slices of the tumour, of the right kidney and of the left one; then the widest row.
    assert asked == [16, 10, 6, (slice(None), 50)]


def test_stored_cases_give_the_same_preview(tmp_path: Path, case: tuple[np.ndarray, np.ndarray]) -> None:
    """Packed arrays, as prepared cases are stored, need not be unpacked first."""
    scan, labels = (blosc2.asarray(array, chunks=(8, *SHAPE[1:]), blocks=(1, *SHAPE[1:])) for array in case)

    write_bytes(tmp_path / "plain.webp", draw_preview(*case, spacing_mm=SPACING_MM, case_id="a"))
    write_bytes(tmp_path / "stored.webp", draw_preview(scan, labels, spacing_mm=SPACING_MM, case_id="a"))

    assert (tmp_path / "plain.webp").read_bytes() == (tmp_path / "stored.webp").read_bytes()


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 1, 1), (3, 40, 30)])
def test_smallest_cases_without_labels_are_drawn(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """A single slice, a single voxel and a case in which nothing is labelled are no special cases."""
    scan, labels = np.zeros(shape, np.int16), np.zeros(shape, np.uint8)

    write_bytes(tmp_path / "a.webp", draw_preview(scan, labels, spacing_mm=SPACING_MM, case_id=r"$\frac$ {b}"))

    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.size[0] == COMPACT_SIZE[0]


@pytest.mark.parametrize("case_id", ["\u75c5\u4f8b \U0001f9e0", "case\x01"], ids=["no glyph", "control character"])
def test_any_name_can_be_written(tmp_path: Path, case: tuple[np.ndarray, np.ndarray], case_id: str) -> None:
    """Letters that the font lacks become boxes, without a warning."""
    write_bytes(tmp_path / "a.webp", draw_preview(*case, spacing_mm=SPACING_MM, case_id=case_id))

    assert (tmp_path / "a.webp").stat().st_size > 0


def test_labels_of_another_shape_are_refused(tmp_path: Path, case: tuple[np.ndarray, np.ndarray]) -> None:
    """Nothing is drawn, and no file is left behind."""
    with pytest.raises(ValueError, match=r"labels of shape \(29, 90, 120\) on a scan of shape \(30, 90, 120\)"):
        write_bytes(tmp_path / "a.webp", draw_preview(case[0], case[1][1:], spacing_mm=SPACING_MM, case_id="a"))

    assert list(tmp_path.iterdir()) == []
