"""`kitsattn preprocess`: raw scans and label maps become prepared cases."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kitsattn.cli.console import command_line, log_file, say
from kitsattn.cli.options import AssumeHuOption, JsonOption, SchedulerOption, WorkspaceOption, choose_workers
from kitsattn.cli.output import Output
from kitsattn.cli.progress import progress_bars
from kitsattn.errors import KitsattnError
from kitsattn.jobs import Workers
from kitsattn.words import plural
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table

    from kitsattn.datasets.dataset import Dataset
    from kitsattn.jobs import Progress
    from kitsattn.preprocess.run import Prepared
    from kitsattn.preprocess.verify import Finding

_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


Window = Literal["paper", "nnunet"]
"""`kitsattn.preprocess.plan.Window`, without NumPy."""
Layout = Literal["kits19", "kits21", "kits23", "nnunet", "pairs"]
"""One of `kitsattn.datasets.find.LAYOUTS`."""


def preprocess(
    *,
    raw: Annotated[
        Path | None,
        typer.Argument(
            metavar="RAW",
            help="Folder of the data set: KiTS, nnU-Net's raw layout, or file pairs. (default: the only one in raw/)",
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(help="Layout of the files in RAW. (default: recognised by the file names)", show_default=False),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read every voxel and report what is wrong or unusual, without preparing anything."
        ),
    ] = False,
    spacing: Annotated[
        float | None,
        typer.Option(metavar="MM", help="In-plane spacing. (default: the data set's median)", show_default=False),
    ] = None,
    window: Annotated[
        Window | None,
        typer.Option(
            help="HU window: the paper's -300 to 300, or nnU-Net's percentiles. (default: paper)",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Use this plan (JSON) instead of making one.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes. (default: as many as cores and memory allow)", show_default=False),
    ] = None,
    scheduler: SchedulerOption = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write an HTML page with plots, findings and a preview of every case.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Keep finished cases, or prepare all of them again.")
    ] = True,
    assume_hu: AssumeHuOption = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Prepare a data set for training: crop to the body, clip to [-300, 300] HU, resample in-plane, normalise.

    The result goes to WORKSPACE/preprocessed/NAME, together with the plan: edit a copy and pass it with --plan.
    Cases that cannot be prepared are reported and skipped; the exit code is then 1.

    Example: kitsattn preprocess ~/data/kits19
    """
    from kitsattn.datasets.find import find_dataset
    from kitsattn.preprocess.run import preprocess_dataset, verify_dataset

    for one, other, reason in (
        (verify and "--verify", report and "--report", "verifying prepares nothing that a report could show"),
        (plan and "--plan", window and "--window", "a plan has its own window"),
        (workers and "--workers", scheduler and "--scheduler", "the cluster has its own workers"),
    ):
        if one and other:
            msg = f"{one} does not go with {other}: {reason}; leave one of them out"
            raise KitsattnError(msg)
    # None: as many as memory allows, too.
    crew = Workers(workers or 1, scheduler=scheduler) if workers or scheduler else None
    output, places = Output(json), Workspace.choose(workspace)
    named = [] if raw is None else [raw]
    if raw is None:
        raw = places.raw_dataset()
        say(f"data set: {raw}")
    dataset = find_dataset(raw, layout=layout)
    say(f"layout: {dataset.layout} ({plural(len(dataset.cases), 'case')} in {dataset.folder})")
    if verify:
        options = ["--assume-hu"] if assume_hu else []
        following = command_line("preprocess", *named, *options, workspace=workspace)
        with progress_bars() as progress:
            findings = verify_dataset(dataset, workers=crew, assume_hu=assume_hu, progress=progress)
        _show_verified(dataset, findings, following=following, output=output)
        return
    folder = places.preprocessed / dataset.name
    with log_file(folder / "preprocess.log"), progress_bars() as progress:
        result = preprocess_dataset(
            dataset,
            folder,
            spacing_mm=spacing,
            window=window or "paper",
            plan_file=plan,
            workers=crew,
            resume=resume,
            assume_hu=assume_hu,
            progress=progress,
        )
        following = command_line("train", *_choice(places, folder), "--fold", "0", workspace=workspace)
        page = _report(result, following, crew or choose_workers(None), progress) if report else None
    prepared = result.dataset
    content = {
        "dataset": prepared.name,
        "folder": str(folder),
        "cases": list(prepared.cases),
        "kept": result.kept,
        "report": None if page is None else str(page),
        "findings": _plain(result.findings),
    }
    output.show(content, _describe(result, folder, page))
    notes = sum(finding.severity == "note" for finding in result.findings)
    if notes:
        output.say(f"notes on these data: {notes}, see preprocess.log there, --report or --verify")
    output.say(f"next: {following}")
    _refuse_wrong(result.findings, len(dataset.cases))


def _describe(result: "Prepared", folder: Path, page: Path | None) -> "Iterator[str | Table]":
    yield from _findings_table(result.findings, but="note")
    kept = f", {result.kept} of them before" if result.kept else ""
    yield f"{plural(len(result.dataset.cases), 'case')} prepared{kept} in {folder}"
    if page is not None:
        yield f"report: {page}"


def _choice(places: Workspace, folder: Path) -> list[str]:
    """Return the option that chooses a prepared data set, where it would not be taken anyway."""
    try:
        taken = places.preprocessed_dataset()
    except KitsattnError:
        taken = None
    return [] if taken == folder else ["--dataset", folder.name]


def _report(result: "Prepared", following: str, workers: Workers, progress: "Progress") -> Path:
    from kitsattn.preprocess.report import report_dataset

    return report_dataset(result, next_step=following, workers=workers, progress=progress)


def _show_verified(dataset: "Dataset", findings: "Sequence[Finding]", *, following: str, output: Output) -> None:
    """Show what was found in a data set; end with an error if a case cannot be used."""
    wrong = {finding.case_id for finding in findings if finding.severity == "error"}
    summary = f"{plural(len(dataset.cases), 'case')} read, {len(wrong) or 'none'} with errors"
    content = {"dataset": dataset.name, "cases": len(dataset.cases), "findings": _plain(findings)}
    output.show(content, (*_findings_table(findings), summary))
    if len(wrong) < len(dataset.cases):
        output.say(f"next: {following}")
    _refuse_wrong(findings, len(dataset.cases))


def _plain(findings: "Sequence[Finding]") -> list[dict[str, str | None]]:
    return [{"case": found.case_id, "severity": found.severity, "text": found.text} for found in findings]


def _findings_table(findings: "Sequence[Finding]", *, but: str = "") -> "list[Table]":
    """Return a table of the findings, except those of the severity `but`; none if nothing was found."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "case", "what was found", title="Findings")
    for finding in findings:
        if finding.severity != but:
            severity = Text(finding.severity, style=_COLOURS[finding.severity])
            table.add_row(severity, finding.case_id or "all", Text(finding.text))
    return [table] if table.row_count else []


def _refuse_wrong(findings: "Sequence[Finding]", cases: int) -> None:
    """End with an error if there is one among the findings."""
    wrong = sum(finding.severity == "error" for finding in findings)
    if wrong:
        of_all = f"{wrong} of {plural(cases, 'case')}"
        msg = f"{of_all} cannot be used: fix them as the findings say, and run the command again"
        raise KitsattnError(msg)
