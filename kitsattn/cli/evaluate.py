"""`kitsattn evaluate`: scores of label maps, one subcommand a metric."""

from collections.abc import Mapping
from enum import StrEnum
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kitsattn.cli.console import print_json, print_result, progress_bars, say, warn
from kitsattn.cli.options import JsonOption, WorkersOption, WorkspaceOption
from kitsattn.errors import KitsattnError
from kitsattn.jobs import available_cores
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table

    from kitsattn.evaluate.metrics import Metric
    from kitsattn.evaluate.run import MatchedCases, Scores
    from kitsattn.labels import ScoringProtocol

app = typer.Typer(help="Score predicted label maps against references.", no_args_is_help=True)


class Protocol(StrEnum):
    """Choices of --protocol."""

    auto = "auto"
    kits19 = "kits19"
    kits23 = "kits23"


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
CsvOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write all scores as CSV, as KiTS23's evaluation.csv has them, in place of an older file.",
        show_default=False,
    ),
]
ProtocolOption = Annotated[Protocol, typer.Option(help="Which labels there are, and what is scored.")]

_PROTOCOLS = """\
kits19 scores kidney with tumour (labels 1, 2), and tumour (2).
kits23 scores kidney with masses (1, 2, 3), masses (2, 3), and tumour (2).

--protocol auto goes by the labels of the newest run, or of REF's kitsattn-dataset.json.
Without that file, KiTS21 and KiTS23 are known by their case folders, all else is kits19.
Labels of no challenge are scored one by one.

Example: kitsattn evaluate {command} predictions/ kits19/data/"""

_COMMANDS = {
    "dice": (
        ("dice",),
        """Dice of the regions that the data set's challenge evaluates, and the composite, the mean of their means.

A region that is empty in both label maps scores 1, in one of them 0.""",
    ),
    "surface-dice": (
        ("surface_dice",),
        """Share of both surfaces of each region within a tolerance of the other, as KiTS21 and KiTS23 score it.

The tolerances are theirs: kidney 1.033 mm, masses 1.133 mm, tumour 1.150 mm; 1 mm for labels of no challenge.
A region that is empty in both label maps scores 1, in one of them 0.""",
    ),
    "hd95": (
        ("hd95_mm",),
        """Distance in mm within which 95 % of either surface of each region lie, the larger of the two.

Surfaces are weighted by their area. Empty in both label maps is 0; in one of them it is left out of the mean.""",
    ),
    "assd": (
        ("assd_mm",),
        """Mean distance in mm of the surfaces of each region from each other, of both directions.

Surfaces are weighted by their area. Empty in both label maps is 0; in one of them it is left out of the mean.""",
    ),
    "all": (
        ("dice", "surface_dice", "hd95_mm", "assd_mm"),
        "All of these metrics.",
    ),
}
"""Subcommand -> keys of its metrics, and what its help says."""


def _add_command(name: str, keys: tuple[str, ...], text: str) -> None:
    def score(
        *,
        predictions: PredictionsArgument = None,
        references: ReferencesArgument = None,
        protocol: ProtocolOption = Protocol.auto,
        workers: WorkersOption = None,
        workspace: WorkspaceOption = None,
        csv: CsvOption = None,
        json: JsonOption = False,
    ) -> None:
        if csv is not None and csv.suffix.lower() != ".csv":
            msg = f"{csv} has no suffix of its format: name it .csv"  # it might be a label map, which would be lost
            raise KitsattnError(msg)
        matched, chosen = _choose_cases(predictions, references, protocol, workspace, name)
        _score(matched, chosen, keys, workers=workers or available_cores(), csv=csv, json=json)

    app.command(name, help=f"{text}\n\n{_PROTOCOLS.format(command=name)}")(score)


for _name, (_keys, _text) in _COMMANDS.items():
    _add_command(_name, _keys, _text)


def _choose_cases(
    predictions: Path | None, references: Path | None, protocol: Protocol, workspace: Path | None, command: str
) -> "tuple[MatchedCases, ScoringProtocol]":
    """Return what is scored, and how."""
    from kitsattn.evaluate.run import choose_protocol, match_cases
    from kitsattn.labels import KITS19, KITS23

    named = {Protocol.kits19: KITS19, Protocol.kits23: KITS23}.get(protocol)
    if predictions is None:
        matched, trained = _held_out(Workspace.choose(workspace))
        return matched, named or trained
    if references is None:
        msg = f"{predictions} needs references to be scored against: kitsattn evaluate {command} {predictions} REF"
        raise KitsattnError(msg)
    return match_cases(predictions, references), named or choose_protocol(references)


def _score(
    matched: "MatchedCases",
    protocol: "ScoringProtocol",
    keys: tuple[str, ...],
    *,
    workers: int,
    csv: Path | None,
    json: bool,
) -> None:
    """Score, write and print."""
    from kitsattn.evaluate.metrics import METRICS, rules_of
    from kitsattn.evaluate.run import evaluate_cases

    metrics = [metric for metric in METRICS if metric.key in keys]
    with progress_bars() as progress:
        scores = evaluate_cases(matched, metrics=metrics, protocol=protocol, workers=workers, progress=progress)
    if scores.missing:
        warn(f"no prediction, counted as empty: {', '.join(scores.missing)}")
    if scores.surplus:
        warn(f"no reference, left out: {', '.join(scores.surplus)}")
    if csv is not None:
        from kitsattn.evaluate.report import write_csv

        write_csv(csv, scores)
    if json:
        print_json(scores.to_json())
        return
    for metric in metrics:
        print_result(_table(scores, metric))
    for rule in rules_of(metrics, protocol.regions):
        print_result(rule)


def _held_out(workspace: Workspace) -> "tuple[MatchedCases, ScoringProtocol]":
    """Return the newest run's held-out predictions with their references, and how its labels are scored."""
    from kitsattn.checkpoint.header import read_header
    from kitsattn.evaluate.run import CasePair, MatchedCases
    from kitsattn.labels import protocol_of
    from kitsattn.preprocess.store import open_dataset
    from kitsattn.train.folds import read_or_make_splits

    pairs = []
    headers = {checkpoint: read_header(checkpoint)[0] for checkpoint in workspace.trained_runs()[0]}
    for checkpoint, header in headers.items():
        folder = checkpoint.parent / "validation"
        provenance = header.provenance
        dataset = open_dataset(workspace.preprocessed_dataset(provenance.dataset))
        held_out = read_or_make_splits(dataset.folder, dataset.cases)[provenance.fold].held_out
        found = [case_id for case_id in held_out if (folder / f"{case_id}.nii.gz").is_file()]
        if not found:
            say(f"fold {provenance.fold} has no held-out predictions yet and is left out")
            continue
        say(f"predictions: {folder}" + (" (SYNTHETIC phantoms)" * provenance.synthetic))
        for case_id in held_out:
            prediction = folder / f"{case_id}.nii.gz" if case_id in found else None
            pairs.append(CasePair(case_id, prediction, dataset.sources[case_id].labels))
    if not pairs:
        msg = "the newest run has no held-out predictions yet: let `kitsattn train` finish, or name PRED and REF"
        raise KitsattnError(msg)
    return MatchedCases(tuple(pairs)), protocol_of(header.labels)


def _table(scores: "Scores", metric: "Metric") -> "Table":
    from rich.table import Table

    from kitsattn.evaluate.metrics import DICE

    def one(value: float) -> str:
        return "not defined" if isnan(value) else f"{value:.{metric.digits}f}"

    def cells(regions: Mapping[str, Mapping[str, float]]) -> list[str]:
        return [one(region[metric.key]) for region in regions.values()]

    composite = f"; composite {scores.composite:.4f}" if metric is DICE else ""
    table = Table("case", *scores.mean, title=f"{metric.title} ({scores.protocol.title}){composite}")
    for case in scores.cases:
        table.add_row(case.case, *cells(case.regions))
    table.add_section()
    table.add_row("mean", *cells(scores.mean))
    if len(scores.cases) > 1:
        spreads = [spreads[metric.key] for spreads in scores.spread.values()]
        table.add_row("95 % interval", *(f"{one(s.low)} to {one(s.high)}" for s in spreads))
        table.add_row("median", *(one(spread.median) for spread in spreads))
        table.add_row("standard deviation", *(one(spread.deviation) for spread in spreads))
    return table
