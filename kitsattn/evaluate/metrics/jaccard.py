"""Jaccard index."""

from kitsattn.evaluate.metrics.metric import EMPTY_RULE, Metric

JACCARD = Metric(
    key="jaccard",
    command="jaccard",
    title="Jaccard",
    column="Jaccard",
    digits=4,
    better="high",
    share=True,
    order=50,
    help="""Jaccard index (intersection over union) of each region.

A region that is empty in both label maps scores 1, in one of them 0.""",
    empty=EMPTY_RULE,
    compute=lambda pair: pair.overlap.jaccard,
)
"""|P & R| / |P | R| of the predicted voxels P and the reference's R; Dice / (2 - Dice)."""
