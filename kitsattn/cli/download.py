"""`kitsattn download`: data sets from where their authors publish them."""

from pathlib import Path
from typing import Annotated

import typer

from kitsattn.cli.console import command_line, say
from kitsattn.cli.options import Application, JsonOption, WorkspaceOption
from kitsattn.cli.output import Output
from kitsattn.cli.progress import progress_bars
from kitsattn.errors import KitsattnError
from kitsattn.workspace import Workspace

app = Application(help="Fetch a data set.", no_args_is_help=True)


@app.callback()
def download() -> None:
    """Fetch a data set from where its authors publish it."""


@app.command("kits19")
def kits19(
    *,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Where it goes. (default: WORKSPACE/raw/kits19)", show_default=False),
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Case numbers, such as 0-9,15; from 210 on without labels. (default: the labelled ones, 0-209)",
            show_default=False,
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=16, help="Files at a time.")] = 4,
    images_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="KITSATTN_KITS19_IMAGES_URL",
            help="Fetch URL/case_NNNNN.nii.gz instead of the images at Hugging Face.",
            show_default=False,
        ),
    ] = None,
    labels_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="KITSATTN_KITS19_LABELS_URL",
            help="Fetch URL/case_NNNNN/segmentation.nii.gz instead of the labels at GitHub.",
            show_default=False,
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Fetch the KiTS19 challenge data: CT scans from Hugging Face, label maps from GitHub; no account is needed.

    The data are under CC BY-NC-SA 4.0: non-commercial use, with attribution. Stopped at any point, the same command
    goes on where it was; only whole files that passed the check get their names.

    Example: kitsattn download kits19 --cases 0-9
    """
    from kitsattn.datasets.download import (
        IMAGES_URL,
        LABELLED_CASES,
        LABELS_URL,
        NAME,
        download_kits19,
        parse_cases,
    )
    from kitsattn.datasets.kits import CITATIONS, LICENCE

    say(f"KiTS19 is licensed under {LICENCE}; cite {CITATIONS[NAME]}")
    numbers = LABELLED_CASES if cases is None else parse_cases(cases)
    following = command_line("preprocess", *([] if folder is None else [folder]), workspace=workspace)
    if folder is None:
        folder = Workspace.choose(workspace).raw / NAME
        say(f"data set: {folder}")
    with progress_bars() as progress:
        result = download_kits19(
            folder,
            numbers,
            images_url=images_url or IMAGES_URL,
            labels_url=labels_url or LABELS_URL,
            parallel=parallel,
            progress=progress,
        )
    content = {
        "dataset": NAME,
        "folder": str(folder),
        "cases": [f"case_{number:05}" for number in numbers],
        "fetched": [str(path) for path in result.fetched],
        "present": [str(path) for path in result.present],
        "failed": [
            {"file": str(failure.file.path), "url": failure.file.url, "reason": failure.reason}
            for failure in result.failures
        ],
        "licence": LICENCE,
        "citation": CITATIONS[NAME],
    }
    lines = [f"{len(result.fetched)} files fetched, {len(result.present)} were there already: {folder}"]
    Output(json).show(content, lines)
    if result.failures:
        count = len(result.failures)
        which, them = ("1 file", "it") if count == 1 else (f"{count} files", "them")
        msg = (
            f"{which} could not be fetched: the same command tries {them} again; or choose other cases with --cases, "
            "or name a mirror with --images-url or --labels-url"
        )
        raise KitsattnError(msg)
    say(f"next: {following}")
