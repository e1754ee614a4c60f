"""`kitsattn demo`: segments a real CT with the starter network, then runs every step on made-up scans."""

import functools
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from kitsattn.cli.console import command_line, log_file, say, warn
from kitsattn.cli.options import Device, DeviceOption, JsonOption, WorkspaceOption, choose_workers
from kitsattn.cli.output import Output
from kitsattn.cli.progress import progress_bars
from kitsattn.errors import KitsattnError
from kitsattn.machine import keep_freed_memory
from kitsattn.notices import RESEARCH_NOTICE
from kitsattn.workspace import Workspace

_DATASET = "phantom"
_RUN = "demo"
_MODEL = "attention-deeplab-tiny"
_CASES = 10
_SHAPE = (40, 160, 160)
_SPACING_MM = (5.0, 2.2, 2.2)
_SAMPLE = "sample"
_SEED = 1
"""Of the cohort: the first whose held-out cases, 0 and 7, have tumours of the middling sizes that KiTS is rich in."""


def demo(
    *,
    data_only: Annotated[bool, typer.Option("--data-only", help="Stop after writing the scans.")] = False,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Segment a real CT with the starter network, then run every step once on ten made-up scans.

    The first part takes seconds: a label map, a picture, volumes and Dice of the sample CT that ships with the package.
    The second part paints SYNTHETIC phantoms, preprocesses, trains, predicts, evaluates and reports, in about two
    minutes on two CPU cores. Its scores show that the pipeline runs, they say nothing about patients.

    Research use only, not a medical device.

    Example: kitsattn demo
    """
    started = time.perf_counter()
    output, places = Output(json), Workspace.choose(workspace)
    raw = places.raw / _DATASET
    with log_file(places.runs / _RUN / "demo.log"):
        if data_only:
            _paint(raw)
            cases = sorted(path.name for path in raw.glob("case_*"))
            content = {"dataset": str(raw), "cases": cases, "synthetic": True}
            output.show(content, [f"{len(cases)} synthetic scans in {raw}"])
            output.say(f"next: {command_line('preprocess', raw, workspace=workspace)}")
            return
        sample = _segment_sample(places, device, started, output)
        _paint(raw)
        _run(places, raw, device, sample, output)


def _segment_sample(places: Workspace, device: Device, started: float, output: Output) -> dict[str, Any] | None:
    """Segment the sample CT, show what was found, and return it for JSON; None if the starter cannot be used."""
    from kitsattn.checkpoint.shipped import DEFAULT, find_weights
    from kitsattn.datasets.sample_ct import find_sample
    from kitsattn.predict.cases import PredictionCase, read_ahead

    try:
        sample, model = find_sample(), find_weights(DEFAULT)
    except KitsattnError as error:
        warn(f"the sample CT is not segmented: {error}")
        return None
    target = places.predictions / f"{_SAMPLE}.nii.gz"
    case = PredictionCase(
        name=_SAMPLE, source=sample.scan, target=target, preview=places.predictions / f"{_SAMPLE}.png"
    )
    scan = read_ahead(case)

    # Only now: PyTorch takes seconds to load, and the scan is read meanwhile.
    from kitsattn.precision import choose_device, choose_precision
    from kitsattn.predict.case import describe_volumes
    from kitsattn.predict.infer import load_ensemble
    from kitsattn.predict.sample import segment_sample

    chosen = choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    ensemble = load_ensemble([model], chosen, choose_precision("auto", chosen))
    with progress_bars() as progress:
        result = segment_sample(ensemble, sample, case, scan, progress=progress)
    seconds = time.perf_counter() - started
    say(f"sample CT: {sample.citation}; {sample.licence}")
    (score,) = result.dice.values()
    output.print(
        f"sample CT, segmented by {DEFAULT} in {seconds:.0f} s: {describe_volumes(result.volumes_ml)}",
        f"kidney Dice against its reference: {score:.3f}. {RESEARCH_NOTICE}",
        f"label map:  {result.output}",
        f"picture:    {result.picture}",
    )
    return {**result.to_json(), "seconds": round(seconds, 2), "model": DEFAULT}


def _paint(folder: Path) -> None:
    from kitsattn.phantom.paint import ensure_cohort, write_cohort

    with progress_bars() as progress:
        write = functools.partial(
            write_cohort,
            cases=_CASES,
            shape=_SHAPE,
            spacing_mm=_SPACING_MM,
            seed=_SEED,
            workers=choose_workers(None),
            progress=progress,
        )
        painted = ensure_cohort(folder, write)
    say(f"synthetic scans: {folder}" if painted else f"synthetic scans: {folder} (painted before)")


def _run(places: Workspace, raw: Path, device: Device, sample: dict[str, Any] | None, output: Output) -> None:
    from kitsattn.cli.live import training_display
    from kitsattn.datasets.find import find_dataset
    from kitsattn.models import model_entry
    from kitsattn.precision import choose_device, choose_precision
    from kitsattn.preprocess.run import preprocess_dataset
    from kitsattn.ranks import Ranks
    from kitsattn.train.folds import read_or_make_splits
    from kitsattn.train.recipe import RECIPES
    from kitsattn.train.run import describe_scores, train_run
    from kitsattn.train.setup import TrainingData, plan_run

    dataset = find_dataset(raw)
    folder = places.preprocessed / dataset.name
    with progress_bars() as progress:
        prepared = preprocess_dataset(dataset, folder, workers=choose_workers(None), progress=progress).dataset
    say(f"prepared cases: {folder}")
    chosen = choose_device(device)
    (job,) = plan_run(
        TrainingData(prepared, read_or_make_splits(folder, prepared.cases)),
        (_MODEL, model_entry(_MODEL).config),
        ("demo", RECIPES["demo"]),
        places.runs / _RUN,
        precision=choose_precision("auto", chosen),
        ranks=Ranks(device=chosen),
    )
    with training_display([job]) as (progress, epoch_end):
        (result,) = train_run([job], progress=progress, epoch_end=epoch_end)
    scores = result.scores.to_json()
    pictures = [str(pair.prediction.with_name(f"{pair.case}.png")) for pair in result.pairs if pair.prediction]
    content = {
        "sample": sample,
        "held_out": scores["cases"],
        "mean": scores["mean"],
        "composite": scores["composite"],
        "synthetic": True,
        "checkpoint": str(result.checkpoint),
        "report": str(result.report),
        "pictures": pictures,
    }
    lines = [
        f"held-out Dice on SYNTHETIC phantoms (no clinical claim): {describe_scores(result.scores)}",
        f"report:     {result.report}",
        f"pictures:   {', '.join(pictures)}",
        f"checkpoint: {result.checkpoint}",
    ]
    output.show(content, lines)
    scan = prepared.sources[job.split.held_out[0]].image
    if sample is not None:
        output.say("next: kitsattn predict in.nii.gz out.nii.gz (segments your own scan)")
    output.say(
        f"with the network trained here: {command_line('predict', scan, 'out.nii.gz', '--model', result.checkpoint)}"
    )
    output.say("with your own data: kitsattn preprocess KITS_FOLDER, then kitsattn train --fold 0")
