"""`kitsattn preprocess`: raw scans and label maps become prepared cases."""

from pathlib import Path
from typing import Annotated

import typer

from kitsattn.cli.console import log_file, print_json, print_result, progress_bars, say
from kitsattn.cli.options import JsonOption, WorkersOption, WorkspaceOption
from kitsattn.jobs import available_cores
from kitsattn.workspace import Workspace


def preprocess(
    *,
    raw: Annotated[
        Path | None,
        typer.Argument(
            metavar="RAW",
            help="KiTS folder: case_NNNNN/imaging.nii.gz and segmentation.nii.gz. (default: the only one in raw/)",
            show_default=False,
        ),
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option(metavar="MM", help="In-plane spacing. (default: the data set's median)", show_default=False),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Use this plan (JSON) instead of making one.", show_default=False),
    ] = None,
    workers: WorkersOption = None,
    resume: Annotated[bool, typer.Option("--resume/--restart", help="Keep cases that are finished already.")] = True,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Prepare a KiTS data set for training: crop to the body, clip to [-300, 300] HU, resample in-plane, normalise.

    The result goes to WORKSPACE/preprocessed/NAME, with the plan that was made: edit a copy and pass it with --plan.

    Example: kitsattn preprocess ~/data/kits19/data
    """
    from kitsattn.datasets.kits import find_dataset
    from kitsattn.preprocess.run import preprocess_dataset

    places = Workspace.choose(workspace)
    if raw is None:
        raw = places.raw_dataset()
        say(f"data set: {raw}")
    dataset = find_dataset(raw)
    folder = places.preprocessed / dataset.name
    with log_file(folder / "preprocess.log"), progress_bars() as progress:
        prepared = preprocess_dataset(
            dataset,
            folder,
            spacing_mm=spacing,
            plan_file=plan,
            workers=workers or available_cores(),
            resume=resume,
            progress=progress,
        )
    if json:
        print_json({"dataset": prepared.name, "folder": str(folder), "cases": list(prepared.cases)})
    else:
        print_result(f"{len(prepared.cases)} cases prepared in {folder}")
        say("next: kitsattn train --fold 0")
