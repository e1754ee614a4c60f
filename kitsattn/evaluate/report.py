"""What a cohort's scores leave behind: summary.json, and a one-page HTML report with pictures."""

from collections.abc import Mapping
from pathlib import Path

from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.overlap import EMPTY_RULE
from kitsattn.evaluate.run import Scores
from kitsattn.figures.page import Gallery, Page, Picture, Table, write_page
from kitsattn.files import write_json
from kitsattn.labels import KITS19_REGIONS
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_SCORES_NOTICE

_REGION_NOTE = (
    "Dice coefficient by the KiTS19 protocol. Kidney and tumour: labels 1 and 2 as one region. Tumour: label 2."
    " Mean: over the cases. Composite: the mean of the two mean values."
)


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
    pictures = tuple(_picture(by_id[case], image) for case, image in images.items())
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
    keys = [region.key for region in KITS19_REGIONS]
    notes = [_REGION_NOTE, EMPTY_RULE]
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


def _picture(scored: CaseScores, image: Path) -> Picture:
    dice = ", ".join(f"{_name(key).lower()} {metrics['dice']:.3f}" for key, metrics in scored.regions.items())
    return Picture(
        image=image,
        caption=f"{scored.case}. Dice: {dice}.",
        description=f"CT slices of {scored.case} with the outlines of kidney and tumour, predicted and reference.",
    )


def _name(key: str) -> str:
    return key.replace("_", " ").capitalize()
