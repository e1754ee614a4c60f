"""What a metric is: everything that outputs say of it, and how it is computed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line reads the metrics for its help, without NumPy
    from collections.abc import Callable

    from kitsattn.evaluate.region import RegionPair
    from kitsattn.labels import ScoringProtocol

EMPTY_RULE = (
    "A region that is empty in both label maps scores 1, and one that is empty in only one of them scores 0"
    " (the rule of KiTS21 and KiTS23; the KiTS19 script divides by zero where both are empty)."
)
"""How metrics with values from 0 to 1 score empty regions."""

DISTANCE_RULE = (
    "HD95 and ASSD of a region that is empty in both label maps are 0. Where it is empty in only one of them they are"
    " not defined, and left out of the mean."
)
"""How distances of surfaces score empty regions."""


@dataclass(frozen=True)
class Value:
    """A value of a region in two label maps.

    Attributes:
        key: Its name in JSON.
        title: Its name in tables and plots.
        column: Its name in CSV, before that of the region.
        compute: Returns it for a region of two label maps.
    """

    key: str
    title: str
    column: str
    compute: "Callable[[RegionPair], float]"


@dataclass(frozen=True, kw_only=True)
class Metric(Value):
    """A metric of a region in a predicted label map and its reference; NaN where it is not defined.

    Attributes:
        command: Its subcommand of `kitsattn evaluate`.
        unit: Of its values; empty if they have none.
        digits: How many decimal places tables show.
        better: Which values are better: high ones, low ones, or those near zero.
        share: Whether values are in [0, 1] and 1 is the best, so that plots end there and tables draw bars.
        distances: Which distances of surfaces it needs: none, those up to the region's tolerance, or all.
        order: Its place among the metrics, in tables and files.
        help: What it measures, for `kitsattn evaluate COMMAND --help`; the first line is a summary.
        empty: The rule for regions that are empty in one label map or in both, one sentence or more.
        describe: Returns what else a reader must know; empty if nothing.
        parts: Values that it is made from, and is shown with.
    """

    command: str
    unit: str = ""
    digits: int
    better: Literal["high", "low", "zero"]
    share: bool = False
    distances: Literal["none", "near", "all"] = "none"
    order: int
    help: str
    empty: str = ""
    describe: "Callable[[ScoringProtocol], str]" = lambda _: ""
    parts: tuple[Value, ...] = ()

    @property
    def heading(self) -> str:
        """Title and unit, as in "HD95, mm"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def keys(self) -> tuple[str, ...]:
        """Names in JSON of its parts and of itself."""
        return (*(part.key for part in self.parts), self.key)

    def size(self, value: float) -> float:
        """Return what is compared of a value: its distance from zero if zero is best."""
        return abs(value) if self.better == "zero" else value

    def error(self, value: float) -> float:
        """Return a number that is larger for worse values."""
        return -value if self.better == "high" else self.size(value)
