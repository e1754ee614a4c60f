"""From what a user asks for to the jobs of a run: data, network, folds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kitsattn.checkpoint.header import read_header
from kitsattn.config import read_mapping, to_json
from kitsattn.errors import KitsattnError
from kitsattn.jobs import Progress, Workers, silent
from kitsattn.models import model_entry
from kitsattn.models.registry import ModelConfig
from kitsattn.precision import Precision
from kitsattn.preprocess.store import PreparedDataset, open_dataset
from kitsattn.ranks import ALONE, Ranks
from kitsattn.synthesis.data import find_starter_data
from kitsattn.synthesis.frame import SLICE_MM, SLICES
from kitsattn.synthesis.prepare import PreparedMaterial, plan_file, prepare_material
from kitsattn.train.folds import Split, read_or_make_splits
from kitsattn.train.job import FoldJob, default_workers
from kitsattn.train.names import DEFAULT_MADE_MODEL, DEFAULT_MODEL
from kitsattn.train.recipe import Recipe
from kitsattn.train.starter import made_dataset, open_real
from kitsattn.workspace import Workspace


@dataclass(frozen=True)
class TrainingData:
    """What a run is trained on.

    Attributes:
        dataset: The prepared data set; of made scans what the loop needs to know.
        splits: The folds.
        made: What scans are made from; None trains on prepared cases.
    """

    dataset: PreparedDataset
    splits: Sequence[Split]
    made: PreparedMaterial | None = None


def open_training_data(places: Workspace, name: str | None = None, *, ranks: Ranks = ALONE) -> TrainingData:
    """Open a prepared data set with its folds; the first process writes the folds if they are not there.

    Args:
        places: The workspace.
        name: Of the data set; None takes the only one.
        ranks: The processes that train together.

    Raises:
        KitsattnError: If there is no such data set, or it cannot be read.
    """
    dataset = open_dataset(places.preprocessed_dataset(name))
    if ranks.is_main:
        read_or_make_splits(dataset.folder, dataset.cases)
    ranks.barrier()
    return TrainingData(dataset, read_or_make_splits(dataset.folder, dataset.cases))


def make_training_data(
    places: Workspace,
    data: Path | None,
    *,
    extra: str | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> TrainingData:
    """Prepare what scans are made from; the first process does it, the others find it finished.

    Args:
        places: The workspace.
        data: The folder with the sources, see docs/how-to/starter.md.
        extra: Name of a prepared data set of real scans to mix in.
        ranks: The processes that train together.
        progress: Called with what is prepared.

    Raises:
        KitsattnError: If sources are missing or cannot be read, or the data set was prepared with another plan.
    """
    found = find_starter_data(data)
    real = None if extra is None else open_real(places.preprocessed_dataset(extra), plan_file(places))
    if not ranks.is_main:
        ranks.barrier()
    made = prepare_material(found, places, real=real, workers=Workers(ranks.cores), progress=progress)
    if ranks.is_main:
        ranks.barrier()
    return TrainingData(made_dataset(made), [Split((), ())], made)


def choose_network(
    data: TrainingData, name: str | None = None, *, initial: Path | None = None, settings: Path | None = None
) -> tuple[str, ModelConfig]:
    """Return the network and its settings, with the data set's classes and the user's changes.

    Args:
        data: What it is trained on.
        name: Of the network; None takes that of the initial weights, without these the default for the data.
        initial: Checkpoint whose weights are the start; without a name its settings are taken, too.
        settings: TOML or JSON file with settings to change.

    Raises:
        KitsattnError: If there is no such network, a file cannot be read, or a setting does not fit the data.
    """
    classes = len(data.dataset.labels)
    if name is None and initial is not None:
        header, _ = read_header(initial)
        name, base = header.model, header.config
        entry = model_entry(name)
    else:
        name = name or (DEFAULT_MODEL if data.made is None else DEFAULT_MADE_MODEL)
        entry = model_entry(name)
        base = to_json(entry.config)
    if data.made is not None:
        base = {**base, "slices": SLICES, "slab_step_mm": SLICE_MM}
    changes = {} if settings is None else read_mapping(settings)
    config = entry.read_config({**base, "classes": classes, **changes}, str(settings or name))
    if config.classes != classes:
        msg = f"{settings}: classes is {config.classes}, but the data set has {classes} labels: leave classes out"
        raise KitsattnError(msg)
    if data.made is not None and (config.slices, config.slab_step_mm) != (SLICES, SLICE_MM):
        msg = f"{settings}: made scans have {SLICES} slices {SLICE_MM:g} mm apart: leave slices and slab_step_mm out"
        raise KitsattnError(msg)
    return name, config


def choose_folds(fold: str, count: int) -> list[int]:
    """Return the numbers of the folds that "0", "1", … or "all" mean.

    Raises:
        KitsattnError: If there is no such fold.
    """
    if fold == "all":
        return list(range(count))
    if fold.isdecimal() and int(fold) < count:
        return [int(fold)]
    msg = f"there is no fold {fold!r}: choose 0 to {count - 1}, or all"
    raise KitsattnError(msg)


def plan_run(
    data: TrainingData,
    network: tuple[str, ModelConfig],
    recipe: tuple[str, Recipe],
    folder: Path,
    *,
    precision: Precision,
    fold: str = "0",
    seed: int = 0,
    workers: int | None = None,
    encoder_weights: Path | None = None,
    initial: Path | None = None,
    ranks: Ranks = ALONE,
) -> list[FoldJob]:
    """Return the jobs of a run, one for each fold that is trained.

    Args:
        data: What it is trained on.
        network: Name and settings, from `choose_network`.
        recipe: Name and numbers of the recipe.
        folder: Of the run; each fold has a folder in it.
        precision: Number format of convolutions and matrix products.
        fold: "0", "1", … or "all".
        seed: Of weights and batches.
        workers: Processes that draw batches; None takes `default_workers`.
        encoder_weights: File of published weights of the encoder.
        initial: Checkpoint whose weights are the start.
        ranks: The processes that train together, and the device of each.

    Raises:
        KitsattnError: If there is no such fold.
    """
    made = data.made is not None
    return [
        FoldJob(
            dataset=data.dataset,
            split=data.splits[number],
            fold=number,
            folds=len(data.splits),
            model=network[0],
            config=network[1],
            recipe_name=recipe[0],
            recipe=recipe[1],
            seed=seed,
            device=ranks.device,
            precision=precision,
            workers=default_workers(ranks.device, ranks, made=made) if workers is None else workers,
            folder=folder / f"fold_{number}",
            encoder_weights=encoder_weights,
            initial_weights=initial,
            ranks=ranks,
            made=data.made,
        )
        for number in choose_folds(fold, len(data.splits))
    ]
