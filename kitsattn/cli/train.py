"""`kitsattn train`: fit the folds of a run."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kitsattn.cli.console import (
    command_line,
    configure_logging,
    log_file,
    print_json,
    print_result,
    say,
)
from kitsattn.cli.options import (
    AUTO,
    Device,
    DeviceOption,
    JsonOption,
    Precision,
    PrecisionOption,
    WorkspaceOption,
    batch_size_check,
)
from kitsattn.errors import KitsattnError
from kitsattn.jobs import keep_freed_memory
from kitsattn.words import plural
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table

    from kitsattn.evaluate.scores import Scores
    from kitsattn.models.registry import ModelConfig
    from kitsattn.preprocess.store import PreparedDataset
    from kitsattn.ranks import Ranks
    from kitsattn.synthesis.prepare import PreparedMaterial
    from kitsattn.train.folds import Split
    from kitsattn.train.job import FoldJob
    from kitsattn.train.journal import EpochRecord
    from kitsattn.train.run import FoldResult

_DEFAULT_MODEL = "attention-deeplab-r50"
_MADE_MODEL = "attention-deeplab-r18-half"
_LEAST_BATCH = 2
"""As recipes have it."""


def train(
    *,
    fold: Annotated[str, typer.Option(metavar="0..4|all", help="Fold that is held out, or all in turn.")] = "0",
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Prepared data set; with --recipe starter real scans to mix in. (default: the only one; with --recipe "
            "starter none)",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Data that --recipe starter makes scans from. Without it, the error lists them.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Network, see `kitsattn models list`. (default: the network of --init with its settings, else "
            f"{_DEFAULT_MODEL}, with --recipe starter {_MADE_MODEL})",
            show_default=False,
        ),
    ] = None,
    model_settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML or JSON file with network settings to change.", show_default=False),
    ] = None,
    encoder_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Pretrained ResNet weights as safetensors, with torchvision's names. (default: random initialisation)",
            show_default=False,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Trained weights to start from (fine-tuning): a checkpoint, or a model that comes with kitsattn, such "
            "as starter. (default: random initialisation)",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="paper, modern, starter, demo, or a TOML file.")
    ] = "paper",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs. (default: the recipe's)", show_default=False)
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            callback=batch_size_check(_LEAST_BATCH),
            help="Samples per batch, over all processes; auto uses as many as fit into memory. (default: the recipe's)",
            show_default=False,
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Save and stop after this many minutes. (default: train to the end)", show_default=False
        ),
    ] = None,
    save_every_minutes: Annotated[float, typer.Option(min=0.0, help="Minutes between saves within an epoch.")] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")] = 0,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that load batches. (default: one less than cores, up to 12; CPU: 1, or 0 below 4 cores)",
            show_default=False,
        ),
    ] = None,
    run_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the run. (default: DATASET-MODEL-RECIPE)", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Continue a stopped training, or start again.")
    ] = True,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events too; needs the extra `track`.")
    ] = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Train one fold, or all five; then predict and score its held-out cases as whole volumes.

    Checkpoints, journal and report go to WORKSPACE/runs/RUN/fold_K.
    Ctrl-C and SIGTERM save everything and stop after the current batch. Run the same command to continue.

    Example: kitsattn train --fold 0 --model attention-deeplab-r18
    """
    from kitsattn.checkpoint.shipped import find_weights
    from kitsattn.cli.live import training_display
    from kitsattn.kernels.precision import choose_device, choose_precision
    from kitsattn.ranks import join_ranks
    from kitsattn.train.fit import choose_batch_size
    from kitsattn.train.job import FoldJob, default_workers
    from kitsattn.train.recipe import find_recipe
    from kitsattn.train.run import train_run
    from kitsattn.train.tensorboard import EventWriter
    from kitsattn.train.watch import OutOfTimeError

    events = EventWriter() if tensorboard else None
    places = Workspace.choose(workspace)
    recipe_name, settings = find_recipe(recipe)
    settings = replace(
        settings,
        epochs=epochs or settings.epochs,
        batch_size=settings.batch_size if batch_size is None or batch_size == AUTO else int(batch_size),
    )
    initial = None if init is None else find_weights(init)
    kind = choose_device(device.value)
    if kind.type == "cpu":
        keep_freed_memory()
    with join_ranks(kind) as ranks:
        if not ranks.leads:
            configure_logging(verbose=False, quiet=True)
        prepare = _open_dataset if settings.shares is None else _make_dataset
        prepared, splits, made = prepare(places, dataset, data, ranks)
        network, config = _network(model, initial, model_settings, prepared, made)
        folder = places.runs / (run_name or f"{prepared.name}-{network}-{recipe_name}")
        say(f"data set: {prepared.folder} ({plural(len(prepared.cases), 'case')}); run: {folder}")
        jobs = [
            FoldJob(
                dataset=prepared,
                split=splits[number],
                fold=number,
                folds=len(splits),
                model=network,
                config=config,
                recipe_name=recipe_name,
                recipe=settings,
                seed=seed,
                device=ranks.device,
                precision=choose_precision(precision.value, ranks.device),
                workers=default_workers(ranks.device, ranks, made=made is not None) if workers is None else workers,
                folder=folder / f"fold_{number}",
                encoder_weights=encoder_weights,
                initial_weights=initial,
                ranks=ranks,
                made=made,
            )
            for number in _folds(fold, len(splits))
        ]
        with log_file(folder / "train.log") if ranks.leads else nullcontext():
            if batch_size == AUTO:
                chosen = replace(settings, batch_size=choose_batch_size(jobs[0], go_on=resume))
                jobs = [replace(job, recipe=chosen) for job in jobs]
            late = ""
            with training_display(jobs) as (progress, show_epoch), events or nullcontext():

                def end_epoch(job: FoldJob, record: "EpochRecord") -> None:
                    show_epoch(job, record)
                    if events is not None:
                        events.write(job, record)

                try:
                    results = train_run(
                        jobs,
                        go_on=resume,
                        save_every_minutes=save_every_minutes,
                        max_minutes=max_minutes,
                        progress=progress,
                        epoch_end=end_epoch,
                    )
                except OutOfTimeError as error:
                    results, late = [], str(error)
        if not ranks.leads:
            return
        if late:
            _report_late(folder, late, json=json)
        elif made is not None:
            _report_made(jobs[0], json=json)
        else:
            _report(folder, jobs, results, workspace=workspace, json=json)


def _open_dataset(
    places: Workspace, name: str | None, data: Path | None, ranks: "Ranks"
) -> "tuple[PreparedDataset, list[Split], None]":
    """Open a prepared data set, with its folds."""
    from kitsattn.preprocess.store import open_dataset

    if data is not None:
        msg = "--data is for recipes that make scans: add --recipe starter, or leave --data out"
        raise KitsattnError(msg)
    prepared = open_dataset(places.preprocessed_dataset(name))
    return prepared, _read_splits(prepared, ranks), None


def _make_dataset(
    places: Workspace, extra: str | None, data: Path | None, ranks: "Ranks"
) -> "tuple[PreparedDataset, list[Split], PreparedMaterial]":
    """Prepare what scans are made from; the first process does it, the others find it finished."""
    from kitsattn.cli.console import progress_bars
    from kitsattn.synthesis.data import find_starter_data
    from kitsattn.synthesis.prepare import plan_file, prepare_material
    from kitsattn.train.folds import Split
    from kitsattn.train.starter import made_dataset, open_real

    found = find_starter_data(data)
    real = None if extra is None else open_real(places.preprocessed_dataset(extra), plan_file(places))
    if not ranks.leads:
        ranks.meet()
    with progress_bars() as progress:
        made = prepare_material(found, places, real=real, workers=ranks.cores, progress=progress)
    if ranks.leads:
        ranks.meet()
    return made_dataset(made), [Split((), ())], made


def _report_late(folder: Path, late: str, *, json: bool) -> None:
    if json:
        print_json({"run": str(folder), "finished": False})
    else:
        print_result(f"{late}: saved; run the same command to continue")


def _report_made(job: "FoldJob", *, json: bool) -> None:
    from kitsattn.train.job import BEST
    from kitsattn.train.starter import SHIPPED

    file, checkpoint = job.folder / SHIPPED, job.folder / BEST
    if json:
        print_json(
            {"run": str(job.folder.parent), "finished": True, "weights": str(file), "checkpoint": str(checkpoint)}
        )
        return
    print_result(f"weights:    {file}")
    print_result(f"checkpoint: {checkpoint}")
    say(f"next: {command_line('predict', 'in.nii.gz', 'out.nii.gz', '--model', file)}")


def _report(
    folder: Path, jobs: "Sequence[FoldJob]", results: "Sequence[FoldResult]", *, workspace: Path | None, json: bool
) -> None:
    """Print how the folds scored; where there are several, together too, and leave a report of it."""
    from kitsattn.train.run import cross_validated, describe_scores, report_cross_validation

    scores = cross_validated(results)
    report = report_cross_validation(folder, jobs, results) if len(results) > 1 else results[0].report
    if json:
        checkpoints = {str(result.fold): str(result.checkpoint) for result in results}
        print_json({"run": str(folder), "finished": True, "checkpoints": checkpoints, **scores.to_json()})
        return
    if len(results) > 1:
        print_result(_fold_table(results, scores))
    else:
        held_out = plural(len(scores.cases), "held-out case")
        print_result(f"fold {results[0].fold}: mean Dice over {held_out}: {describe_scores(scores)}")
    print_result(f"checkpoint: {', '.join(str(result.checkpoint) for result in results)}")
    print_result(f"report: {report}")
    say(f"next: {command_line('predict', 'in.nii.gz', 'out.nii.gz', workspace=workspace)}")


def _fold_table(results: "Sequence[FoldResult]", scores: "Scores") -> "Table":
    """Return a row for each fold and one for the cohort of all."""
    from rich.table import Table

    regions = list(scores.mean)
    table = Table("fold", "cases", *(region.replace("_", " ") for region in regions), title="Mean Dice, held-out cases")
    for column in table.columns[1:]:
        column.justify = "right"
    for result in results:
        dice = (f"{result.scores.mean[region]['dice']:.4f}" for region in regions)
        table.add_row(str(result.fold), str(len(result.scores.cases)), *dice)
    table.add_section()
    table.add_row("all", str(len(scores.cases)), *(f"{scores.mean[region]['dice']:.4f}" for region in regions))
    return table


def _read_splits(dataset: "PreparedDataset", ranks: "Ranks") -> "list[Split]":
    """Return the folds; the first process writes them, if they are not there."""
    from kitsattn.train.folds import read_or_make_splits

    splits = read_or_make_splits(dataset.folder, dataset.cases) if ranks.leads else []
    ranks.meet()
    return splits or read_or_make_splits(dataset.folder, dataset.cases)


def _folds(fold: str, count: int) -> list[int]:
    if fold == "all":
        return list(range(count))
    if fold.isdecimal() and int(fold) < count:
        return [int(fold)]
    msg = f"there is no fold {fold!r}: choose 0 to {count - 1}, or all"
    raise KitsattnError(msg)


def _network(
    name: str | None,
    initial: Path | None,
    settings: Path | None,
    dataset: "PreparedDataset",
    made: "PreparedMaterial | None",
) -> "tuple[str, ModelConfig]":
    """Return the network and its settings, with the data set's classes and the user's changes.

    Without a name they are those of the initial weights, and without these the default of the kind of training.
    """
    from kitsattn.checkpoint.header import read_header
    from kitsattn.config import read_mapping, to_json
    from kitsattn.models import model_entry
    from kitsattn.synthesis.frame import SLICE_MM, SLICES

    classes = len(dataset.labels)
    if name is None and initial is not None:
        header, _ = read_header(initial)
        name, base = header.model, header.config
        entry = model_entry(name)
    else:
        name = name or (_DEFAULT_MODEL if made is None else _MADE_MODEL)
        entry = model_entry(name)
        base = to_json(entry.config)
    if made is not None:
        base = {**base, "slices": SLICES, "slab_step_mm": SLICE_MM}
    changes = {} if settings is None else read_mapping(settings)
    config = entry.read_config({**base, "classes": classes, **changes}, str(settings or name))
    if config.classes != classes:
        msg = f"{settings}: classes is {config.classes}, but the data set has {classes} labels: leave classes out"
        raise KitsattnError(msg)
    if made is not None and (config.slices, config.slab_step_mm) != (SLICES, SLICE_MM):
        msg = f"{settings}: made scans have {SLICES} slices {SLICE_MM:g} mm apart: leave slices and slab_step_mm out"
        raise KitsattnError(msg)
    return name, config
