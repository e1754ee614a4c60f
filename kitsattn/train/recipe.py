"""Recipes: every number of a training, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kitsattn.config import read_settings
from kitsattn.errors import KitsattnError
from kitsattn.words import suggest


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; the defaults are the paper's, or nnU-Net v1's where the paper is silent.

    Attributes:
        epochs: Most epochs; the plateau schedule may end earlier.
        batches_per_epoch: Training batches an epoch.
        validation_batches: Validation batches an epoch.
        batch_size: Samples a batch.
        patch_size: Height and width of a patch in prepared pixels; None takes the plan's.
        learning_rate: Initial learning rate of Adam.
        weight_decay: L2 penalty, added to the gradient.
        gradient_clip: Largest norm of the gradient.
        schedule: `plateau` (nnU-Net v1) or `polynomial` (to zero at the last epoch, exponent 0.9).
        augment: Whether to augment.
    """

    epochs: int = 1000
    batches_per_epoch: int = 350
    validation_batches: int = 50
    batch_size: int = 8
    patch_size: tuple[int, int] | None = None
    learning_rate: float = 3e-4
    weight_decay: float = 3e-5
    gradient_clip: float = 12.0
    schedule: Literal["plateau", "polynomial"] = "plateau"
    augment: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one of them makes no training.
        """
        for name in ("epochs", "batches_per_epoch", "validation_batches", "learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                msg = f"{name} must be positive, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.batch_size < 2:  # noqa: PLR2004 - the ASPP's pooled branch needs two values a channel
            msg = f"batch_size must be 2 or more, because the ASPP's image pooling is normalised, got {self.batch_size}"
            raise ValueError(msg)
        if self.weight_decay < 0:
            msg = f"weight_decay must not be negative, got {self.weight_decay}"
            raise ValueError(msg)
        if self.patch_size is not None and min(self.patch_size) < 32:  # noqa: PLR2004 - two pixels at stride 16
            msg = f"patch_size must be 32 or more, got {self.patch_size}"
            raise ValueError(msg)


RECIPES: Mapping[str, Recipe] = {
    "paper": Recipe(),
    "demo": Recipe(
        epochs=6,
        batches_per_epoch=160,
        validation_batches=10,
        batch_size=12,
        patch_size=(80, 80),
        learning_rate=2e-3,
        schedule="polynomial",
    ),
}


def find_recipe(name_or_file: str) -> tuple[str, Recipe]:
    """Return name and settings of a recipe: one of `RECIPES`, or a TOML or JSON file.

    Raises:
        KitsattnError: If there is neither.
    """
    if name_or_file in RECIPES:
        return name_or_file, RECIPES[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        wrong = f"{path} does not exist" if path.suffix else f"there is no recipe {name_or_file!r}"
        meant = suggest(name_or_file, RECIPES)
        msg = f"{wrong}{meant}: choose one of {', '.join(RECIPES)}, or name a TOML file"
        raise KitsattnError(msg)
    return path.stem, read_settings(Recipe, path)
