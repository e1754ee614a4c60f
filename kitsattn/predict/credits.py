"""What outputs say of the networks that made them: name, quality, licence and training data."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kitsattn.checkpoint.header import TestScore, TrainingSource, describe_quality
from kitsattn.checkpoint.shipped import model_name
from kitsattn.notices import RESEARCH_NOTICE
from kitsattn.predict.infer import Ensemble


@dataclass(frozen=True)
class Credits:
    """Where the networks of an ensemble come from; several networks with the same entry have it once.

    Attributes:
        names: Short names of the networks.
        files: Their weights files.
        qualities: One line on the accuracy and the conditions of use, from `describe_quality`.
        licences: Licences of the weights.
        sources: The data that the networks were trained on, if they are listed one by one.
        tests: Dice on real scans that were not trained on.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    qualities: tuple[str, ...]
    licences: tuple[str, ...]
    sources: tuple[TrainingSource, ...]
    tests: tuple[TestScore, ...]

    @property
    def name(self) -> str:
        """The names as one text."""
        return ", ".join(self.names)

    @property
    def quality(self) -> str:
        """The qualities as one text."""
        return " | ".join(self.qualities)

    @property
    def licence(self) -> str:
        """The licences as one text."""
        return ", ".join(self.licences)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that `kitsattn predict --json` prints as `model`."""
        return {
            "name": self.name,
            "file": str(self.files[0]),
            "files": [str(file) for file in self.files],
            "dice": [asdict(score) for score in self.tests],
            "licence": self.licence,
            "use": RESEARCH_NOTICE,
        }


def credits_of(ensemble: Ensemble) -> Credits:
    """Return the credits of an ensemble."""
    made = [header.provenance for header in ensemble.headers]
    return Credits(
        names=tuple(map(model_name, ensemble.paths)),
        files=ensemble.paths,
        qualities=tuple(dict.fromkeys(map(describe_quality, made))),
        licences=tuple(dict.fromkeys(one.licence for one in made)),
        sources=tuple(dict.fromkeys(source for one in made for source in one.sources)),
        tests=tuple(dict.fromkeys(score for one in made for score in one.tests)),
    )
