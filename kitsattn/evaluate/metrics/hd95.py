"""95th percentile of the Hausdorff distance."""

from typing import TYPE_CHECKING

from kitsattn.evaluate.metrics.metric import DISTANCE_RULE, Metric

if TYPE_CHECKING:
    from kitsattn.evaluate.region import RegionPair


def _compute(pair: "RegionPair") -> float:
    from kitsattn.evaluate.surface import hausdorff_95  # noqa: PLC0415 - NumPy, which the help does without

    return hausdorff_95(pair.distances)


HD95 = Metric(
    key="hd95_mm",
    command="hd95",
    title="HD95",
    unit="mm",
    column="HD95_mm",
    digits=2,
    better="low",
    distances="all",
    order=20,
    help="""95th percentile of the surface distances of each region in mm, the larger of the two directions.

Surfaces are weighted by their area; --definition takes MedPy's or MONAI's instead.
Empty in both label maps is 0; in one of them it is left out of the mean.""",
    empty=DISTANCE_RULE,
    compute=_compute,
)
"""As surface-distance, MedPy or MONAI compute it: `kitsattn.evaluate.definition`."""
