"""`kitsattn evaluate rank` and `submission`: what who takes part in a challenge needs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kitsattn.cli.console import warn
from kitsattn.cli.options import JsonOption, Protocol, WorkersOption, choose_workers, named_protocol
from kitsattn.cli.output import Output
from kitsattn.cli.progress import progress_bars
from kitsattn.errors import KitsattnError
from kitsattn.files import check_suffix

if TYPE_CHECKING:
    from rich.table import Table

    from kitsattn.evaluate.challenge.rank import RankedSubmission


def rank(
    *,
    submissions: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders with an evaluation.csv each.", show_default=False),
    ],
    json: JsonOption = False,
) -> None:
    """Rank submissions as their challenge does, from the evaluation.csv in each folder.

    KiTS21 and KiTS23 rank by mean Dice and by mean surface Dice, then by the mean of both ranks, then by tumour Dice.
    KiTS19 ranks by the mean of its two Dice scores.

    `kitsattn evaluate all DIR REF --csv DIR/evaluation.csv` makes the file, and so do the scripts of the challenges.

    Example: kitsattn evaluate rank team-a/ team-b/ team-c/
    """
    from kitsattn.evaluate.challenge.rank import rank_submissions, read_submission, to_json

    ranking = rank_submissions([read_submission(folder) for folder in submissions])
    Output(json).show(to_json(ranking), _describe(ranking), whole=True)


def _describe(ranking: "Sequence[RankedSubmission]") -> "Iterator[Table]":
    from kitsattn.cli.scores import ranking_table

    yield ranking_table(ranking)


def submission(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Predictions of the test cases.", show_default=False)],
    protocol: Annotated[
        Protocol, typer.Option(help="Whose rules hold; auto tells by the numbers of the cases, kits19 up to 299.")
    ] = "auto",
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The test scans, whose shapes and affines are compared.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The archive; it is replaced.")] = Path("predictions.zip"),
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Check the predictions for a challenge's test cases, and zip them for upload.

    Checked are names, that none is missing, values, and against the test scans shapes and affines. What the challenge
    would refuse is a problem; nothing is written then, and the exit code is 1.

    Files may be named prediction_00210.nii.gz or case_00210.nii.gz; the archive has the challenge's names.

    Example: kitsattn evaluate submission predictions/ --images kits19/data/
    """
    from kitsattn.evaluate.challenge.submission import check_submission, guess_protocol, zip_submission

    check_suffix(out, ".zip")
    chosen = named_protocol(protocol) or guess_protocol(folder)
    with progress_bars() as progress:
        checked = check_submission(folder, images, chosen, workers=choose_workers(workers), progress=progress)
    for warning in checked.warnings:
        warn(warning)
    if not checked.problems:
        zip_submission(out, checked)
    output = Output(json)
    for note in checked.notes:
        output.say(note)
    for problem in checked.problems:
        warn(problem)
    lines = [] if checked.problems else [f"{out}: {len(checked.files)} files for {chosen.title}"]
    output.show({**checked.to_json(), "archive": None if checked.problems else str(out)}, lines)
    if checked.problems:
        msg = f"{out} was not written: fix the problems listed above, and run the command again"
        raise KitsattnError(msg)
