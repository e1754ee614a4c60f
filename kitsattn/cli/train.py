"""`kitsattn train`: fit the folds of a run."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kitsattn.cli.console import command_line, log_file, print_json, print_result, progress_bars, say
from kitsattn.cli.options import Device, DeviceOption, JsonOption, Precision, PrecisionOption, WorkspaceOption
from kitsattn.errors import KitsattnError
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from kitsattn.models.registry import ModelConfig

_DEFAULT_MODEL = "attention-deeplab-r50"


def train(
    *,
    fold: Annotated[str, typer.Option(metavar="0..4|all", help="Fold that is held out, or all in turn.")] = "0",
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Prepared data set. (default: the only one)", show_default=False),
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="Network, see `kitsattn models list`.")] = _DEFAULT_MODEL,
    model_settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML or JSON with settings of the network to change.", show_default=False),
    ] = None,
    encoder_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Published ResNet weights in safetensors, by torchvision's names. (default: from chance)",
            show_default=False,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Checkpoint to start from (fine-tuning). (default: from chance)", show_default=False
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE", help="paper, demo, or a TOML file.")] = "paper",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs. (default: the recipe's)", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Samples a batch. (default: the recipe's)", show_default=False)
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Save and stop after so many minutes. (default: train to the end)", show_default=False
        ),
    ] = None,
    save_every_minutes: Annotated[
        float, typer.Option(min=0.0, help="Save the running epoch so often: what a killed process loses at most.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")] = 0,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that draw batches. (default: one less than cores on a GPU, 1 on a CPU)",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the run. (default: DATASET-MODEL-RECIPE)", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on from where it was stopped, or begin again.")
    ] = True,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Train one fold, or all five; then predict and score its held-out cases as whole volumes.

    Checkpoints, journal and report go to WORKSPACE/runs/RUN/fold_K.
    Ctrl-C and SIGTERM end it after the running batch with everything saved: the same command goes on.

    Example: kitsattn train --fold 0 --model attention-deeplab-r18
    """
    from kitsattn.kernels.precision import choose_device, choose_precision
    from kitsattn.preprocess.store import open_dataset
    from kitsattn.train.fold import FoldJob, OutOfTimeError, default_workers
    from kitsattn.train.folds import read_or_make_splits
    from kitsattn.train.recipe import find_recipe
    from kitsattn.train.run import cross_validated, describe_scores, train_run

    places = Workspace.choose(workspace)
    prepared = open_dataset(places.preprocessed_dataset(dataset))
    recipe_name, settings = find_recipe(recipe)
    settings = replace(settings, epochs=epochs or settings.epochs, batch_size=batch_size or settings.batch_size)
    splits = read_or_make_splits(prepared.folder, prepared.cases)
    folder = places.runs / (run or f"{prepared.name}-{model}-{recipe_name}")
    say(f"data set: {prepared.folder} ({len(prepared.cases)} cases); run: {folder}")
    chosen = choose_device(device.value)
    jobs = [
        FoldJob(
            dataset=prepared,
            split=splits[number],
            fold=number,
            folds=len(splits),
            model=model,
            config=_model_config(model, model_settings, classes=len(prepared.labels)),
            recipe_name=recipe_name,
            recipe=settings,
            seed=seed,
            device=chosen,
            precision=choose_precision(precision.value, chosen),
            workers=default_workers(chosen) if workers is None else workers,
            folder=folder / f"fold_{number}",
            encoder_weights=encoder_weights,
            initial_weights=init,
        )
        for number in _folds(fold, len(splits))
    ]
    with log_file(folder / "train.log"), progress_bars() as progress:
        try:
            results = train_run(
                jobs,
                resume=resume,
                save_every_minutes=save_every_minutes,
                max_minutes=max_minutes,
                progress=progress,
            )
        except OutOfTimeError as error:
            if json:
                print_json({"run": str(folder), "finished": False})
            else:
                print_result(f"{error}: saved, the same command goes on")
            return
    scores = cross_validated(results)
    if json:
        checkpoints = {str(result.fold): str(result.checkpoint) for result in results}
        print_json({"run": str(folder), "finished": True, "checkpoints": checkpoints, **scores.to_json()})
        return
    for result in results:
        print_result(f"fold {result.fold}: {describe_scores(result.scores)}; {result.checkpoint}; {result.report}")
    print_result(f"mean Dice over {len(scores.cases)} held-out cases: {describe_scores(scores)}")
    say(f"next: {command_line('predict', 'in.nii.gz', 'out.nii.gz', workspace=workspace)}")


def _folds(fold: str, count: int) -> list[int]:
    if fold == "all":
        return list(range(count))
    if fold.isdecimal() and int(fold) < count:
        return [int(fold)]
    msg = f"there is no fold {fold!r}: choose 0 to {count - 1}, or all"
    raise KitsattnError(msg)


def _model_config(name: str, settings: Path | None, *, classes: int) -> "ModelConfig":
    """Return the settings behind a network's name, with the data set's classes and the user's changes."""
    from kitsattn.config import read_mapping, to_json
    from kitsattn.models import model_entry

    entry = model_entry(name)
    changes = {} if settings is None else read_mapping(settings)
    config = entry.read_config({**to_json(entry.config), "classes": classes, **changes}, str(settings or name))
    if config.classes != classes:
        msg = f"{settings}: classes is {config.classes}, but the data set has {classes} labels: leave classes out"
        raise KitsattnError(msg)
    return config
