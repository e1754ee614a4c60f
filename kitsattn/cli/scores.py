"""Tables of scores on the terminal."""

from collections.abc import Mapping, Sequence
from itertools import islice
from math import isnan

from rich.table import Table

from kitsattn.evaluate.challenge.rank import RankedSubmission
from kitsattn.evaluate.compare import Comparison, Difference
from kitsattn.evaluate.describe import describe_sizes, show, show_interval
from kitsattn.evaluate.metrics.dice import DICE
from kitsattn.evaluate.metrics.metric import Metric
from kitsattn.evaluate.scores import Scores

_MOVED = 10
"""How many of the cases that moved most are shown."""
_MOST_REGIONS = 4
"""Of more regions, which would make a row too wide, the means are shown without the cases."""
_WORDS = ("region", "size", "submission")
"""Columns that hold no numbers."""


def score_table(scores: Scores, metric: Metric) -> Table:
    """Return a row for each case, the worst first, and what they come to; of many regions a row for each region."""
    composite = f"; composite {scores.composite:.4f}" if metric is DICE else ""
    title = f"{metric.heading} ({scores.scoring.protocol.title}){composite}"
    spreads = {region: spreads[metric.key] for region, spreads in scores.spread.items()}
    summaries = {
        "mean": [show(spread.mean, metric.digits) for spread in spreads.values()],
        "95 % interval": [show_interval(spread.low, spread.high, metric.digits) for spread in spreads.values()],
        "median": [show(spread.median, metric.digits) for spread in spreads.values()],
        "standard deviation": [show(spread.deviation, metric.digits) for spread in spreads.values()],
    }
    if len(spreads) > _MOST_REGIONS:
        table = _table(title, "region", *summaries)
        for region, *values in zip(spreads, *summaries.values(), strict=True):
            table.add_row(region, *values)
        return table
    table = _table(title, "case", *spreads)
    for case in scores.worst_first(metric):
        table.add_row(case.case, *(_cell(values, metric) for values in case.regions.values()))
    table.add_section()
    for name, row in islice(summaries.items(), None if len(scores.cases) > 1 else 1):
        table.add_row(name, *row)
    return table


def detection_table(scores: Scores) -> Table:
    """Return a row for each region of lesions and size."""
    columns = ("region", "size", "lesions", "found", "recall", "predicted", "true", "precision")
    table = _table("Detection of lesions", *columns)
    for region, size, counts in describe_sizes(scores):
        found = (str(counts.reference), str(counts.found), _share(counts.recall))
        table.add_row(region, size, *found, str(counts.predicted), str(counts.true), _share(counts.precision))
    return table


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return for each metric a row for each region, and the cases that moved most."""
    tables = []
    for metric in comparison.scoring.metrics:
        differences = [difference for difference in comparison.differences if difference.metric is metric]
        title = f"{metric.heading}: A is {comparison.names[0]}, B is {comparison.names[1]}"
        columns = ("region", "A", "B", "B - A", "95 % interval", "Wilcoxon p", "better", "equal", "worse")
        table = _table(title, *columns)
        for difference in differences:
            table.add_row(*_difference_row(difference))
        tables.append(table)
        moved = sorted(
            ((difference.region.key, change) for difference in differences for change in difference.changes),
            key=lambda item: -abs(item[1].difference),
        )
        cases = _table(f"Cases that moved most, {metric.heading}", "case", "region", "A", "B", "B - A")
        for region, change in islice(moved, _MOVED):
            if change.difference:
                values = (change.first, change.second, change.difference)
                cases.add_row(change.case, region, *(show(value, metric.digits) for value in values))
        if cases.row_count:
            tables.append(cases)
    return tables


def ranking_table(ranking: Sequence[RankedSubmission]) -> Table:
    """Return a row for each submission, the best first."""
    surfaces = ranking[0].mean_surface_dice is not None
    columns = ["submission", "mean Dice", *(["mean surface Dice", "mean rank"] * surfaces), "tumour Dice"]
    table = _table(f"Ranking ({ranking[0].submission.protocol.title})", "rank", *columns)
    for place in ranking:
        more = [f"{place.mean_surface_dice:.4f}", f"{place.mean_rank:.1f}"] if surfaces else []
        name = place.submission.name
        table.add_row(str(place.rank), name, f"{place.mean_dice:.4f}", *more, f"{place.submission.tumour_dice:.4f}")
    return table


def _difference_row(difference: Difference) -> list[str]:
    digits, spread = difference.metric.digits, difference.spread
    counts = (difference.better, spread.cases - difference.better - difference.worse, difference.worse)
    return [
        difference.region.key.replace("_", " "),
        *(show(mean, digits) for mean in (*difference.means, spread.mean)),
        show_interval(spread.low, spread.high, digits),
        "-" if isnan(difference.p) else f"{difference.p:.4f}",
        *map(str, counts),
    ]


def _cell(values: Mapping[str, float], metric: Metric) -> str:
    """Return a metric; with the parts that it is made from."""
    whole = show(values[metric.key], metric.digits)
    return (
        f"{whole} ({' - '.join(show(values[part.key], metric.digits) for part in metric.parts)})"
        if metric.parts
        else whole
    )


def _share(value: float) -> str:
    return "-" if isnan(value) else f"{value:.3f}"


def _table(title: str, first: str, *columns: str) -> Table:
    """Return a table without rows, whose first column holds names and whose others hold numbers."""
    table = Table(first, title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right")
    return table
