"""Source (a): phantoms painted around label maps of real kidneys and tumours, as a data set in KiTS's layout.

Painting a slice takes tens of milliseconds, too long for a draw, so each scan is painted once, on the grid that
training needs: pixels of about 1.5 mm and slices 5 mm apart, from 80 mm below the kidneys to 80 mm above.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kitsattn.config import to_json
from kitsattn.datasets.dataset import DESCRIPTION_NAME, Description
from kitsattn.datasets.kits import IMAGE_NAME, LABELS_NAME
from kitsattn.files import write_json
from kitsattn.jobs import HERE, Progress, Workers, silent, try_cases
from kitsattn.labels import KITS23_LABELS
from kitsattn.phantom.paint import paint_around
from kitsattn.phantom.patient import Phase
from kitsattn.version import __version__
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import read_labels, write_nifti
from kitsattn.volume.volume import Volume

PHASES: dict[Phase, float] = {"plain": 0.3, "arterial": 0.25, "portal": 0.35, "excretory": 0.1}
"""Shares of the contrast phases; a third without contrast medium, which is where networks fail first."""

_PIXELS = 256
_SLICE_MM = 5.0
_MARGIN_MM = 80.0
_MOST_SLICES = 90
_KITS_AXES = "IPL"
_NOTE = "SYNTHETIC phantom, not a patient"


@dataclass(frozen=True)
class _Work:
    name: str
    labels: Path
    seed: int

    def __str__(self) -> str:
        return self.name


def thin_labels(labels: Volume, *, margin_mm: float = _MARGIN_MM, most_slices: int = _MOST_SLICES) -> Volume:
    """Return a label map with 256 x 256 pixels and slices at least 5 mm apart, cut around the kidneys.

    Args:
        labels: uint8, (z, y, x), with at least one labelled voxel.
        margin_mm: How far it reaches below and above them.
        most_slices: The margin is narrower where there would be more slices.

    Returns:
        The nearest voxels, uint8; all labelled ones are inside.
    """
    depth, height, width = labels.array.shape
    z_mm, y_mm, x_mm = labels.geometry.spacing_mm
    slice_mm = max(_SLICE_MM, z_mm)
    inside = np.flatnonzero(labels.array.any(axis=(1, 2)))
    lowest_mm, height_mm = inside[0] * z_mm, (inside[-1] - inside[0]) * z_mm
    count = int(height_mm // slice_mm) + 1
    margin = min(round(margin_mm / slice_mm), max(0, most_slices - count) // 2)
    wanted = np.rint((lowest_mm + slice_mm * np.arange(-margin, count + margin)) / z_mm).astype(int)
    planes = wanted[(wanted >= 0) & (wanted < depth)]
    rows, columns = (((np.arange(_PIXELS) + 0.5) * size / _PIXELS).astype(int) for size in (height, width))
    array = labels.array[np.ix_(planes, rows, columns)]
    spacing_mm = (slice_mm, y_mm * height / _PIXELS, x_mm * width / _PIXELS)
    return Volume(array, Geometry.axial((len(array), _PIXELS, _PIXELS), spacing_mm))


def paint_dataset(
    folder: Path,
    label_files: Sequence[Path],
    *,
    seed: int,
    licence: str,
    workers: Workers = HERE,
    progress: Progress = silent,
) -> list[str]:
    """Paint one scan around each label map, under the label map's name; scans that are already there are kept.

    Args:
        folder: Data set in KiTS's layout, with a description that says that the scans are synthetic.
        label_files: KiTS19's or KiTS23's label maps, case_00003.nii.gz and so on.
        seed: Equal seeds and label maps give equal scans, for any number of workers, whatever else is painted.
        licence: Licence of the label maps, which covers the scans' shapes.
        workers: Who does it.
        progress: Called after each scan.

    Returns:
        A line for each label map that could not be used.
    """
    citation = f"Scans painted by kitsattn {__version__}, seed {seed}, around KiTS19 and KiTS23 label maps; synthetic"
    description = Description(
        name=folder.resolve().name, synthetic=True, labels=KITS23_LABELS, licence=licence, citation=citation
    )
    write_json(folder / DESCRIPTION_NAME, to_json(description))
    work = [
        _Work(case_name(path), path, seed + int(case_name(path).removeprefix("case_")))
        for path in label_files
        if not (folder / case_name(path) / IMAGE_NAME).exists()
    ]
    done = try_cases(
        functools.partial(_paint, folder), work, workers=workers, label="paint phantoms", progress=progress
    )
    return [str(result) for result in done if isinstance(result, Exception)]


def case_name(label_file: Path) -> str:
    """Return the name of the scan that is painted around a label map, the label map's own: `case_00003`."""
    return label_file.name.removesuffix(".nii.gz")


def _paint(folder: Path, work: _Work) -> None:
    labels = thin_labels(read_labels(work.labels))
    rng = np.random.default_rng((work.seed, 1))
    phase = list(PHASES)[int(rng.choice(len(PHASES), p=list(PHASES.values())))]
    scan = paint_around(labels, work.seed, phase=phase)
    write_nifti(folder / work.name / LABELS_NAME, labels, axes=_KITS_AXES, note=_NOTE)
    write_nifti(folder / work.name / IMAGE_NAME, scan, axes=_KITS_AXES, note=_NOTE)
