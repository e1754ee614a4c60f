import gzip
import hashlib
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from kitsattn.datasets.find import find_dataset
from kitsattn.errors import KitsattnError
from kitsattn.jobs import Workers
from kitsattn.labels import BACKGROUND, CYST, KIDNEY, TUMOUR
from kitsattn.phantom.grid import Grid
from kitsattn.phantom.kidneys import DrawnKidneys
from kitsattn.phantom.paint import paint, paint_around, write_cohort, write_painted
from kitsattn.phantom.patient import Patient, Phase, draw_patient, tissue_hu
from kitsattn.phantom.slices import Scene
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import read_labels, read_scan, write_nifti
from kitsattn.volume.volume import Volume

SHAPE, SPACING_MM = (44, 124, 130), (5.0, 2.9, 2.7)
SMALL_SHAPE, SMALL_SPACING_MM = (12, 60, 56), (17.0, 5.5, 6.0)


@pytest.fixture(scope="module")
def painted() -> tuple[Volume, Volume]:
    """A whole abdomen and its labels."""
    return paint(draw_patient(3, phase="portal"), SHAPE, SPACING_MM)


def average_adult(phase: Phase) -> Patient:
    """A lean patient of average size, on whom organs lie at the anatomical places, without noise."""
    return replace(
        draw_patient(12, phase=phase), frame=1.0, visceral_mm=0.0, subcutaneous_mm=20.0, age=35.0, noise_hu=0.0
    )


def around(patient: Patient, place_mm: tuple[float, float, float]) -> float:
    """Mean HU within 2 mm of a place in body coordinates."""
    z, y, x = place_mm
    grid = Grid.starting_at((z, y - 2.0, x - 2.0), (1, 5, 5), (1.0, 1.0, 1.0))
    hu, _ = Scene(patient, grid, DrawnKidneys(patient, grid)).paint_slice(0)
    return float(hu.mean())


def checksum(*volumes: Volume) -> str:
    """SHA-256 of the voxels."""
    digest = hashlib.sha256()
    for volume in volumes:
        digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


def test_equal_seeds_give_equal_voxels_and_other_seeds_other_ones() -> None:
    """The same recipe gives the same bytes; another seed does not."""
    first, again, other = (checksum(*paint(draw_patient(seed), SMALL_SHAPE, SMALL_SPACING_MM)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_slice_does_not_depend_on_what_else_is_painted() -> None:
    """A slice painted alone, after others or from a block of the grid is the same."""
    patient = draw_patient(4)
    whole = Grid.starting_at((-60.0, -150.0, -160.0), (24, 100, 107), (5.0, 3.0, 3.0))
    scene = Scene(patient, whole, DrawnKidneys(patient, whole))
    forwards = [scene.paint_slice(index) for index in range(24)]
    backwards = [scene.paint_slice(index) for index in reversed(range(24))][::-1]
    fresh = Scene(patient, whole, DrawnKidneys(patient, whole)).paint_slice(17)
    for one, other in ((forwards, backwards), (forwards[17:18], [fresh])):
        for (scan, labels), (scan_again, labels_again) in zip(one, other, strict=True):
            np.testing.assert_array_equal(scan, scan_again)
            np.testing.assert_array_equal(labels, labels_again)


def test_voxels_are_the_same_on_a_processor_without_vector_instructions() -> None:
    """With every optional instruction set of numpy turned off, the bytes are the same."""
    find_features = """
from numpy._core import _multiarray_umath as umath
print(" ".join(name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)))
"""
    script = f"""
import hashlib
from kitsattn.phantom.paint import paint
from kitsattn.phantom.patient import draw_patient
scan, labels = paint(draw_patient(5), {SMALL_SHAPE}, {SMALL_SPACING_MM})
print(hashlib.sha256(scan.array.tobytes() + labels.array.tobytes()).hexdigest())
"""
    found = subprocess.run([sys.executable, "-c", find_features], check=True, capture_output=True, text=True)
    features = found.stdout.strip()
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": features}
    plain = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    assert plain.stdout.strip() == checksum(*paint(draw_patient(5), SMALL_SHAPE, SMALL_SPACING_MM))


def test_every_patient_has_a_tumour_of_1_to_8_cm_and_most_of_2_to_6() -> None:
    """Recipes hold one or two kidneys and at least one tumour, sized as in the clinic."""
    patients = [draw_patient(seed) for seed in range(300)]
    diameters = [
        2.0 * np.mean(tumour.radii_mm)
        for patient in patients
        for kidney in patient.kidneys
        for tumour in kidney.tumours
    ]
    assert all(any(kidney.tumours for kidney in patient.kidneys) for patient in patients)
    assert min(diameters) > 9
    assert max(diameters) < 90
    assert np.mean([20 <= diameter <= 60 for diameter in diameters]) > 0.7
    assert {len(patient.kidneys) for patient in patients} == {1, 2}
    assert {patient.phase for patient in patients} == {"arterial", "portal"}


@pytest.mark.parametrize("seed", range(6))
def test_tumours_and_kidneys_hang_together(seed: int) -> None:
    """Labels are 0, 1 and 2, and every piece of tumour touches a kidney."""
    _, labels = paint(draw_patient(seed), SHAPE, SPACING_MM)
    assert labels.array.dtype == np.uint8
    assert np.unique(labels.array).tolist() == [BACKGROUND, KIDNEY, TUMOUR]
    pieces, count = ndimage.label(labels.array != BACKGROUND, structure=np.ones((3, 3, 3)))
    for piece in range(1, count + 1):
        if np.any(labels.array[pieces == piece] == TUMOUR):
            assert np.any(labels.array[pieces == piece] == KIDNEY)


def test_kidneys_have_the_size_and_place_of_kidneys(painted: tuple[Volume, Volume]) -> None:
    """One lies on each side of the spine, behind the middle, of 80 to 300 ml."""
    _, labels = painted
    kidney = labels.array == KIDNEY
    middle = SHAPE[2] // 2
    for side in (kidney[:, :, :middle], kidney[:, :, middle:]):
        assert 80 < np.count_nonzero(side) * labels.geometry.voxel_ml < 300
    assert np.nonzero(kidney)[1].mean() > 0.5 * SHAPE[1]


@pytest.mark.parametrize("phase", ["plain", "arterial", "portal", "excretory"])
def test_tissues_have_their_hounsfield_values(phase: Phase) -> None:
    """Without noise each organ is near its tabulated value at its anatomical place."""
    patient = average_adult(phase)
    places = {
        "liver": (80, -10, -90),
        "spleen": (70, 20, 84),
        "muscle": (-75, -9, 43),
        "artery": (20, -31, 10),
        "vein": (20, -30, -20),
        "disc": (-54, -5, 0),
        "fat": (-20, 6, 75),
        "heart": (175, -62, 28),
        "lung": (285, -20, 80),
    }
    patient = replace(patient, kidneys=())
    for tissue, place in places.items():
        assert around(patient, place) == pytest.approx(tissue_hu(tissue, phase), abs=45 if tissue == "lung" else 25), (
            tissue
        )
    assert around(patient, (0, 0, 0)) > tissue_hu("muscle", phase) + 80
    assert around(patient, (0, -160, 0)) == pytest.approx(-1000, abs=5)


@pytest.mark.parametrize("phase", ["plain", "arterial", "portal", "excretory"])
def test_kidneys_are_enhanced_as_their_phase_asks(phase: Phase) -> None:
    """The outer 5 mm of a kidney have the value of the cortex, in every phase."""
    patient = average_adult(phase)
    patient = replace(patient, kidneys=tuple(replace(kidney, tumours=(), cysts=()) for kidney in patient.kidneys))
    grid = Grid.starting_at((-40.0, -40.0, -130.0), (16, 100, 260), (5.0, 1.0, 1.0))
    scene = Scene(patient, grid, DrawnKidneys(patient, grid))
    slices = [scene.paint_slice(index) for index in range(16)]
    hu, kidney = np.stack([hu for hu, _ in slices]), np.stack([labels for _, labels in slices]) == KIDNEY
    depth = ndimage.distance_transform_edt(kidney, sampling=(5.0, 1.0, 1.0))
    cortex = hu[(depth > 2.5) & (depth < 5.0)]
    assert np.median(cortex) == pytest.approx(tissue_hu("renal cortex", phase), abs=25)
    deep = hu[depth > 13.0]
    if phase == "arterial":
        assert np.median(deep) < 0.75 * np.median(cortex)
    if phase == "excretory":
        assert deep.max() > 300


def test_the_liver_is_on_the_right_and_the_spine_behind(painted: tuple[Volume, Volume]) -> None:
    """Low x holds most of what enhances like liver, high y most of the bone."""
    scan, _ = painted
    hu = ndimage.gaussian_filter(scan.array.astype(np.float32), (0, 2, 2))
    upper = hu[int(0.7 * SHAPE[0]) :]
    liver = (upper > 95) & (upper < 125)
    assert np.count_nonzero(liver[:, :, : SHAPE[2] // 2]) > 2 * np.count_nonzero(liver[:, :, SHAPE[2] // 2 :])
    body = hu > -300
    bone = (scan.array > 350) & body
    assert np.nonzero(bone[: SHAPE[0] // 2])[1].mean() > np.nonzero(body)[1].mean() + 20.0 / SPACING_MM[1]


def test_the_body_lies_in_air_above_a_table(painted: tuple[Volume, Volume]) -> None:
    """The scan is int16; the corners in front are air, the body fills a third or more, a table lies behind it."""
    scan, _ = painted
    assert scan.array.dtype == np.int16
    assert scan.array.min() >= -1024
    assert scan.array[:, :10, :10].mean() == pytest.approx(-1000, abs=5)
    tissue = scan.array > -300
    assert 0.3 < tissue.mean() < 0.8
    assert np.all(tissue[:, SHAPE[1] // 2, SHAPE[2] // 2 - 3])
    body, _ = ndimage.label(tissue[0])
    behind = np.nonzero(body == body[SHAPE[1] // 2, SHAPE[2] // 2])[0].max()
    assert np.any(scan.array[0, behind + 2 :] > -700)


def test_noise_is_of_the_drawn_level_and_correlated() -> None:
    """Adding noise changes nothing else; neighbours in a row share part of it, slices none."""
    patient = replace(draw_patient(8), noise_hu=12.0)
    shape, spacing_mm = (3, 360, 400), (5.0, 0.8, 0.8)
    clean, _ = paint(replace(patient, noise_hu=0.0), shape, spacing_mm)
    noisy, _ = paint(patient, shape, spacing_mm)
    noise = (noisy.array - clean.array)[:, 150:210, 170:230].astype(np.float64)
    assert noise.mean() == pytest.approx(0, abs=1)
    assert noise.std() == pytest.approx(12 / 0.85, rel=0.15)
    assert np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1] > 0.4
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.1


def test_cysts_are_kidney_unless_asked_for() -> None:
    """As in KiTS19 a cyst counts as kidney; on demand it is 3, and nothing else changes."""
    patient = next(patient for patient in map(draw_patient, range(50)) if patient.kidneys[0].cysts)
    scan, plain = paint(patient, SHAPE, SPACING_MM)
    scan_again, marked = paint(patient, SHAPE, SPACING_MM, cysts=True)
    assert np.any(marked.array == CYST)
    np.testing.assert_array_equal(scan.array, scan_again.array)
    np.testing.assert_array_equal(np.where(marked.array == CYST, KIDNEY, marked.array), plain.array)


def test_a_stout_patient_is_fitted_into_the_field_of_view() -> None:
    """In a field of 330 mm both flanks end in air."""
    patient = replace(draw_patient(9), subcutaneous_mm=60.0)
    scan, _ = paint(patient, (6, 110, 110), (10.0, 3.0, 3.0))
    assert np.all(scan.array[:, :70, [0, -1]] < -700)


def test_a_short_scan_shows_the_tumour() -> None:
    """Even three slices are laid through the greatest tumour."""
    for seed in range(8):
        _, labels = paint(draw_patient(seed), (3, 60, 56), (4.0, 5.5, 6.0))
        assert np.any(labels.array == TUMOUR)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "words"),
    [
        ((10, 64, 64), (5.0, 2.0, 2.0), "at least 280 mm"),
        ((0, 64, 64), (5.0, 5.0, 5.0), "no voxels"),
        ((10, 64, 64), (0.0, 5.0, 5.0), "no voxels"),
    ],
)
def test_an_impossible_grid_is_refused(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], words: str
) -> None:
    """A field of view that cuts off kidneys, or has no voxels, is refused with the way out."""
    with pytest.raises(KitsattnError, match=words):
        paint(draw_patient(0), shape, spacing_mm)


def test_a_negative_seed_is_refused() -> None:
    """Seeds are 0 or more."""
    with pytest.raises(KitsattnError, match="must not be negative, got -1"):
        draw_patient(-1)


def test_memory_is_bounded_by_the_result() -> None:
    """Painting 512 x 512 slices takes little more than the slices themselves, however many they are."""
    patient = draw_patient(2)
    overheads = []
    for count in (2, 10):
        tracemalloc.start()
        scan, labels = paint(patient, (count, 512, 512), (5.0, 0.8, 0.8))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        overheads.append(peak - scan.array.nbytes - labels.array.nbytes)
    assert overheads[0] < 60e6
    assert overheads[1] < overheads[0] + 3e6


def test_a_cohort_has_the_layout_and_header_of_kits19(tmp_path: Path) -> None:
    """Files are slice first, run to Inferior, Posterior and Left from 0, and are named as synthetic."""
    names = write_cohort(tmp_path / "phantoms", cases=2, shape=SMALL_SHAPE, spacing_mm=SMALL_SPACING_MM, seed=1)
    assert names == ["case_00000", "case_00001"]
    dataset = find_dataset(tmp_path / "phantoms")
    assert [case.case_id for case in dataset.cases] == names
    assert dataset.synthetic
    assert dataset.licence == "CC0-1.0"
    assert "seed 1; synthetic, not patients" in dataset.citation
    for case in dataset.cases:
        assert case.labels is not None
        for path, dtype in ((case.image, np.int16), (case.labels, np.uint8)):
            image = nib.load(path)
            assert isinstance(image, nib.Nifti1Image)
            assert image.shape == SMALL_SHAPE
            assert image.get_data_dtype() == dtype
            assert nib.aff2axcodes(image.affine) == ("I", "P", "L")
            expected = [[0.0, 0.0, -6.0, 0.0], [0.0, -5.5, 0.0, 0.0], [-17.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
            np.testing.assert_allclose(image.affine, expected, atol=1e-5)
            assert b"SYNTHETIC phantom, not a patient" in gzip.decompress(path.read_bytes())[:1000]
        assert TUMOUR in read_labels(case.labels).array


def test_a_cohort_is_the_same_with_more_cases_and_more_workers(tmp_path: Path) -> None:
    """A larger cohort begins with the cases of a smaller one, whoever paints them."""
    for name, cases, workers in (("small", 1, 1), ("large", 2, 2)):
        write_cohort(
            tmp_path / name,
            cases=cases,
            shape=SMALL_SHAPE,
            spacing_mm=SMALL_SPACING_MM,
            seed=7,
            workers=Workers(workers),
        )
    small, large = (read_scan(tmp_path / name / "case_00000" / "imaging.nii.gz") for name in ("small", "large"))
    np.testing.assert_array_equal(small.array, large.array)
    second = read_scan(tmp_path / "large" / "case_00001" / "imaging.nii.gz")
    assert not np.array_equal(large.array, second.array)


def test_progress_counts_the_cases(tmp_path: Path) -> None:
    """The callback hears of every case."""
    heard: list[tuple[int, int]] = []
    write_cohort(
        tmp_path / "phantoms",
        cases=2,
        shape=SMALL_SHAPE,
        spacing_mm=SMALL_SPACING_MM,
        seed=0,
        progress=lambda _, done, total: heard.append((done, total)),
    )
    assert heard == [(0, 2), (1, 2), (2, 2)]


def test_a_folder_with_cases_is_not_painted_over(tmp_path: Path) -> None:
    """Painting again into the same folder is refused, whichever way, and nothing is changed."""
    write_cohort(tmp_path, cases=1, shape=SMALL_SHAPE, spacing_mm=SMALL_SPACING_MM, seed=0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(KitsattnError, match="holds cases already: delete it"):
        write_cohort(tmp_path, cases=1, shape=SMALL_SHAPE, spacing_mm=SMALL_SPACING_MM, seed=1)
    with pytest.raises(KitsattnError, match="holds cases already: delete it"):
        write_painted(tmp_path, [tmp_path / "case_00000" / "segmentation.nii.gz"], seed=1, licence="CC0-1.0")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_cohort_of_no_cases_is_refused(tmp_path: Path) -> None:
    """At least one case must be asked for."""
    with pytest.raises(KitsattnError, match="give 1 or more"):
        write_cohort(tmp_path, cases=0, shape=SMALL_SHAPE, spacing_mm=SMALL_SPACING_MM, seed=0)


def check_painted_around(labels: Volume, scan: Volume) -> None:
    """Check that a scan follows a label map: kidney is bright, fat around it is not, and it lies in a body."""
    assert scan.geometry == labels.geometry
    assert scan.array.dtype == np.int16
    spacing = labels.geometry.spacing_mm
    foreground = labels.array != BACKGROUND
    core = ndimage.distance_transform_edt(labels.array == KIDNEY, sampling=spacing)
    assert 130 < np.median(scan.array[(core > 2) & (core < 7)]) < 215
    outside = ndimage.distance_transform_edt(~foreground, sampling=spacing)
    shell = (outside > 3.0) & (outside < 6.0)
    assert np.median(scan.array[shell]) < 0
    assert scan.array[:, 0].mean() < -900


def test_a_scan_painted_around_labels_follows_them(painted: tuple[Volume, Volume]) -> None:
    """Kidney voxels carry the kidney's values, voxels around them fat, and the map is left as it was."""
    _, labels = painted
    before = labels.array.copy()
    scan = paint_around(labels, seed=11)
    np.testing.assert_array_equal(labels.array, before)
    check_painted_around(labels, scan)
    assert checksum(scan) == checksum(paint_around(labels, seed=11))
    assert checksum(scan) != checksum(paint_around(labels, seed=12))


@pytest.mark.parametrize("side", [0, 1])
def test_a_scan_is_painted_around_one_kidney(painted: tuple[Volume, Volume], side: int) -> None:
    """With one kidney the spine is laid beside it: bone lies on its inner side."""
    _, labels = painted
    alone = labels.array.copy()
    other_half = slice(SHAPE[2] // 2, None) if side == 0 else slice(0, SHAPE[2] // 2)
    alone[:, :, other_half] = BACKGROUND
    scan = paint_around(labels.with_array(alone), seed=2)
    check_painted_around(labels.with_array(alone), scan)
    bone = np.nonzero(scan.array[SHAPE[0] // 2 - 8 : SHAPE[0] // 2 + 8] > 250)[2].mean() * SPACING_MM[2]
    kidney = np.nonzero(alone)[2].mean() * SPACING_MM[2]
    assert 40 < (bone - kidney if side == 0 else kidney - bone) < 110


@pytest.mark.parametrize("case", ["case_00069", "case_00030"])
def test_a_scan_is_painted_around_real_labels(test_data: Path, case: str) -> None:
    """Real kidneys and tumours, thinned out, are followed too."""
    labels = read_labels(test_data / "kits19-labels" / f"{case}.nii.gz")
    thin = np.ascontiguousarray(labels.array[:, ::3, ::3])
    z, y, x = labels.geometry.spacing_mm
    shape = (thin.shape[0], thin.shape[1], thin.shape[2])
    labels = Volume(thin, Geometry.axial(shape, (z, 3 * y, 3 * x)))
    check_painted_around(labels, paint_around(labels, seed=0))


def test_labels_that_cannot_be_painted_around_are_refused() -> None:
    """A map without a kidney, or with a label that no KiTS has, is refused."""
    geometry = Geometry.axial((4, 60, 60), (5.0, 6.0, 6.0))
    empty = np.zeros((4, 60, 60), np.uint8)
    with pytest.raises(KitsattnError, match="neither kidney nor tumour"):
        paint_around(Volume(empty, geometry), seed=0)
    with pytest.raises(KitsattnError, match=r"unknown labels \[7\]"):
        paint_around(Volume(np.full_like(empty, 7), geometry), seed=0)


def test_a_data_set_is_painted_around_label_files(painted: tuple[Volume, Volume], tmp_path: Path) -> None:
    """Cases are called as their label maps, keep them voxel by voxel, and their licence is stated."""
    _, labels = painted
    files = [tmp_path / "maps" / "case_00004.nii.gz", tmp_path / "case_00017" / "segmentation.nii.gz"]
    for path in files:
        path.parent.mkdir()
        write_nifti(path, labels, axes="RAS")
    names = write_painted(tmp_path / "painted", files, seed=3, licence="CC BY-NC-SA 4.0")
    assert names == ["case_00004", "case_00017"]
    dataset = find_dataset(tmp_path / "painted")
    assert dataset.synthetic
    assert dataset.licence == "CC BY-NC-SA 4.0"
    assert "come from the label maps, whose licence applies" in dataset.citation
    for case in dataset.cases:
        assert case.labels is not None
        assert nib.aff2axcodes(nib.load(case.labels).affine) == ("I", "P", "L")  # type: ignore[attr-defined]
        kept, scan = read_labels(case.labels), read_scan(case.image)
        np.testing.assert_array_equal(kept.array, labels.array)
        assert kept.geometry.difference(labels.geometry) is None
        check_painted_around(kept, scan)


def test_label_files_without_numbers_are_counted(painted: tuple[Volume, Volume], tmp_path: Path) -> None:
    """A label map whose name holds no case number makes all be called by their place."""
    _, labels = painted
    write_nifti(tmp_path / "left.nii.gz", labels)
    assert write_painted(tmp_path / "painted", [tmp_path / "left.nii.gz"], seed=0, licence="CC0-1.0") == ["case_00000"]
