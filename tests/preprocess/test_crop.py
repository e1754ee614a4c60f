from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kitsattn.phantom.fit import fit_to_field, height_of_kidneys
from kitsattn.phantom.outline import Outline, direction_bins
from kitsattn.phantom.paint import paint
from kitsattn.phantom.patient import draw_patient
from kitsattn.preprocess.crop import body_box
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import read_scan
from kitsattn.volume.volume import Volume

Abdomen = tuple[Volume, Volume]


def test_box_holds_the_body_and_its_margin_but_no_table(abdomen: Abdomen) -> None:
    """The body's voxels cover rows 8 to 47 and columns 11 to 69; 10 mm are three voxels of 4 mm; the table is at 52."""
    assert body_box(abdomen[0]) == (5, 51, 8, 73)


def test_thin_table_that_touches_the_body_is_left_out(abdomen: Abdomen) -> None:
    """A shell of 4 mm right under the body, as wide as the picture, moves the box by its 4 mm and not to the sides."""
    scan = abdomen[0].array.copy()
    scan[:, 48] = 200

    assert body_box(abdomen[0].with_array(scan)) == (5, 52, 8, 73)


def test_box_is_the_same_on_a_finer_grid(abdomen: Abdomen) -> None:
    """Four times as many rows and twice as many columns give the same box in mm, to a coarse sample."""
    scan, _ = abdomen
    fine = scan.array.repeat(4, axis=1).repeat(2, axis=2)
    volume = Volume(fine, Geometry.axial(fine.shape, (5.0, 1.0, 2.0)))

    box = np.array(body_box(volume)) * [1, 1, 2, 2]

    assert np.abs(box - np.array(body_box(scan)) * 4).max() <= 6


def test_body_that_reaches_the_edge_is_kept_to_the_edge(abdomen: Abdomen) -> None:
    """A field of view smaller than the body is not cropped."""
    inside = abdomen[0].array[:, 15:40, 20:60]

    assert body_box(Volume(inside, replace(abdomen[0].geometry, shape=inside.shape))) == (0, 25, 0, 40)


def test_arms_beside_the_body_are_kept(abdomen: Abdomen) -> None:
    """A part a tenth as large as the body is no table."""
    scan = abdomen[0].array.copy()
    scan[:, 20:40, 72:80] = 40

    assert body_box(abdomen[0].with_array(scan))[3] == 80


def test_scan_without_a_body_keeps_its_slices(abdomen: Abdomen) -> None:
    """Where nothing is found nothing is cut."""
    assert body_box(abdomen[0].with_array(np.full_like(abdomen[0].array, -1000))) == (0, 60, 0, 80)


@pytest.mark.parametrize("seed", range(8))
def test_known_body_of_a_phantom_is_never_cut(seed: int) -> None:
    """No voxel inside the skin that a phantom was painted with lies outside the box, which leaves most air out."""
    shape, spacing_mm = (12, 190, 210), (9.0, 2.4, 2.4)
    patient = fit_to_field(draw_patient(seed), shape[2] * spacing_mm[2])
    outline = Outline(patient)
    # The painter's field of view is centred on the height of the kidneys and 6 mm behind the axis of the trunk.
    middle_mm = (height_of_kidneys(patient, shape[0] * spacing_mm[0]), 6.0, 0.0)
    z_mm, y_mm, x_mm = (
        middle + step * (np.arange(count) - (count - 1) / 2)
        for middle, step, count in zip(middle_mm, spacing_mm, shape, strict=True)
    )
    rows, columns = np.meshgrid(y_mm, x_mm, indexing="ij")
    body = np.stack([np.hypot(rows, columns) < outline.layers(z).skin[direction_bins(rows, columns)] for z in z_mm])
    scan, _ = paint(draw_patient(seed), shape, spacing_mm)
    assert scan.array[body].mean() > -150
    assert np.mean(scan.array[~body] < -900) > 0.8

    y0, y1, x0, x1 = body_box(scan)

    kept = body.copy()
    body[:, y0:y1, x0:x1] = False
    assert not body.any()
    assert (y1 - y0) * (x1 - x0) < 1.8 * kept.any(axis=0).sum()


@pytest.mark.parametrize("border", [0, 30])
def test_real_body_is_never_cut(test_data: Path, border: int) -> None:
    """All soft tissue of a real CT, surrounded by more air, lies in the box, which leaves most of that air out."""
    scan = read_scan(test_data / "totalsegmentator-example-ct.nii.gz")
    padded = np.pad(scan.array, ((0, 0), (border,) * 2, (border,) * 2), constant_values=-1000)
    volume = Volume(padded, replace(scan.geometry, shape=padded.shape))

    y0, y1, x0, x1 = body_box(volume)

    outside = padded > -200
    outside[:, y0:y1, x0:x1] = False
    assert outside.sum() == 0
    assert min(y0, x0) >= border - 10 // 3 - 1
