"""What a cohort's scores leave behind: summary.json, a table as CSV, and a one-page HTML report with pictures."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from math import isnan
from pathlib import Path

from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.overlap import EMPTY_RULE
from kitsattn.evaluate.run import Scores
from kitsattn.figures.page import Gallery, Page, Picture, Table, write_page
from kitsattn.files import write_json, write_text
from kitsattn.labels import BACKGROUND, KITS23, Region, ScoringProtocol
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_SCORES_NOTICE

_CSV_REGIONS = {"kidney_and_masses": "kidney", "masses": "masses", "tumour": "tumor"}
_CSV_METRICS = {"dice": "Dice", "surface_dice": "SD", "hd95_mm": "HD95_mm", "assd_mm": "ASSD_mm"}
"""What KiTS21 and KiTS23 call them, and what else there is in their manner."""


def write_summary(path: Path, scores: Scores, *, provenance: Mapping[str, str]) -> None:
    """Write the scores as JSON, atomically, replacing an existing file.

    Args:
        path: The file, by custom `summary.json`.
        scores: The scores; `Scores.to_json` says how they are laid out.
        provenance: What the scores were made with, by name.

    Raises:
        KitsattnError: If the file cannot be written.
    """
    write_json(path, {**scores.to_json(), "provenance": dict(provenance)})


def write_csv(path: Path, scores: Scores) -> None:
    """Write the scores as a table, atomically, replacing an existing file.

    The columns are in the order of KiTS21's and KiTS23's `evaluation.csv`, and for their protocol have its names: the
    case, every region's Dice, every region's surface Dice, and so on. The last row, `average`, is the mean over the
    cases; what is not defined is empty.

    Args:
        path: The file, by custom `evaluation.csv`.
        scores: The scores.

    Raises:
        KitsattnError: If the file cannot be written.
    """
    official = scores.protocol == KITS23
    names = {region.key: _CSV_REGIONS[region.key] if official else region.key for region in scores.protocol.regions}
    columns = [(metric, region) for metric in scores.metrics for region in names]
    rows = [["caseID", *(f"{_CSV_METRICS[metric.key]}_{names[region]}" for metric, region in columns)]]
    for name, regions in [*((case.case, case.regions) for case in scores.cases), ("average", scores.mean)]:
        values = [regions[region][metric.key] for metric, region in columns]
        rows.append([name, *("" if isnan(value) else f"{value:.8f}" for value in values)])
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_report(
    path: Path,
    scores: Scores,
    *,
    title: str,
    provenance: Mapping[str, str],
    synthetic: bool,
    images: Mapping[str, Path],
    next_steps: Mapping[str, str] | None = None,
) -> None:
    """Write the scores as a one-page HTML that needs no other file, atomically, replacing an existing one.

    Args:
        path: The HTML file.
        scores: The scores.
        title: The page's headline.
        provenance: What the scores were made with, by name.
        synthetic: Whether the cases, or the training data of the model, are phantoms.
        images: Id of a scored case to its overlay sheet, a PNG.
        next_steps: What to type next: command to purpose.

    Raises:
        KitsattnError: If the file cannot be written.
        OSError: If an image cannot be read.
    """
    warnings = [SYNTHETIC_SCORES_NOTICE, RESEARCH_NOTICE] if synthetic else [RESEARCH_NOTICE]
    if scores.missing:
        warnings.append(f"No prediction was found for {', '.join(scores.missing)}: scored as all background.")
    by_id = {case.case: case for case in scores.cases}
    pictures = tuple(_picture(by_id[case], scores.protocol, image) for case, image in images.items())
    write_page(
        path,
        Page(
            title=title,
            warnings=tuple(warnings),
            parts=(_score_table(scores), Gallery("Pictures", pictures)) if pictures else (_score_table(scores),),
            provenance=provenance,
            next_steps=next_steps or {},
        ),
    )


def _score_table(scores: Scores) -> Table:
    keys = [region.key for region in scores.protocol.regions]
    notes = [_describe_protocol(scores.protocol), EMPTY_RULE]
    if scores.surplus:
        notes.append(f"Left out, having no reference: {', '.join(scores.surplus)}.")
    return Table(
        caption=f"Scores of {len(scores.cases)} case{'' if len(scores.cases) == 1 else 's'}:"
        f" composite {scores.composite:.3f}",
        columns=("Case", *(f"{_name(key)}, Dice" for key in keys)),
        rows=tuple((case.case, *(case.regions[key]["dice"] for key in keys)) for case in scores.cases),
        summary=("Mean", *(scores.mean[key]["dice"] for key in keys)),
        notes=tuple(notes),
    )


def _describe_protocol(protocol: ScoringProtocol) -> str:
    regions = " ".join(f"{_name(region.key)}: {_describe_labels(region, protocol)}." for region in protocol.regions)
    return (
        f"Dice coefficient ({protocol.title}). {regions}"
        " Mean: over the cases. Composite: the mean of the regions' mean values."
    )


def _describe_labels(region: Region, protocol: ScoringProtocol) -> str:
    members = [f"{value} ({name})" for name, value in protocol.labels.items() if value in region.labels]
    return f"label {members[0]}" if len(members) == 1 else f"labels {_enumerate(members)} as one region"


def _picture(scored: CaseScores, protocol: ScoringProtocol, image: Path) -> Picture:
    dice = ", ".join(f"{_name(key).lower()} {metrics['dice']:.3f}" for key, metrics in scored.regions.items())
    outlined = _enumerate([name for name, value in protocol.labels.items() if value != BACKGROUND])
    return Picture(
        image=image,
        caption=f"{scored.case}. Dice: {dice}.",
        description=f"CT slices of {scored.case} with the outlines of {outlined}, predicted and reference.",
    )


def _enumerate(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _name(key: str) -> str:
    return key.replace("_", " ").capitalize()
