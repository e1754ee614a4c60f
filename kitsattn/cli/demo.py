"""`kitsattn demo`: the whole way on made-up scans, from painting them to a report."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kitsattn.cli.console import command_line, log_file, print_json, print_result, progress_bars, say
from kitsattn.cli.options import Device, DeviceOption, JsonOption, WorkspaceOption
from kitsattn.jobs import available_cores, keep_freed_memory
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    pass

_DATASET = "phantom"
_RUN = "demo"
_MODEL = "attention-deeplab-tiny"
_CASES = 10
_SHAPE = (40, 160, 160)
_SPACING_MM = (5.0, 2.2, 2.2)
_SEED = 1
"""Of the cohort: the first whose held-out cases, 0 and 7, have tumours of the middling sizes that KiTS is rich in."""


def demo(
    *,
    data_only: Annotated[bool, typer.Option("--data-only", help="Stop after writing the scans.")] = False,
    device: DeviceOption = Device.auto,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Run everything once on ten made-up scans: paint, preprocess, train, predict, evaluate, report.

    Takes about two minutes on two CPU cores. The scans are SYNTHETIC phantoms: the scores show that the
    pipeline runs, they say nothing about patients. Research use only, not a medical device.

    Example: kitsattn demo
    """
    places = Workspace.choose(workspace)
    raw = places.raw / _DATASET
    with log_file(places.runs / _RUN / "demo.log"):
        _paint(raw)
        if data_only:
            cases = sorted(path.name for path in raw.glob("case_*"))
            if json:
                print_json({"dataset": str(raw), "cases": cases, "synthetic": True})
            else:
                print_result(f"{len(cases)} synthetic scans in {raw}")
                say(f"next: {command_line('preprocess', raw, workspace=workspace)}")
            return
        _run(places, raw, device, json=json)


def _paint(folder: Path) -> None:
    from kitsattn.phantom.paint import write_cohort

    if folder.exists():
        say(f"synthetic scans: {folder} (painted before)")
        return
    unfinished = folder.parent / ".painting" / folder.name
    shutil.rmtree(unfinished.parent, ignore_errors=True)
    with progress_bars() as progress:
        write_cohort(
            unfinished,
            cases=_CASES,
            shape=_SHAPE,
            spacing_mm=_SPACING_MM,
            seed=_SEED,
            workers=available_cores(),
            progress=progress,
        )
    unfinished.rename(folder)
    unfinished.parent.rmdir()
    say(f"synthetic scans: {folder}")


def _run(places: Workspace, raw: Path, device: Device, *, json: bool) -> None:
    from kitsattn.cli.live import training_display
    from kitsattn.datasets.find import find_dataset
    from kitsattn.kernels.precision import choose_device, choose_precision
    from kitsattn.models import model_entry
    from kitsattn.preprocess.run import preprocess_dataset
    from kitsattn.train.folds import read_or_make_splits
    from kitsattn.train.job import FoldJob, default_workers
    from kitsattn.train.recipe import RECIPES
    from kitsattn.train.run import describe_scores, train_run

    dataset = find_dataset(raw)
    folder = places.preprocessed / dataset.name
    with progress_bars() as progress:
        prepared = preprocess_dataset(dataset, folder, workers=available_cores(), progress=progress).dataset
    say(f"prepared cases: {folder}")
    splits = read_or_make_splits(folder, prepared.cases)
    chosen = choose_device(device.value)
    if chosen.type == "cpu":
        keep_freed_memory()
    job = FoldJob(
        dataset=prepared,
        split=splits[0],
        fold=0,
        folds=len(splits),
        model=_MODEL,
        config=model_entry(_MODEL).config,
        recipe_name="demo",
        recipe=RECIPES["demo"],
        seed=0,
        device=chosen,
        precision=choose_precision("auto", chosen),
        workers=default_workers(chosen),
        folder=places.runs / _RUN / "fold_0",
    )
    with training_display([job]) as (progress, epoch_end):
        (result,) = train_run([job], progress=progress, epoch_end=epoch_end)
    scores = result.scores.to_json()
    pictures = [str(pair.prediction.with_name(f"{pair.case}.png")) for pair in result.pairs if pair.prediction]
    if json:
        print_json(
            {
                "held_out": scores["cases"],
                "mean": scores["mean"],
                "composite": scores["composite"],
                "synthetic": True,
                "checkpoint": str(result.checkpoint),
                "report": str(result.report),
                "pictures": pictures,
            }
        )
        return
    print_result(f"held-out Dice on SYNTHETIC phantoms (no clinical claim): {describe_scores(result.scores)}")
    print_result(f"report:     {result.report}")
    print_result(f"pictures:   {', '.join(pictures)}")
    print_result(f"checkpoint: {result.checkpoint}")
    scan = prepared.sources[splits[0].held_out[0]].image
    say(f"next: {command_line('predict', scan, 'out.nii.gz', '--model', result.checkpoint)}")
    say("with your own data: kitsattn preprocess KITS_FOLDER, then kitsattn train --fold 0")
