"""`kitsattn train`: fit the folds of a run."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kitsattn.cli.console import command_line, configure_logging, log_file, say
from kitsattn.cli.options import (
    AUTO,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    WorkspaceOption,
    batch_size_check,
)
from kitsattn.cli.output import Output
from kitsattn.cli.progress import progress_bars
from kitsattn.errors import KitsattnError
from kitsattn.machine import keep_freed_memory
from kitsattn.train.names import DEFAULT_MADE_MODEL, DEFAULT_MODEL
from kitsattn.words import plural
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table

    from kitsattn.evaluate.scores import Scores
    from kitsattn.train.job import FoldJob
    from kitsattn.train.journal import EpochRecord
    from kitsattn.train.run import FoldResult
    from kitsattn.train.tensorboard import EventWriter

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
            f"{DEFAULT_MODEL}, with --recipe starter {DEFAULT_MADE_MODEL})",
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
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
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
    from kitsattn.precision import choose_device, choose_precision
    from kitsattn.ranks import join_ranks
    from kitsattn.train.fit import choose_batch_size
    from kitsattn.train.recipe import find_recipe
    from kitsattn.train.setup import choose_network, make_training_data, open_training_data, plan_run
    from kitsattn.train.tensorboard import EventWriter
    from kitsattn.train.watch import OutOfTimeError

    events = EventWriter() if tensorboard else None
    output, places = Output(json), Workspace.choose(workspace)
    recipe_name, settings = find_recipe(recipe)
    settings = replace(
        settings,
        epochs=epochs or settings.epochs,
        batch_size=settings.batch_size if batch_size is None or batch_size == AUTO else int(batch_size),
    )
    if data is not None and settings.shares is None:
        msg = "--data is for recipes that make scans: add --recipe starter, or leave --data out"
        raise KitsattnError(msg)
    initial = None if init is None else find_weights(init)
    kind = choose_device(device)
    if kind.type == "cpu":
        keep_freed_memory()
    with join_ranks(kind) as ranks:
        if not ranks.is_main:
            configure_logging(verbose=False, quiet=True)
        if settings.shares is None:
            source = open_training_data(places, dataset, ranks=ranks)
        else:
            with progress_bars() as progress:
                source = make_training_data(places, data, extra=dataset, ranks=ranks, progress=progress)
        network = choose_network(source, model, initial=initial, settings=model_settings)
        prepared = source.dataset
        folder = places.runs / (run_name or f"{prepared.name}-{network[0]}-{recipe_name}")
        say(f"data set: {prepared.folder} ({plural(len(prepared.cases), 'case')}); run: {folder}")
        jobs = plan_run(
            source,
            network,
            (recipe_name, settings),
            folder,
            precision=choose_precision(precision, ranks.device),
            fold=fold,
            seed=seed,
            workers=workers,
            encoder_weights=encoder_weights,
            initial=initial,
            ranks=ranks,
        )
        with log_file(folder / "train.log") if ranks.is_main else nullcontext():
            if batch_size == AUTO:
                chosen = replace(settings, batch_size=choose_batch_size(jobs[0], resume=resume))
                jobs = [replace(job, recipe=chosen) for job in jobs]
            try:
                results = _train_shown(
                    jobs, events, resume=resume, save_every_minutes=save_every_minutes, max_minutes=max_minutes
                )
            except OutOfTimeError as error:
                if ranks.is_main:
                    content = {"run": str(folder), "finished": False}
                    output.show(content, [f"{error}: saved; run the same command to continue"])
                return
        if not ranks.is_main:
            return
        if source.made is not None:
            _show_made(jobs[0], output)
        else:
            _show(folder, jobs, results, workspace, output)


def _train_shown(
    jobs: "Sequence[FoldJob]",
    events: "EventWriter | None",
    *,
    resume: bool,
    save_every_minutes: float,
    max_minutes: float | None,
) -> "list[FoldResult]":
    """Train, and show each epoch on the terminal and, if it was asked for, in TensorBoard."""
    from kitsattn.cli.live import training_display
    from kitsattn.train.run import train_run

    with training_display(jobs) as (progress, show_epoch), events or nullcontext():

        def end_epoch(job: "FoldJob", record: "EpochRecord") -> None:
            show_epoch(job, record)
            if events is not None:
                events.write(job, record)

        return train_run(
            jobs,
            resume=resume,
            save_every_minutes=save_every_minutes,
            max_minutes=max_minutes,
            progress=progress,
            epoch_end=end_epoch,
        )


def _show_made(job: "FoldJob", output: Output) -> None:
    """Show what a training on made scans left behind."""
    from kitsattn.train.names import BEST, STARTER

    file, checkpoint = job.folder / STARTER, job.folder / BEST
    content = {"run": str(job.folder.parent), "finished": True, "weights": str(file), "checkpoint": str(checkpoint)}
    output.show(content, [f"weights:    {file}", f"checkpoint: {checkpoint}"])
    output.say(f"next: {command_line('predict', 'in.nii.gz', 'out.nii.gz', '--model', file)}")


def _show(
    folder: Path, jobs: "Sequence[FoldJob]", results: "Sequence[FoldResult]", workspace: Path | None, output: Output
) -> None:
    """Show how the folds scored; if there are several, together too, and leave a report of it."""
    from kitsattn.train.run import cross_validated, report_cross_validation

    scores = cross_validated(results)
    report = report_cross_validation(folder, jobs, results) if len(results) > 1 else results[0].report
    checkpoints = {str(result.fold): str(result.checkpoint) for result in results}
    content = {"run": str(folder), "finished": True, "checkpoints": checkpoints, **scores.to_json()}
    output.show(content, _describe(results, scores, report))
    output.say(f"next: {command_line('predict', 'in.nii.gz', 'out.nii.gz', workspace=workspace)}")


def _describe(results: "Sequence[FoldResult]", scores: "Scores", report: Path) -> "Iterator[str | Table]":
    from kitsattn.train.run import describe_scores

    if len(results) > 1:
        yield _fold_table(results, scores)
    else:
        held_out = plural(len(scores.cases), "held-out case")
        yield f"fold {results[0].fold}: mean Dice over {held_out}: {describe_scores(scores)}"
    yield f"checkpoint: {', '.join(str(result.checkpoint) for result in results)}"
    yield f"report: {report}"


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
