"""Difference of volumes as a share of the reference's."""

from math import nan
from typing import TYPE_CHECKING

from kitsattn.evaluate.metrics.metric import Metric

if TYPE_CHECKING:
    from kitsattn.evaluate.region import RegionPair


def _compute(pair: "RegionPair") -> float:
    overlap = pair.overlap
    if not overlap.reference:
        return nan if overlap.predicted else 0.0
    return 100 * (overlap.predicted - overlap.reference) / overlap.reference


RELATIVE_VOLUME_ERROR = Metric(
    key="relative_volume_error_percent",
    command="relative-volume-error",
    title="Relative volume error",
    unit="%",
    column="Relative_volume_error_percent",
    digits=2,
    better="zero",
    order=60,
    help="""Volume of each region relative to the reference: predicted minus reference, in percent of the reference.

Empty in both label maps is 0; where only the reference is empty it is left out of the mean.""",
    empty=(
        "The relative volume error of a region that is empty in both label maps is 0. Where only the reference is empty"
        " it is not defined, and left out of the mean."
    ),
    describe=lambda _: "Relative volume errors are (prediction - reference) / reference.",
    compute=_compute,
)
"""(|P| - |R|) / |R| in percent; without its sign the RAVD of Heimann et al., 2009, doi:10.1109/TMI.2009.2013851."""
