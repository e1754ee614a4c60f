"""What a cohort's scores leave behind: summary.json, a picture, and a one-page HTML report."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.describe import (
    describe_agreement,
    describe_detection,
    describe_sizes,
    region_name,
    show,
    show_interval,
)
from kitsattn.evaluate.match import CasePair, add_scans
from kitsattn.evaluate.metrics.dice import DICE
from kitsattn.evaluate.metrics.metric import Metric
from kitsattn.evaluate.metrics.volume_difference import PREDICTED, REFERENCE, VOLUME_DIFFERENCE
from kitsattn.evaluate.scores import Scores
from kitsattn.evaluate.scoring import Scoring
from kitsattn.evaluate.task import Task
from kitsattn.figures.page import Gallery, Page, Picture, Table, write_page
from kitsattn.files import write_json
from kitsattn.jobs import Progress, silent
from kitsattn.labels import BACKGROUND, KITS19, KITS23, Region, ScoringProtocol
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_SCORES_NOTICE
from kitsattn.version import __version__
from kitsattn.volume.formats import read_labels, read_scan
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.hu import check_hu
from kitsattn.volume.volume import Volume
from kitsattn.words import plural

if TYPE_CHECKING:
    from kitsattn.evaluate.spread import Spread
    from kitsattn.figures.scores import ScorePanel

PICTURES = 6
"""How many of the worst cases a report shows."""

_AIR_HU = -1000


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
    images: Mapping[str, Path | bytes],
    next_steps: Mapping[str, str] | None = None,
) -> None:
    """Write the scores as a one-page HTML that needs no other file, atomically, replacing an existing one.

    Args:
        path: The HTML file.
        scores: The scores.
        title: The page's headline.
        provenance: What the scores were made with, by name.
        synthetic: Whether the cases, or the training data of the model, are phantoms.
        images: Id of a scored case to its overlay sheet, a PNG or the file that holds it.
        next_steps: What to type next: command to purpose.

    Raises:
        KitsattnError: If the file cannot be written.
        OSError: If an image cannot be read.
    """
    warnings = [SYNTHETIC_SCORES_NOTICE, RESEARCH_NOTICE] if synthetic else [RESEARCH_NOTICE]
    if scores.missing:
        warnings.append(f"No prediction was found for {', '.join(scores.missing)}: scored as all background.")
    warnings += [f"Not scored: {case}: {reason}." for case, reason in scores.failed.items()]
    parts: list[Table | Gallery] = [_score_table(scores, metric) for metric in scores.scoring.metrics]
    if scores.lesions:
        parts.append(_lesion_table(scores))
    if len(scores.cases) > 1 and scores.scoring.metrics:
        parts.append(Gallery("Plots", _plots(scores), side_by_side=True))
    by_id = {case.case: case for case in scores.cases}
    pictures = tuple(_picture(by_id[case], scores.scoring, image) for case, image in images.items())
    if pictures:
        parts.append(Gallery("Pictures", pictures))
    parts.append(Table("What was scored", (), (), notes=_notes(scores)))
    write_page(path, Page(title, tuple(warnings), tuple(parts), provenance, next_steps or {}))


def report_task(path: Path, task: Task, scores: Scores, *, progress: Progress = silent) -> None:
    """Write the scores as one HTML page with pictures of the worst cases, atomically, replacing an existing one.

    Args:
        path: The HTML file.
        task: What was scored.
        scores: Its scores.
        progress: Called after each picture.

    Raises:
        KitsattnError: If a label map cannot be read, or the file cannot be written.
    """
    matched = task.matched if task.references is None else add_scans(task.matched, task.references)
    pairs = {pair.case: pair for pair in matched.pairs}
    provenance = {
        "predictions": task.name,
        **({} if task.references is None else {"references": str(task.references)}),
        "protocol": task.protocol.title,
        "versions": f"kitsattn {__version__}",
    }
    worst = [case.case for case in scores.worst_first()[:PICTURES]]
    images = {}
    progress("pictures", 0, len(worst))
    for done, case in enumerate(worst, start=1):
        images[case] = draw_case(pairs[case], task.protocol)
        progress("pictures", done, len(worst))
    write_report(
        path,
        scores,
        title=f"Evaluation of {task.name}",
        provenance=provenance,
        synthetic=task.synthetic,
        images=images,
    )


def write_picture(path: Path, scores: Scores, *, title: str, synthetic: bool) -> None:
    """Write box plots of all metrics as a PNG, atomically, replacing an existing one.

    Args:
        path: The PNG.
        scores: The scores.
        title: Its headline.
        synthetic: Whether the cases, or the training data of the model, are phantoms.

    Raises:
        KitsattnError: If the file cannot be written.
    """
    from kitsattn.figures.scores import scores_sheet  # noqa: PLC0415 - matplotlib takes a second

    panels = [_panel(scores, metric) for metric in scores.scoring.metrics]
    scores_sheet(path, panels, title=title, note=SYNTHETIC_SCORES_NOTICE if synthetic else RESEARCH_NOTICE)


def draw_case(pair: CasePair, protocol: ScoringProtocol) -> bytes:
    """Draw the outlines of prediction and reference on slices of the scan, or on black without a scan.

    Args:
        pair: A case that was scored.
        protocol: What its labels are; values that it does not know are background.

    Returns:
        A PNG.

    Raises:
        KitsattnError: If a label map cannot be read.
    """
    from kitsattn.figures.overlay import overlay_sheet  # noqa: PLC0415 - see above

    reference = read_labels(pair.reference)
    predicted = np.zeros_like(reference.array) if pair.prediction is None else read_labels(pair.prediction).array
    known = np.zeros(256, np.uint8)
    known[list(protocol.labels.values())] = list(protocol.labels.values())
    scan, note = _find_scan(pair, reference.geometry)
    if scan is None:
        scan = reference.with_array(np.full(reference.array.shape, _AIR_HU, np.int16))
    parts = protocol in (KITS19, KITS23)
    return overlay_sheet(scan, known[predicted], reference.array, title=pair.case, note=note, parts=parts)


def _find_scan(pair: CasePair, geometry: Geometry) -> tuple[Volume | None, str]:
    """Return the scan and nothing to say, or none and why."""
    if pair.scan is None:
        return None, "The scan is not known: outlines only."
    try:
        scan = check_hu(read_scan(pair.scan))
    except KitsattnError:
        return None, f"{pair.scan.name} cannot be read as a scan: outlines only."
    if scan.geometry.difference(geometry) is not None:
        return None, f"{pair.scan.name} is not on the grid of its label map: outlines only."
    return scan, ""


def _score_table(scores: Scores, metric: Metric) -> Table:
    regions = scores.scoring.protocol.regions
    values = [(region, value) for region in regions for value in (*metric.parts, metric)]
    columns = [
        region_name(region.key) + (f", {value.title.lower()}, {metric.unit}" if metric.parts else "")
        for region, value in values
    ]
    digits = min(metric.digits, 3)

    def cell(value: float) -> str | float:
        return value if metric.share and not isnan(value) else show(value, metric.digits)

    summaries: dict[str, Callable[[Spread], str | float]] = {"Mean": lambda spread: cell(spread.mean)}
    if len(scores.cases) > 1:
        summaries["95 % interval"] = lambda spread: show_interval(spread.low, spread.high, digits)
        summaries["Median"] = lambda spread: cell(spread.median)
        summaries["Standard deviation"] = lambda spread: show(spread.deviation, digits)
    composite = f", composite {scores.composite:.3f}" if metric is DICE else ""
    return Table(
        caption=f"{metric.heading} ({plural(len(scores.cases), 'case')}){composite}",
        columns=("Case", *columns),
        rows=tuple(
            (case.case, *(cell(case.regions[region.key][value.key]) for region, value in values))
            for case in scores.worst_first(metric)
        ),
        summaries=tuple(
            (title, *(of(scores.spread[region.key][metric.key]) if value is metric else "" for region, value in values))
            for title, of in summaries.items()
        ),
        notes=tuple(describe_agreement(scores)) if metric is VOLUME_DIFFERENCE else (),
        numbers=frozenset() if metric.share else frozenset(columns),
        sortable=True,
    )


def _lesion_table(scores: Scores) -> Table:
    columns = ("Size", "Lesions", "Found", "Recall", "Predicted", "True", "Precision")
    return Table(
        caption="Detection of lesions",
        columns=("Region", *columns),
        rows=tuple(
            (
                region,
                size,
                str(counts.reference),
                str(counts.found),
                show(counts.recall, 3),
                str(counts.predicted),
                str(counts.true),
                show(counts.precision, 3),
            )
            for region, size, counts in describe_sizes(scores)
        ),
        notes=tuple(describe_detection(scores)),
        numbers=frozenset(columns[1:]),
    )


def _plots(scores: Scores) -> tuple[Picture, ...]:
    from kitsattn.figures.scores import plot_agreement, plot_boxes  # noqa: PLC0415 - matplotlib takes a second

    pictures = [
        Picture(
            plot_boxes(_panel(scores, metric)), f"{metric.heading}, one dot a case.", f"Box plots of {metric.heading}."
        )
        for metric in scores.scoring.metrics
    ]
    for region, found in scores.agreement.items():
        predicted, reference = (
            {case.case: case.regions[region][part.key] for case in scores.cases} for part in (PREDICTED, REFERENCE)
        )
        limits = {"bias_ml": found.bias_ml, "low_ml": found.low_ml, "high_ml": found.high_ml}
        plot = plot_agreement(region_name(region), predicted, reference, **limits)
        caption = f"Bland-Altman plot of the volume of {region_name(region).lower()}."
        pictures.append(Picture(plot, caption, caption))
    return tuple(pictures)


def _panel(scores: Scores, metric: Metric) -> "ScorePanel":
    from kitsattn.figures.scores import ScorePanel  # noqa: PLC0415 - see above

    values = {region_name(region.key): scores.values(region, metric) for region in scores.scoring.protocol.regions}
    return ScorePanel(metric.heading, values, share=metric.share)


def _notes(scores: Scores) -> tuple[str, ...]:
    notes = [_describe_protocol(scores.scoring.protocol), *scores.scoring.rules]
    if scores.surplus:
        notes.append(f"Left out, having no reference: {', '.join(scores.surplus)}.")
    if scores.turned:
        notes.append(f"Stored in another orientation than the reference, and turned: {', '.join(scores.turned)}.")
    return tuple(notes)


def _describe_protocol(protocol: ScoringProtocol) -> str:
    regions = " ".join(
        f"{region_name(region.key)}: {_describe_labels(region, protocol)}." for region in protocol.regions
    )
    return (
        f"{protocol.title}. {regions} Mean: over the cases, with the bootstrap's 95 % confidence interval."
        " Composite: the mean of the regions' mean Dice. The worst cases stand first."
    )


def _describe_labels(region: Region, protocol: ScoringProtocol) -> str:
    members = [f"{value} ({name})" for name, value in protocol.labels.items() if value in region.labels]
    return f"label {members[0]}" if len(members) == 1 else f"labels {_enumerate(members)} as one region"


def _picture(scored: CaseScores, scoring: Scoring, image: Path | bytes) -> Picture:
    sentences = []
    for metric in scoring.metrics:
        values = [
            f"{region_name(region).lower()} {show(found[metric.key], min(metric.digits, 3))}"
            for region, found in scored.regions.items()
        ]
        sentences.append(f"{metric.heading}: {', '.join(values)}.")
    outlined = _enumerate([name for name, value in scoring.protocol.labels.items() if value != BACKGROUND])
    return Picture(
        image=image,
        caption=f"{scored.case}. {' '.join(sentences)}",
        description=f"CT slices of {scored.case} with the outlines of {outlined}, predicted and reference.",
    )


def _enumerate(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
