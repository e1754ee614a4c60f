"""Synthetic abdominal CT with kidneys and tumours, painted from a seed or around a given label map.

Nothing here is a patient: phantoms show that a pipeline runs and how fast, not how well it does on real scans.
The painter works slice by slice, so a volume needs little more memory than its voxels, and equal seeds give equal
voxels whatever else is painted.
"""

import functools
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kitsattn.config import to_json
from kitsattn.datasets.dataset import DESCRIPTION_NAME, Description
from kitsattn.datasets.kits import IMAGE_NAME, LABELS_NAME
from kitsattn.errors import KitsattnError
from kitsattn.files import write_json
from kitsattn.jobs import HERE, Progress, Workers, run_cases, silent
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS, check_labels
from kitsattn.phantom.fit import fit_to_field, fit_to_labels, height_of_kidneys
from kitsattn.phantom.grid import Grid
from kitsattn.phantom.kidneys import DrawnKidneys, LabelledKidneys
from kitsattn.phantom.outline import Outline
from kitsattn.phantom.patient import Patient, Phase, Purpose, draw_patient, draw_tumour, stream
from kitsattn.phantom.slices import Scene
from kitsattn.version import __version__
from kitsattn.volume.geometry import Geometry, Shape, Triple
from kitsattn.volume.nifti import read_labels, write_nifti
from kitsattn.volume.volume import Volume

SMALLEST_FIELD_MM = 280.0
"""A narrower field of view would cut off kidneys."""

_KITS19_AXES = "IPL"
_NOTE = "SYNTHETIC phantom, not a patient"
_CASE_NAME = re.compile(r"case_\d+")


def paint(patient: Patient, shape: Shape, spacing_mm: Triple, *, cysts: bool = False) -> tuple[Volume, Volume]:
    """Paint a whole patient.

    The field of view is centred on the body, at the height of the kidneys, and holds the middle of the greatest
    tumour. A patient who is too stout for it is painted with less fat.

    Args:
        patient: The recipe, from `draw_patient`.
        shape: Number of voxels along z, y, x; at least `SMALLEST_FIELD_MM` wide and deep.
        spacing_mm: Distance between voxels along z, y, x.
        cysts: Whether cysts keep a label of their own, 3; otherwise they count as kidney, as in KiTS19.

    Returns:
        The scan, int16 in HU, and its label map, uint8: 0 background, 1 kidney, 2 tumour.

    Raises:
        KitsattnError: If the field of view is too small.
    """
    _check_field(shape, spacing_mm)
    patient = fit_to_field(patient, shape[2] * spacing_mm[2])
    middle_mm = (height_of_kidneys(patient, shape[0] * spacing_mm[0]), Outline(patient).axis_y_mm + 6.0, 0.0)
    z_mm, y_mm, x_mm = (
        middle - 0.5 * (count - 1) * spacing
        for middle, count, spacing in zip(middle_mm, shape, spacing_mm, strict=True)
    )
    grid = Grid.starting_at((z_mm, y_mm, x_mm), shape, spacing_mm)
    scan, labels = _paint_slices(Scene(patient, grid, DrawnKidneys(patient, grid)), grid.shape, cysts=cysts)
    # The first slice of a KiTS19 file, the uppermost one, is at 0.
    geometry = Geometry.axial(shape, spacing_mm, (-(shape[0] - 1) * spacing_mm[0], 0.0, 0.0))
    return Volume(scan, geometry), Volume(labels, geometry)


def paint_around(labels: Volume, seed: int, *, phase: Phase | None = None) -> Volume:
    """Paint a scan around a label map, whose kidneys and tumours it follows voxel by voxel.

    Where the spine, the organs and the skin are is estimated from the kidneys.

    Args:
        labels: uint8, (z, y, x): 0 background, 1 kidney, 2 tumour, 3 cyst.
        seed: What the rest of the patient is drawn from.
        phase: The contrast phase; None draws arterial or portal.

    Returns:
        The scan on the same grid, int16 in HU.

    Raises:
        KitsattnError: If the map holds no kidney or tumour, or unknown labels, or the seed is negative.
    """
    spacing_mm = labels.geometry.spacing_mm
    check_labels(np.unique(labels.array).tolist(), KITS23_LABELS, "the label map")
    drawn = draw_patient(seed, phase=phase)
    patient, (z_mm, y_mm, x_mm) = fit_to_labels(labels.array, spacing_mm, drawn)
    grid = Grid.starting_at((-z_mm, -y_mm, -x_mm), labels.geometry.shape, spacing_mm)
    kidneys = LabelledKidneys(labels.array, grid, draw_tumour(stream(seed, Purpose.TUMOUR_TISSUE)))
    scan, _ = _paint_slices(Scene(patient, grid, kidneys), grid.shape, cysts=True)
    return Volume(scan, labels.geometry)


def write_cohort(
    folder: Path,
    *,
    cases: int,
    shape: Shape,
    spacing_mm: Triple,
    seed: int,
    workers: Workers = HERE,
    progress: Progress = silent,
) -> list[str]:
    """Paint a data set of whole patients in the layout of KiTS19, every one with a tumour.

    Args:
        folder: Where `case_00000` and so on are made, with a description that says that they are synthetic.
        cases: How many.
        shape: Of each scan, along z, y, x.
        spacing_mm: Of each scan, along z, y, x.
        seed: Equal seeds give equal data sets; a larger one begins with the same cases.
        workers: Who does it.
        progress: Called after each case.

    Returns:
        The cases' names.

    Raises:
        KitsattnError: If the folder holds cases, a number is out of range, or the files cannot be written.
    """
    if cases < 1:
        msg = f"a data set of {cases} phantoms has none: give 1 or more"
        raise KitsattnError(msg)
    _check_field(shape, spacing_mm)
    _refuse_cases(folder)
    citation = f"Procedural phantom, kitsattn {__version__}, seed {seed}; synthetic, not patients"
    _describe(folder, licence="CC0-1.0", citation=citation)
    work = functools.partial(_write_drawn, folder, shape, spacing_mm, seed)
    return run_cases(work, range(cases), workers=workers, label="painting phantoms", progress=progress)


def ensure_cohort(folder: Path, write: Callable[[Path], object]) -> bool:
    """Make a data set unless its folder exists: only a finished one gets its name.

    Args:
        folder: Of the data set.
        write: Makes it in another folder of this name, such as `write_cohort` with its other arguments.

    Returns:
        Whether it was made now.
    """
    if folder.exists():
        return False
    unfinished = folder.parent / ".painting" / folder.name
    shutil.rmtree(unfinished.parent, ignore_errors=True)
    write(unfinished)
    unfinished.rename(folder)
    unfinished.parent.rmdir()
    return True


def write_painted(
    folder: Path,
    label_files: Sequence[Path],
    *,
    seed: int,
    licence: str,
    workers: Workers = HERE,
    progress: Progress = silent,
) -> list[str]:
    """Paint a data set around given label maps in the layout of KiTS19.

    Args:
        folder: Where the cases are made, with a description that says that the scans are synthetic.
        label_files: Label maps in any orientation. A case is called as the `case_NNNNN` in its file's or folder's
            name, or by its place in this list if any of them has none.
        seed: Equal seeds and label maps give equal data sets.
        licence: Of the label maps; it holds for the data set, whose shapes are theirs.
        workers: Who does it.
        progress: Called after each case.

    Returns:
        The cases' names.

    Raises:
        KitsattnError: If the folder holds cases, a label map is unusable, or the files cannot be written.
    """
    _refuse_cases(folder)
    citation = (
        f"Scans painted by kitsattn {__version__}, seed {seed}, around given label maps; synthetic, not patients. "
        "The shapes of kidneys and tumours come from the label maps, whose licence applies."
    )
    _describe(folder, licence=licence, citation=citation)
    cases = list(zip(_case_names(label_files), label_files, strict=True))
    work = functools.partial(_write_around, folder, seed)
    return run_cases(work, cases, workers=workers, label="painting phantoms", progress=progress)


def _write_drawn(folder: Path, shape: Shape, spacing_mm: Triple, seed: int, number: int) -> str:
    scan, labels = paint(draw_patient(_case_seed(seed, number)), shape, spacing_mm)
    return _write_case(folder, f"case_{number:05d}", scan, labels)


def _write_around(folder: Path, seed: int, case: tuple[str, Path]) -> str:
    name, path = case
    labels = read_labels(path)
    check_labels(np.unique(labels.array).tolist(), KITS19_LABELS, str(path))
    number = int(name.removeprefix("case_"))
    return _write_case(folder, name, paint_around(labels, _case_seed(seed, number)), labels)


def _write_case(folder: Path, name: str, scan: Volume, labels: Volume) -> str:
    write_nifti(folder / name / LABELS_NAME, labels, axes=_KITS19_AXES, note=_NOTE)
    write_nifti(folder / name / IMAGE_NAME, scan, axes=_KITS19_AXES, note=_NOTE)
    return name


def _describe(folder: Path, *, licence: str, citation: str) -> None:
    """Write the description, before any case: no phantom is about without a word that it is one."""
    name = folder.resolve().name.lstrip(".") or None
    description = Description(name=name, synthetic=True, labels=KITS19_LABELS, licence=licence, citation=citation)
    write_json(folder / DESCRIPTION_NAME, to_json(description))


def _refuse_cases(folder: Path) -> None:
    if folder.is_dir() and any(_CASE_NAME.fullmatch(path.name) for path in folder.iterdir()):
        msg = f"{folder} holds cases already: delete it to paint them again, or name another folder"
        raise KitsattnError(msg)


def _case_names(label_files: Sequence[Path]) -> list[str]:
    found = [_CASE_NAME.search(path.name) or _CASE_NAME.search(path.parent.name) for path in label_files]
    names = [match[0] for match in found if match]
    if len(set(names)) == len(label_files):
        return names
    return [f"case_{number:05d}" for number in range(len(label_files))]


def _case_seed(seed: int, number: int) -> int:
    return int(stream(seed, Purpose.CASE, number).integers(2**62))


def _check_field(shape: Shape, spacing_mm: Triple) -> None:
    if min(shape) < 1 or not min(spacing_mm) > 0:
        msg = f"a phantom of shape {shape} and spacing {spacing_mm} mm has no voxels: give positive values"
        raise KitsattnError(msg)
    depth_mm, width_mm = shape[1] * spacing_mm[1], shape[2] * spacing_mm[2]
    if min(depth_mm, width_mm) < SMALLEST_FIELD_MM:
        msg = (
            f"a phantom of {depth_mm:.0f} x {width_mm:.0f} mm (y, x) cuts off kidneys: "
            f"make it at least {SMALLEST_FIELD_MM:.0f} mm each way, with more voxels or a wider spacing"
        )
        raise KitsattnError(msg)


def _paint_slices(scene: Scene, shape: Shape, *, cysts: bool) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    scan, labels = np.empty(shape, np.int16), np.empty(shape, np.uint8)
    for index in range(shape[0]):
        scan[index], labels[index] = scene.paint_slice(index, cysts=cysts)
    return scan, labels
