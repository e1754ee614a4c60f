"""Tables of scores on the terminal."""

from collections.abc import Mapping, Sequence
from itertools import islice

from rich.table import Table

from kitsattn.evaluate.compare import Comparison, Difference
from kitsattn.evaluate.metrics import DICE, Metric
from kitsattn.evaluate.rank import RankedSubmission
from kitsattn.evaluate.report import describe_sizes, show
from kitsattn.evaluate.scores import Scores

_MOVED = 10
"""How many of the cases that moved most are shown."""
_WORDS = ("region", "size", "submission")
"""Columns that hold no numbers."""


def score_table(scores: Scores, metric: Metric) -> Table:
    """Return a row for each case, the worst first, and what they come to."""
    composite = f"; composite {scores.composite:.4f}" if metric is DICE else ""
    table = _table(f"{metric.title} ({scores.scoring.protocol.title}){composite}", "case", *scores.mean)

    def add(name: str, values: Sequence[str]) -> None:
        table.add_row(name, *values)

    for case in scores.worst_first(metric):
        add(case.case, [_cell(values, metric) for values in case.regions.values()])
    table.add_section()
    spreads = [spreads[metric.key] for spreads in scores.spread.values()]
    add("mean", [show(spread.mean, metric.digits) for spread in spreads])
    if len(scores.cases) > 1:
        add("95 % interval", [_interval(spread.low, spread.high, metric.digits) for spread in spreads])
        add("median", [show(spread.median, metric.digits) for spread in spreads])
        add("standard deviation", [show(spread.deviation, metric.digits) for spread in spreads])
    return table


def detection_table(scores: Scores) -> Table:
    """Return a row for each region of lesions and size."""
    table = _table(
        "Detection of lesions", "region", "size", "lesions", "found", "recall", "predicted", "true", "precision"
    )
    for region, size, counts in describe_sizes(scores):
        found = (str(counts.reference), str(counts.found), show(counts.recall, 3))
        table.add_row(region, size, *found, str(counts.predicted), str(counts.true), show(counts.precision, 3))
    return table


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return for each metric a row for each region, and the cases that moved most."""
    tables = []
    for metric in comparison.scoring.metrics:
        differences = [difference for difference in comparison.differences if difference.metric is metric]
        table = _table(
            f"{metric.title}: A is {comparison.names[0]}, B is {comparison.names[1]}",
            *("region", "cases", "A", "B", "B - A", "95 % interval", "Wilcoxon p", "better", "equal", "worse"),
        )
        for difference in differences:
            table.add_row(*_difference_row(difference))
        tables.append(table)
        moved = sorted(
            ((difference.region.key, change) for difference in differences for change in difference.changes),
            key=lambda item: -abs(item[1].difference),
        )
        cases = _table(f"Cases that moved most, {metric.title}", "case", "region", "A", "B", "B - A")
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
    columns = ["rank", "submission", "mean Dice", *(["mean surface Dice", "mean rank"] * surfaces), "tumour Dice"]
    table = _table(f"Ranking ({ranking[0].submission.protocol.title})", *columns)
    for place in ranking:
        more = [f"{place.mean_surface_dice:.4f}", f"{place.mean_rank:.1f}"] if surfaces else []
        name = place.submission.name
        table.add_row(str(place.rank), name, f"{place.mean_dice:.4f}", *more, f"{place.submission.tumour_dice:.4f}")
    return table


def _difference_row(difference: Difference) -> list[str]:
    digits, spread = difference.metric.digits, difference.spread
    counts = (difference.better, spread.cases - difference.better - difference.worse, difference.worse)
    means = (difference.first.mean, difference.second.mean, spread.mean)
    return [
        difference.region.key,
        str(spread.cases),
        *(show(mean, digits) for mean in means),
        _interval(spread.low, spread.high, digits),
        show(difference.p, 4),
        *map(str, counts),
    ]


def _cell(values: Mapping[str, float], metric: Metric) -> str:
    """Return a metric; with the parts that it is made from."""
    whole = show(values[metric.key], metric.digits)
    return (
        f"{whole} ({' - '.join(show(values[part], metric.digits) for part in metric.parts)})" if metric.parts else whole
    )


def _interval(low: float, high: float, digits: int) -> str:
    return f"{show(low, digits)} to {show(high, digits)}"


def _table(title: str, first: str, *columns: str) -> Table:
    """Return a table without rows, whose first column holds names and whose others hold numbers."""
    table = Table(first, title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right")
    return table
