"""Dice coefficient."""

from kitsattn.evaluate.metrics.metric import EMPTY_RULE, Metric

DICE = Metric(
    key="dice",
    command="dice",
    title="Dice",
    column="Dice",
    digits=4,
    better="high",
    share=True,
    order=0,
    help="""Dice of the regions of the data set's challenge, and their mean as one composite score.

A region that is empty in both label maps scores 1, in one of them 0.""",
    empty=EMPTY_RULE,
    compute=lambda pair: pair.overlap.dice,
)
"""2 |P & R| / (|P| + |R|) of the predicted voxels P and the reference's R."""
