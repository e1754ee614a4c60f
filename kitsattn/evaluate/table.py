"""Scores as a table in CSV: `evaluation.csv` of KiTS21 and KiTS23, and what else there is in its manner."""

import csv
from io import StringIO
from math import isnan
from pathlib import Path

import numpy as np

from kitsattn.evaluate.detection import count_lesions
from kitsattn.evaluate.scores import Scores
from kitsattn.files import write_text
from kitsattn.labels import KITS23, ScoringProtocol

AVERAGE = "average"
"""What the last row has in place of a case."""
_REGIONS = {"kidney_and_masses": "kidney", "masses": "masses", "tumour": "tumor"}
_LESIONS = {"reference": "Lesions", "found": "Found", "predicted": "Predicted_lesions", "true": "True_lesions"}
"""What the challenges call regions, and what else is counted."""


def column(value: str, region: str, protocol: ScoringProtocol) -> str:
    """Return the heading of a column.

    Args:
        value: What a metric, or a part of one, calls its column.
        region: Key of the region.
        protocol: Of which the region is.
    """
    return f"{value}_{_region(region, protocol)}"


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
    protocol = scores.scoring.protocol
    columns = {
        column(value.column, region.key, protocol): [case.regions[region.key][value.key] for case in scores.cases]
        for metric in scores.scoring.metrics
        for value in (*metric.parts, metric)
        for region in protocol.regions
    }
    for count, title in _LESIONS.items():
        for region, cases in scores.lesions.items():
            columns[f"{title}_{_region(region, protocol)}"] = [getattr(count_lesions([case]), count) for case in cases]
    averages = [float(np.nanmean(values)) if np.isfinite(values).any() else np.nan for values in columns.values()]
    rows = [["caseID", *columns]]
    for place, case in enumerate(scores.cases):
        rows.append([case.case, *(_cell(values[place]) for values in columns.values())])
    rows.append([AVERAGE, *map(_cell, averages)])
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _region(region: str, protocol: ScoringProtocol) -> str:
    return _REGIONS[region] if protocol == KITS23 else region


def _cell(value: float) -> str:
    return "" if isnan(value) else f"{value:.8f}"
