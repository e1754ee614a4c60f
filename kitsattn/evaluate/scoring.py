"""What is scored, and how."""

from collections.abc import Collection
from dataclasses import dataclass
from math import inf

from kitsattn.errors import KitsattnError
from kitsattn.evaluate.definition import Definition
from kitsattn.evaluate.detection import DETECTION_RULE
from kitsattn.evaluate.metrics import LESIONS, METRICS
from kitsattn.evaluate.metrics.dice import DICE
from kitsattn.evaluate.metrics.metric import Metric
from kitsattn.labels import KITS19, Region, ScoringProtocol


@dataclass(frozen=True)
class Scoring:
    """What is scored, and how.

    Attributes:
        protocol: Which labels there are, and which regions are scored.
        metrics: What regions are scored by.
        lesions: Whether the lesions of regions that consist of them are counted.
        definition: What a surface is, for the metrics of surfaces.
    """

    protocol: ScoringProtocol = KITS19
    metrics: tuple[Metric, ...] = (DICE,)
    lesions: bool = False
    definition: Definition = Definition.surface_distance

    @property
    def rules(self) -> tuple[str, ...]:
        """What a reader must know of the scores, one sentence or more each."""
        rules = [metric.empty for metric in self.metrics]
        rules += [metric.describe(self.protocol) for metric in self.metrics]
        if any(metric.distances != "none" for metric in self.metrics):
            rules.append(f"Definition of surfaces: {self.definition}.")
        if self.lesions:
            rules.append(DETECTION_RULE)
        return tuple(dict.fromkeys(filter(None, rules)))

    def limit_mm(self, region: Region) -> float:
        """Return up to which distance of two surfaces the metrics must know it."""
        return inf if any(metric.distances == "all" for metric in self.metrics) else region.tolerance_mm


def choose_scoring(protocol: ScoringProtocol, keys: Collection[str], definition: Definition) -> Scoring:
    """Return the scoring by some metrics.

    Args:
        protocol: Which labels there are, and which regions are scored.
        keys: Of the metrics; `LESIONS` for lesions.
        definition: What a surface is.

    Raises:
        KitsattnError: If only lesions are asked for, and no region consists of them.
    """
    if set(keys) == {LESIONS} and not any(region.lesions for region in protocol.regions):
        regions = ", ".join(region.key for region in protocol.regions)
        msg = f"no region is of lesions ({regions}): a class is if its name says tumour, mass, cyst or lesion"
        raise KitsattnError(msg)
    metrics = tuple(metric for metric in METRICS if metric.key in keys)
    return Scoring(protocol, metrics, LESIONS in keys, definition)
