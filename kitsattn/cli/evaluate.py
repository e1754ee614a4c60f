"""`kitsattn evaluate`: scores of label maps, one subcommand a metric."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kitsattn.cli.challenge import rank, submission
from kitsattn.cli.console import print_json, print_result, progress_bars, say, warn
from kitsattn.cli.options import (
    Application,
    JsonOption,
    Protocol,
    SchedulerOption,
    WorkersOption,
    WorkspaceOption,
    check_suffix,
    named_protocol,
)
from kitsattn.errors import KitsattnError
from kitsattn.evaluate.definition import Definition
from kitsattn.evaluate.metrics import METRICS
from kitsattn.jobs import available_cores
from kitsattn.words import readable
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from kitsattn.evaluate.match import MatchedCases
    from kitsattn.evaluate.scores import Scores
    from kitsattn.evaluate.scoring import Scoring
    from kitsattn.labels import ScoringProtocol

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

--protocol auto goes by the labels of the newest run, or of REF's kitsattn-dataset.json or
nnU-Net's dataset.json. Without these, KiTS21 and KiTS23 are known by their case folders, all else is kits19.
Labels of no challenge are scored one by one.

A case that cannot be scored is told and left out; the exit code is then 1.

Example: kitsattn evaluate {command} predictions/ kits19/data/"""

_LESIONS = "lesions"
_COMMANDS = {
    **{metric.command: ((metric.key,), metric.help) for metric in METRICS},
    "detection": (
        (_LESIONS,),
        """Detection of tumours, masses or cysts: precision, recall and F1 over all lesions, and by size.

A lesion is a connected component. It is found if a predicted one overlaps it with an intersection over union of 0.1
or more, one to one.""",
    ),
    "all": ((*(metric.key for metric in METRICS), _LESIONS), "All metrics above."),
}
"""Subcommand -> keys of its metrics, and what its help says."""


@dataclass(frozen=True)
class _Job:
    """What is scored.

    Attributes:
        name: Of the predictions.
        matched: The cases.
        protocol: How their labels are scored.
        references: What lies around the references tells of their scans; None where the cases know theirs.
        synthetic: Whether the scans are phantoms.
    """

    name: str
    matched: "MatchedCases"
    protocol: "ScoringProtocol"
    references: Path | None
    synthetic: bool


def _add_command(name: str, keys: tuple[str, ...], text: str) -> None:
    def score(
        *,
        predictions: PredictionsArgument = None,
        references: ReferencesArgument = None,
        protocol: ProtocolOption = Protocol.auto,
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
        outputs = {".csv": csv, ".html": html, ".png": png}
        for suffix, path in outputs.items():
            if path is not None:
                check_suffix(path, suffix)
        place, cores = Workspace.choose(workspace), workers or available_cores()

        def scored(job: _Job) -> "Scores":
            # Of lesions there is nothing to pair: they are counted over all cases.
            wanted = keys if compare is None else tuple(key for key in keys if key != _LESIONS)
            return _score(job, _scoring(job.protocol, wanted, definition), cores, scheduler)

        if compare is not None:
            if any(outputs.values()) or references is not None:
                msg = "--compare A B takes at most a REF, and prints tables or --json: leave the rest out"
                raise KitsattnError(msg)
            _compare([_choose_run(path, predictions, protocol, place) for path in compare], scored, json=json)
            return
        job = _choose_cases(predictions, references, protocol, place, name)
        scores = scored(job)
        try:
            _print(scores, json=json)
        finally:  # who reads only the first lines wants the files all the same
            _write(job, scores, outputs)
        if scores.failed:
            raise typer.Exit(1)

    signature = inspect.signature(score)
    surfaces = any(metric.key in keys and metric.distances != "none" for metric in METRICS)
    hidden = set() if surfaces else {"definition"}
    if keys == (_LESIONS,):
        hidden |= {"png", "compare"}
    shown = [value for value in signature.parameters.values() if value.name not in hidden]
    score.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    app.command(name, help=f"{text}\n\n{_PROTOCOLS.format(command=name)}")(score)


for _name, (_keys, _text) in _COMMANDS.items():
    _add_command(_name, _keys, _text)


app.command("rank")(rank)
app.command("submission")(submission)


def _scoring(protocol: "ScoringProtocol", keys: tuple[str, ...], definition: Definition) -> "Scoring":
    """Return what a subcommand scores."""
    from kitsattn.evaluate.scoring import Scoring

    lesions = _LESIONS in keys
    if keys == (_LESIONS,) and not any(region.lesions for region in protocol.regions):
        regions = ", ".join(region.key for region in protocol.regions)
        msg = f"no region is of lesions ({regions}): a class is if its name says tumour, mass, cyst or lesion"
        raise KitsattnError(msg)
    metrics = tuple(metric for metric in METRICS if metric.key in keys)
    return Scoring(protocol, metrics, lesions, definition)


def _score(job: _Job, scoring: "Scoring", workers: int, scheduler: str | None) -> "Scores":
    """Score, and tell what could not be or was not as expected."""
    from kitsattn.evaluate.run import evaluate_cases

    with progress_bars() as progress:
        scores = evaluate_cases(job.matched, scoring, workers=workers, scheduler=scheduler, progress=progress)
    for reason in scores.failed.values():
        warn(f"not scored: {reason}")
    if scores.missing:
        warn(f"{job.name} has no prediction, counted as empty, of {', '.join(scores.missing)}")
    if scores.surplus:
        warn(f"{job.name} has predictions without a reference, left out: {', '.join(scores.surplus)}")
    if scores.turned:
        say(f"{job.name}: stored in another orientation than the reference, and turned: {', '.join(scores.turned)}")
    return scores


def _choose_cases(
    predictions: Path | None, references: Path | None, protocol: Protocol, workspace: Workspace, command: str
) -> _Job:
    """Return what is scored: the newest run's held-out predictions, or what is named."""
    if predictions is None:
        return _held_out(workspace.trained_runs()[0], workspace, protocol)
    if references is None:
        msg = f"{predictions} needs references to be scored against: kitsattn evaluate {command} {predictions} REF"
        raise KitsattnError(msg)
    return _named(predictions, references, protocol)


def _choose_run(path: Path, references: Path | None, protocol: Protocol, workspace: Workspace) -> _Job:
    """Return what is scored of one side of a comparison: predictions with references, or a run by folder or name."""
    if references is not None:
        return _named(path, references, protocol)
    for folder in (path, workspace.runs / path):
        checkpoints = sorted(folder.glob("fold_*/best.safetensors"))
        if checkpoints:
            return _held_out(checkpoints, workspace, protocol)
    msg = f"{path} is not a run in {workspace.runs}: name one, or folders of predictions with a REF behind them"
    raise KitsattnError(msg)


def _named(predictions: Path, references: Path, protocol: Protocol) -> _Job:
    from kitsattn.datasets.dataset import read_description
    from kitsattn.evaluate.match import choose_protocol, match_cases

    place = references.absolute()
    matched, chosen = match_cases(predictions, references), named_protocol(protocol) or choose_protocol(references)
    synthetic = read_description(place, *place.parents).synthetic
    return _Job(readable(str(predictions)), matched, chosen, references, synthetic)


def _held_out(checkpoints: list[Path], workspace: Workspace, protocol: Protocol) -> _Job:
    """Return a run's held-out predictions with their references, and how its labels are scored."""
    from kitsattn.checkpoint.header import read_header
    from kitsattn.evaluate.match import CasePair, MatchedCases
    from kitsattn.labels import protocol_of
    from kitsattn.preprocess.store import open_dataset
    from kitsattn.train.folds import read_or_make_splits

    pairs, synthetic = [], False
    for checkpoint in checkpoints:
        header, _ = read_header(checkpoint)
        folder, made = checkpoint.parent / "validation", header.provenance
        dataset = open_dataset(workspace.preprocessed_dataset(made.dataset))
        held_out = read_or_make_splits(dataset.folder, dataset.cases)[made.fold].held_out
        found = [case_id for case_id in held_out if (folder / f"{case_id}.nii.gz").is_file()]
        if not found:
            say(f"fold {made.fold} has no held-out predictions yet and is left out")
            continue
        say(f"predictions: {folder}" + (" (SYNTHETIC phantoms)" * made.synthetic))
        labels, synthetic = header.labels, synthetic or made.synthetic
        for case_id in held_out:
            prediction = folder / f"{case_id}.nii.gz" if case_id in found else None
            source = dataset.sources[case_id]
            pairs.append(CasePair(case_id, prediction, source.labels, source.image))
    run = checkpoints[0].parents[1]
    if not pairs:
        msg = f"{run} has no held-out predictions yet: let `kitsattn train` finish, or name PRED and REF"
        raise KitsattnError(msg)
    chosen = named_protocol(protocol) or protocol_of(labels)
    return _Job(readable(run.name), MatchedCases(tuple(pairs)), chosen, None, synthetic)


def _print(scores: "Scores", *, json: bool) -> None:
    """Print scores."""
    if json:
        print_json(scores.to_json())
        return
    from kitsattn.cli.scores import detection_table, score_table
    from kitsattn.evaluate.describe import describe_agreement, describe_detection

    for metric in scores.scoring.metrics:
        print_result(score_table(scores, metric), whole=True)
    if scores.lesions:
        print_result(detection_table(scores), whole=True)
    for sentence in (*describe_agreement(scores), *describe_detection(scores), *scores.scoring.rules):
        print_result(sentence)


def _compare(jobs: list[_Job], scored: "Callable[[_Job], Scores]", *, json: bool) -> None:
    """Score both sides, compare them and print that."""
    from kitsattn.evaluate.compare import COMPARE_RULE, compare_scores

    if jobs[0].protocol != jobs[1].protocol:
        msg = f"{jobs[0].name} and {jobs[1].name} have different labels: name the --protocol that both are scored by"
        raise KitsattnError(msg)
    first, second = (scored(job) for job in jobs)
    comparison = compare_scores((jobs[0].name, jobs[1].name), first, second)
    if comparison.unpaired:
        warn(f"in one of both only, left out: {', '.join(comparison.unpaired)}")
    if json:
        print_json(comparison.to_json())
    else:
        from kitsattn.cli.scores import comparison_tables

        for table in comparison_tables(comparison):
            print_result(table, whole=True)
        for sentence in (*comparison.scoring.rules, COMPARE_RULE):
            print_result(sentence)
    if first.failed or second.failed:
        raise typer.Exit(1)


def _write(job: _Job, scores: "Scores", outputs: Mapping[str, Path | None]) -> None:
    """Write what was asked for."""
    if not any(outputs.values()):
        return
    from kitsattn.evaluate.report import write_picture
    from kitsattn.evaluate.table import write_csv

    if (table := outputs[".csv"]) is not None:
        write_csv(table, scores)
    if (picture := outputs[".png"]) is not None:
        write_picture(picture, scores, title=f"Evaluation of {job.name}", synthetic=job.synthetic)
    if (page := outputs[".html"]) is not None:
        _write_page(page, job, scores)


def _write_page(path: Path, job: _Job, scores: "Scores") -> None:
    """Write the report, with pictures of the worst cases."""
    from tempfile import TemporaryDirectory

    from kitsattn import __version__
    from kitsattn.evaluate.match import add_scans
    from kitsattn.evaluate.report import PICTURES, draw_case, write_report

    matched = job.matched if job.references is None else add_scans(job.matched, job.references)
    pairs = {pair.case: pair for pair in matched.pairs}
    provenance: Mapping[str, str] = {
        "predictions": job.name,
        **({} if job.references is None else {"references": str(job.references)}),
        "protocol": job.protocol.title,
        "versions": f"kitsattn {__version__}",
    }
    with TemporaryDirectory() as folder, progress_bars() as progress:
        worst = [case.case for case in scores.worst_first()[:PICTURES]]
        images = {}
        progress("pictures", 0, len(worst))
        for done, case in enumerate(worst, start=1):
            images[case] = Path(folder) / f"{done}.png"
            draw_case(images[case], pairs[case], job.protocol)
            progress("pictures", done, len(worst))
        write_report(
            path,
            scores,
            title=f"Evaluation of {job.name}",
            provenance=provenance,
            synthetic=job.synthetic,
            images=images,
        )
