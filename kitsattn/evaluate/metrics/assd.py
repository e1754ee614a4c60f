"""Average symmetric surface distance."""

from typing import TYPE_CHECKING

from kitsattn.evaluate.metrics.metric import DISTANCE_RULE, Metric

if TYPE_CHECKING:
    from kitsattn.evaluate.region import RegionPair


def _compute(pair: "RegionPair") -> float:
    from kitsattn.evaluate.surface import average_distance  # noqa: PLC0415 - NumPy, which the help does without

    return average_distance(pair.distances)


ASSD = Metric(
    key="assd_mm",
    command="assd",
    title="ASSD",
    unit="mm",
    column="ASSD_mm",
    digits=2,
    better="low",
    distances="all",
    order=30,
    help="""Average symmetric surface distance of each region in mm.

Surfaces are weighted by their area; --definition takes MedPy's or MONAI's instead.
Empty in both label maps is 0; in one of them it is left out of the mean.""",
    empty=DISTANCE_RULE,
    compute=_compute,
)
"""As surface-distance, MedPy or MONAI compute it: `kitsattn.evaluate.definition`."""
