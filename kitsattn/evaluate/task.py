"""What an evaluation scores: predictions with their references, and how their labels are scored."""

from dataclasses import dataclass
from pathlib import Path

from kitsattn.datasets.dataset import read_description
from kitsattn.evaluate.match import MatchedCases, choose_protocol, match_cases
from kitsattn.labels import ScoringProtocol
from kitsattn.words import readable


@dataclass(frozen=True)
class Task:
    """What is scored.

    Attributes:
        name: Of the predictions.
        matched: The cases.
        protocol: How their labels are scored.
        references: A path whose surroundings tell where the scans are; None where the cases know theirs.
        synthetic: Whether the scans are phantoms.
    """

    name: str
    matched: MatchedCases
    protocol: ScoringProtocol
    references: Path | None
    synthetic: bool


def find_task(predictions: Path, references: Path, protocol: ScoringProtocol | None = None) -> Task:
    """Match two label maps, or two folders of them.

    Args:
        predictions: A label map, or a folder, see `match_cases`.
        references: The same for the references.
        protocol: How labels are scored; None goes by the references, see `choose_protocol`.

    Raises:
        KitsattnError: If they cannot be matched.
    """
    place = references.absolute()
    matched, chosen = match_cases(predictions, references), protocol or choose_protocol(references)
    synthetic = read_description(place, *place.parents).synthetic
    return Task(readable(str(predictions)), matched, chosen, references, synthetic)
