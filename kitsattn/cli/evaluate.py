"""`kitsattn evaluate`: scores of label maps, one subcommand a metric."""

from enum import StrEnum
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


@app.command("dice")
def dice(
    *,
    predictions: Annotated[
        Path | None,
        typer.Argument(
            metavar="PRED",
            help="Label map, or folder of them. (default: the newest run's held-out predictions)",
            show_default=False,
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Argument(metavar="REF", help="Label map, or folder; cases are matched by id.", show_default=False),
    ] = None,
    protocol: Annotated[Protocol, typer.Option(help="Which labels there are, and what is scored.")] = Protocol.auto,
    workers: WorkersOption = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Dice of the regions that the data set's challenge evaluates, and the composite, the mean of their means.

    kits19 scores kidney with tumour (labels 1, 2), and tumour (2).
    kits23 scores kidney with masses (1, 2, 3), masses (2, 3), and tumour (2).
    A region that is empty in both label maps scores 1, in one of them 0.

    --protocol auto goes by the labels of the newest run, or of REF's kitsattn-dataset.json.
    Without that file, KiTS21 and KiTS23 are known by their case folders, all else is kits19.
    Labels of no challenge are scored one by one.

    Example: kitsattn evaluate dice predictions/ kits19/data/
    """
    from kitsattn.evaluate.overlap import EMPTY_RULE
    from kitsattn.evaluate.run import choose_protocol, evaluate_dice, match_cases
    from kitsattn.labels import KITS19, KITS23

    named = {Protocol.kits19: KITS19, Protocol.kits23: KITS23}.get(protocol)
    if predictions is None:
        matched, trained = _held_out(Workspace.choose(workspace))
        chosen = named or trained
    elif references is None:
        msg = f"{predictions} needs references to be scored against: kitsattn evaluate dice {predictions} REF"
        raise KitsattnError(msg)
    else:
        matched = match_cases(predictions, references)
        chosen = named or choose_protocol(references)
    with progress_bars() as progress:
        scores = evaluate_dice(matched, protocol=chosen, workers=workers or available_cores(), progress=progress)
    if scores.missing:
        warn(f"no prediction, counted as empty: {', '.join(scores.missing)}")
    if scores.surplus:
        warn(f"no reference, left out: {', '.join(scores.surplus)}")
    if json:
        print_json(scores.to_json())
    else:
        print_result(_table(scores))
        print_result(EMPTY_RULE)


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


def _table(scores: "Scores") -> "Table":
    from rich.table import Table

    regions = list(scores.mean)
    table = Table("case", *regions, title=f"Dice ({scores.protocol.title}); composite {scores.composite:.4f}")
    for case in scores.cases:
        table.add_row(case.case, *(f"{case.regions[region]['dice']:.4f}" for region in regions))
    table.add_section()
    table.add_row("mean", *(f"{scores.mean[region]['dice']:.4f}" for region in regions))
    return table
