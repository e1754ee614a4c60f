"""Prepares once what the starter network's samples are drawn from, and opens it for the processes that draw."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kitsattn.config import to_json
from kitsattn.datasets.find import find_dataset
from kitsattn.errors import KitsattnError
from kitsattn.files import write_json
from kitsattn.jobs import HERE, Progress, Workers, silent, try_cases
from kitsattn.phantom.paint import ensure_cohort, write_cohort
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.preprocess.store import PreparedDataset, open_dataset
from kitsattn.synthesis import data as known
from kitsattn.synthesis.bodies import prepare_body, read_body
from kitsattn.synthesis.data import StarterData
from kitsattn.synthesis.draw import Material
from kitsattn.synthesis.frame import PIXEL_MM
from kitsattn.synthesis.kidneys import cut_kidneys, read_kidneys, save_kidneys
from kitsattn.synthesis.painted import case_name, paint_dataset
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import read_labels
from kitsattn.workspace import Workspace

PLAN = Plan(spacing_mm=(PIXEL_MM, PIXEL_MM), mean_hu=50.0, std_hu=150.0, patch_size=(224, 288))
"""Patches of 336 x 432 mm hold nearly every body in one window; mean and deviation are round numbers of soft tissue."""

PAINTED = "starter-painted"
PHANTOMS = "starter-phantoms"
"""Names of the data sets of phantoms: painted around KiTS label maps, or without any."""

_FOLDER = "starter"
_BODIES = "bodies"
_KIDNEYS = "kidneys"
_PAINTING_SEED = 1000
_PHANTOMS = 100
_PHANTOM_SHAPE = (72, 256, 256)
_PHANTOM_SPACING_MM = (5.0, 1.5, 1.5)
_ATLAS_SCALE = 1.5
"""The atlas's organs have their usual volumes if its voxels are 1.5 times as long as its header says."""


@dataclass(frozen=True)
class PreparedMaterial:
    """Where prepared material is, so that it can be sent to the processes that draw from it.

    Attributes:
        folder: Of bodies and kidneys.
        painted: Prepared data set of phantoms.
        slices: Real slices.
        real: Prepared data set of real scans.
    """

    folder: Path
    painted: Path
    data: StarterData
    real: PreparedDataset | None = None

    def open(self) -> Material:
        """Read the material; takes some seconds and 0.5 GB.

        What an earlier call prepared from files that are no longer among the data is not read.
        """
        painted = open_dataset(self.painted)
        names = {case_name(path) for path in self.data.label_maps}
        files = [self.folder / _KIDNEYS / _kidneys_name(path) for path in self.data.label_maps]
        return Material(
            painted=[painted.open_case(case) for case in painted.cases if case in names or not names],
            bodies=[read_body(self.folder / _BODIES / _body_name(path)) for path, _ in _organ_maps(self.data)],
            kidneys=[crop for file in files if file.exists() for crop in read_kidneys(file)],
            slices=self.data.slices,
            volumes=[self.real.open_case(case) for case in self.real.cases] if self.real else (),
        )


def prepare_material(
    found: StarterData,
    workspace: Workspace,
    *,
    real: PreparedDataset | None = None,
    workers: Workers = HERE,
    progress: Progress = silent,
) -> PreparedMaterial:
    """Paint phantoms, prepare bodies, cut out kidneys; what an earlier call finished is kept.

    Args:
        found: The data.
        workspace: Painted scans go to `raw/starter-painted`, prepared ones to `preprocessed/starter-painted` (without
            KiTS label maps to `starter-phantoms` in both), bodies and kidneys to `preprocessed/starter`.
        real: Prepared data set of real scans to draw from as well.
        workers: Who does it.
        progress: Called after each scan, body and label map.

    Raises:
        KitsattnError: If a body cannot be prepared, or no phantom can be painted.
    """
    folder = workspace.preprocessed / _FOLDER
    bodies = folder / _BODIES
    work = [(path, names) for path, names in _organ_maps(found) if not (bodies / _body_name(path)).exists()]
    for result in try_cases(
        functools.partial(_prepare_body, bodies), work, workers=workers, label="prepare bodies", progress=progress
    ):
        if isinstance(result, KitsattnError):
            raise result
    kidneys = folder / _KIDNEYS
    uncut = [path for path in found.label_maps if not (kidneys / _kidneys_name(path)).exists()]
    # A label map that cannot be read is reported by the painting below.
    try_cases(functools.partial(_cut, kidneys), uncut, workers=workers, label="cut out kidneys", progress=progress)
    name = PAINTED if found.label_maps else PHANTOMS
    raw, painted = workspace.raw / name, workspace.preprocessed / name
    if found.label_maps:
        licence = known.KITS19_LABELS.licence
        paint_dataset(raw, found.label_maps, seed=_PAINTING_SEED, licence=licence, workers=workers, progress=progress)
    else:
        write = functools.partial(
            write_cohort,
            cases=_PHANTOMS,
            shape=_PHANTOM_SHAPE,
            spacing_mm=_PHANTOM_SPACING_MM,
            seed=_PAINTING_SEED,
            workers=workers,
            progress=progress,
        )
        ensure_cohort(raw, write)
    plan = plan_file(workspace)
    write_json(plan, to_json(PLAN))
    preprocess_dataset(find_dataset(raw), painted, plan_file=plan, workers=workers, progress=progress)
    return PreparedMaterial(folder, painted, found, real)


def plan_file(workspace: Workspace) -> Path:
    """Return where the plan is written that real scans have to be prepared with, to be mixed in."""
    return workspace.preprocessed / _FOLDER / "plan.json"


def _organ_maps(found: StarterData) -> list[tuple[Path, Mapping[int, str]]]:
    """Return the label maps that bodies are made from; a body of an earlier call that is not among them is not used."""
    return [*found.bodies, *([found.atlas] if found.atlas else [])]


def _body_name(path: Path) -> str:
    return path.name.removesuffix(".nii.gz").removesuffix("_seg") + ".npz"


def _prepare_body(folder: Path, work: tuple[Path, Mapping[int, str]]) -> None:
    path, names = work
    labels = read_labels(path)
    if path.parent.name == Path(known.ATLAS.path).name:
        z_mm, y_mm, x_mm = (_ATLAS_SCALE * length for length in labels.geometry.spacing_mm)
        labels = replace(labels, geometry=Geometry.axial(labels.array.shape, (z_mm, y_mm, x_mm)))
    prepare_body(labels, names, folder / _body_name(path))


def _kidneys_name(path: Path) -> str:
    return case_name(path) + ".npz"


def _cut(folder: Path, path: Path) -> None:
    save_kidneys(folder / _kidneys_name(path), list(cut_kidneys(read_labels(path))))
