"""Surface Dice at the tolerance of each region."""

from typing import TYPE_CHECKING

from kitsattn.evaluate.metrics.metric import EMPTY_RULE, Metric
from kitsattn.labels import ScoringProtocol

if TYPE_CHECKING:
    from kitsattn.evaluate.region import RegionPair


def _compute(pair: "RegionPair") -> float:
    from kitsattn.evaluate.surface import surface_dice  # noqa: PLC0415 - NumPy, which the help does without

    return surface_dice(pair.distances, pair.region.tolerance_mm)


def _describe(protocol: ScoringProtocol) -> str:
    tolerances = ", ".join(f"{region.key} {region.tolerance_mm:.4g} mm" for region in protocol.regions)
    return f"Tolerances of surface Dice: {tolerances}."


SURFACE_DICE = Metric(
    key="surface_dice",
    command="surface-dice",
    title="Surface Dice",
    column="SD",
    digits=4,
    better="high",
    share=True,
    distances="near",
    order=10,
    help="""Fraction of both surfaces of each region within a tolerance of the other, as KiTS21 and KiTS23 define it.

The tolerances are theirs: kidney 1.033 mm, masses 1.133 mm, tumour 1.150 mm; 1 mm for labels of no challenge.
A region that is empty in both label maps scores 1, in one of them 0.""",
    empty=EMPTY_RULE,
    describe=_describe,
    compute=_compute,
)
"""Nikolov et al., 2018, arXiv:1809.04430."""
