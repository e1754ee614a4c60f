"""`kitsattn evaluate`: scores of label maps, one subcommand a metric."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kitsattn.cli.challenge import rank, submission
from kitsattn.cli.console import say, warn
from kitsattn.cli.options import (
    Application,
    JsonOption,
    Protocol,
    SchedulerOption,
    WorkersOption,
    WorkspaceOption,
    choose_workers,
    named_protocol,
)
from kitsattn.cli.output import Output
from kitsattn.cli.progress import progress_bars
from kitsattn.errors import KitsattnError
from kitsattn.evaluate.definition import Definition
from kitsattn.evaluate.metrics import LESIONS, METRICS
from kitsattn.files import check_suffix
from kitsattn.jobs import Workers
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table

    from kitsattn.evaluate.compare import Comparison
    from kitsattn.evaluate.scores import Scores
    from kitsattn.evaluate.scoring import Scoring
    from kitsattn.evaluate.task import Task

app = Application(help="Score predicted label maps against references.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Score predicted label maps against references, one subcommand a metric."""


PredictionsArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="PRED",
        help="Label map, or folder of them. (default: the newest run's held-out predictions)",
        show_default=False,
    ),
]
ReferencesArgument = Annotated[
    Path | None,
    typer.Argument(metavar="REF", help="Label map, or folder; cases are matched by id.", show_default=False),
]
CompareOption = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        metavar="A B",
        help="Compare two runs of the workspace, or two folders of predictions (then REF follows instead of PRED REF).",
        show_default=False,
    ),
]
CsvOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write scores in the format of KiTS23's evaluation.csv; an existing FILE is replaced.",
        show_default=False,
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write a page with tables, plots and the worst cases; it is replaced.", show_default=False
    ),
]
PngOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write box plots as a picture; it is replaced.", show_default=False),
]
ProtocolOption = Annotated[Protocol, typer.Option(help="Which labels there are, and what is scored.")]
DefinitionOption = Annotated[
    Definition, typer.Option(help="Definition of surface distances, named after the package that uses it.")
]

_PROTOCOLS = """\
kits19 scores kidney with tumour (labels 1, 2), and tumour (2).
kits23 scores kidney with masses (1, 2, 3), masses (2, 3), and tumour (2).

--protocol auto uses the labels of the newest run, or of REF's kitsattn-dataset.json or
nnU-Net's dataset.json. Without these, KiTS21 and KiTS23 are recognised by their case folders, and
everything else is kits19. Other labels are scored one by one.

Cases that cannot be scored are reported and skipped; the exit code is then 1.

Example: kitsattn evaluate {command} predictions/ kits19/data/"""

_COMMANDS = {
    **{metric.command: ((metric.key,), metric.help) for metric in METRICS},
    "detection": (
        (LESIONS,),
        """Detection of tumours, masses or cysts: precision, recall and F1 over all lesions, and by size.

A lesion is a connected component. It is found if a predicted one overlaps it with an intersection over union of 0.1
or more, one to one.""",
    ),
    "all": ((*(metric.key for metric in METRICS), LESIONS), "All metrics above."),
}
"""Subcommand -> keys of its metrics, and what its help says."""


def _add_command(name: str, keys: tuple[str, ...], text: str) -> None:
    def score(
        *,
        predictions: PredictionsArgument = None,
        references: ReferencesArgument = None,
        protocol: ProtocolOption = "auto",
        definition: DefinitionOption = Definition.surface_distance,
        compare: CompareOption = None,
        workers: WorkersOption = None,
        scheduler: SchedulerOption = None,
        workspace: WorkspaceOption = None,
        csv: CsvOption = None,
        html: HtmlOption = None,
        png: PngOption = None,
        json: JsonOption = False,
    ) -> None:
        from kitsattn.evaluate.scoring import choose_scoring

        outputs = {".csv": csv, ".html": html, ".png": png}
        for suffix, path in outputs.items():
            if path is not None:
                check_suffix(path, suffix)
        place, crew = Workspace.choose(workspace), choose_workers(workers, scheduler)

        def scored(task: "Task") -> "Scores":
            # Of lesions there is nothing to pair: they are counted over all cases.
            wanted = keys if compare is None else tuple(key for key in keys if key != LESIONS)
            return _score(task, choose_scoring(task.protocol, wanted, definition), crew)

        if compare is not None:
            if any(outputs.values()) or references is not None:
                msg = "--compare A B takes at most a REF, and prints tables or --json: leave the rest out"
                raise KitsattnError(msg)
            _compare([_choose_side(path, predictions, protocol, place) for path in compare], scored, Output(json))
            return
        task = _choose_task(predictions, references, protocol, place, name)
        scores = scored(task)
        try:
            Output(json).show(scores.to_json(), _describe(scores), whole=True)
        finally:  # who reads only the first lines wants the files all the same
            _write(task, scores, outputs)
        if scores.failed:
            raise typer.Exit(1)

    signature = inspect.signature(score)
    surfaces = any(metric.key in keys and metric.distances != "none" for metric in METRICS)
    hidden = set() if surfaces else {"definition"}
    if keys == (LESIONS,):
        hidden |= {"png", "compare"}
    shown = [value for value in signature.parameters.values() if value.name not in hidden]
    score.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    app.command(name, help=f"{text}\n\n{_PROTOCOLS.format(command=name)}")(score)


for _name, (_keys, _text) in _COMMANDS.items():
    _add_command(_name, _keys, _text)


app.command("rank")(rank)
app.command("submission")(submission)


def _score(task: "Task", scoring: "Scoring", workers: Workers) -> "Scores":
    """Score, and tell what could not be or was not as expected."""
    from kitsattn.evaluate.run import evaluate_cases

    with progress_bars() as progress:
        scores = evaluate_cases(task.matched, scoring, workers=workers, progress=progress)
    for reason in scores.failed.values():
        warn(f"not scored: {reason}")
    if scores.missing:
        warn(f"{task.name} has no prediction, counted as empty, of {', '.join(scores.missing)}")
    if scores.surplus:
        warn(f"{task.name} has predictions without a reference, left out: {', '.join(scores.surplus)}")
    if scores.turned:
        say(f"{task.name}: stored in another orientation than the reference, and turned: {', '.join(scores.turned)}")
    return scores


def _choose_task(
    predictions: Path | None, references: Path | None, protocol: Protocol, workspace: Workspace, command: str
) -> "Task":
    """Return what is scored: the newest run's held-out predictions, or what is named."""
    if predictions is None:
        from kitsattn.train.held_out import held_out_task  # loads blosc2, which named files need not wait for

        return held_out_task(workspace.trained_runs()[0], workspace, named_protocol(protocol))
    if references is None:
        msg = f"{predictions} needs references to be scored against: kitsattn evaluate {command} {predictions} REF"
        raise KitsattnError(msg)
    from kitsattn.evaluate.task import find_task

    return find_task(predictions, references, named_protocol(protocol))


def _choose_side(path: Path, references: Path | None, protocol: Protocol, workspace: Workspace) -> "Task":
    """Return what is scored of one side of a comparison: predictions with references, or a run by folder or name."""
    if references is not None:
        from kitsattn.evaluate.task import find_task

        return find_task(path, references, named_protocol(protocol))
    from kitsattn.train.held_out import find_checkpoints, held_out_task

    return held_out_task(find_checkpoints(path, workspace), workspace, named_protocol(protocol))


def _describe(scores: "Scores") -> "Iterator[str | Table]":
    from kitsattn.cli.scores import detection_table, score_table
    from kitsattn.evaluate.describe import describe_agreement, describe_detection

    for metric in scores.scoring.metrics:
        yield score_table(scores, metric)
    if scores.lesions:
        yield detection_table(scores)
    yield from (*describe_agreement(scores), *describe_detection(scores), *scores.scoring.rules)


def _compare(tasks: "list[Task]", scored: "Callable[[Task], Scores]", output: Output) -> None:
    """Score both sides, compare them and show that."""
    from kitsattn.evaluate.compare import compare_scores

    if tasks[0].protocol != tasks[1].protocol:
        msg = f"{tasks[0].name} and {tasks[1].name} have different labels: name the --protocol that both are scored by"
        raise KitsattnError(msg)
    first, second = (scored(task) for task in tasks)
    comparison = compare_scores((tasks[0].name, tasks[1].name), first, second)
    if comparison.unpaired:
        warn(f"in one of both only, left out: {', '.join(comparison.unpaired)}")
    output.show(comparison.to_json(), _describe_comparison(comparison), whole=True)
    if first.failed or second.failed:
        raise typer.Exit(1)


def _describe_comparison(comparison: "Comparison") -> "Iterator[str | Table]":
    from kitsattn.cli.scores import comparison_tables
    from kitsattn.evaluate.compare import COMPARE_RULE

    yield from comparison_tables(comparison)
    yield from (*comparison.scoring.rules, COMPARE_RULE)


def _write(task: "Task", scores: "Scores", outputs: Mapping[str, Path | None]) -> None:
    """Write what was asked for."""
    if not any(outputs.values()):
        return
    from kitsattn.evaluate.report import report_task, write_picture
    from kitsattn.evaluate.table import write_csv

    if (table := outputs[".csv"]) is not None:
        write_csv(table, scores)
    if (picture := outputs[".png"]) is not None:
        write_picture(picture, scores, title=f"Evaluation of {task.name}", synthetic=task.synthetic)
    if (page := outputs[".html"]) is not None:
        with progress_bars() as progress:
            report_task(page, task, scores, progress=progress)
