"""Recipes: every number of a training, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kitsattn.config import read_settings
from kitsattn.errors import KitsattnError
from kitsattn.words import suggest

OptimizerName = Literal["adam", "adamw", "sgd"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; the defaults are the paper's, or nnU-Net v1's where the paper is silent.

    Attributes:
        epochs: Most epochs; the plateau schedule may end earlier.
        batches_per_epoch: Training batches an epoch.
        validation_batches: Validation batches an epoch.
        batch_size: Samples a batch, those of all processes together.
        patch_size: Height and width of a patch in prepared pixels; None takes the plan's.
        optimizer: `adam`; `adamw`, which lets weights decay by themselves instead of through the gradient, and leaves
            biases and normalisations alone; `sgd` with Nesterov momentum.
        momentum: Of `sgd`.
        learning_rate: Initial learning rate, after the warm-up.
        weight_decay: L2 penalty, added to the gradient; of `adamw` the decay of weights by one step at rate 1.
        gradient_clip: Largest norm of the gradient.
        schedule: `plateau` (nnU-Net v1, by epochs) or `polynomial` (batch by batch to zero at the end, exponent 0.9).
        warmup_share: Share of all batches over which a polynomial's learning rate rises from zero.
        ema_decay: Share that is kept by each step of the exponential moving average of the weights, which is then what
            is validated and shipped; None ships the weights themselves.
        dice_over: What the soft Dice of the loss is taken over: `labels`, or the `regions` that are scored.
        foreground_share: Share of a batch whose patch is centred on foreground.
        augment: Whether to augment.
        elastic_probability: How often a sample is deformed elastically as well.
        sync_batch_norm: Whether several processes normalise their samples as one batch.
        class_weights: Weight of each class in the cross-entropy; None weighs all alike.
        shares: How often each source of made scans is drawn (`synthesis.draw.SOURCES`: painted phantoms, bodies, real
            slices, real volumes); sources without data are left out. None draws from prepared cases alone.
    """

    epochs: int = 1000
    batches_per_epoch: int = 350
    validation_batches: int = 50
    batch_size: int = 8
    patch_size: tuple[int, int] | None = None
    optimizer: OptimizerName = "adam"
    momentum: float = 0.99
    learning_rate: float = 3e-4
    weight_decay: float = 3e-5
    gradient_clip: float = 12.0
    schedule: Literal["plateau", "polynomial"] = "plateau"
    warmup_share: float = 0.0
    ema_decay: float | None = None
    dice_over: Literal["labels", "regions"] = "labels"
    foreground_share: float = 1 / 3
    augment: bool = True
    elastic_probability: float = 0.0
    sync_batch_norm: bool = True
    class_weights: tuple[float, ...] | None = None
    shares: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one of them makes no training.
        """
        for name in ("epochs", "batches_per_epoch", "validation_batches", "learning_rate", "gradient_clip"):
            _demand(name, getattr(self, name), "positive", getattr(self, name) > 0)
        _demand("weight_decay", self.weight_decay, "0 or more", self.weight_decay >= 0)
        for name in ("momentum", "ema_decay"):
            value = getattr(self, name)
            _demand(name, value, "0 or more and below 1", value is None or 0 <= value < 1)
        for name in ("foreground_share", "elastic_probability", "warmup_share"):
            _demand(name, getattr(self, name), "from 0 to 1", 0 <= getattr(self, name) <= 1)
        wanted = "2 or more, because the ASPP's image pooling is normalised"
        _demand("batch_size", self.batch_size, wanted, self.batch_size >= 2)  # noqa: PLR2004
        size = self.patch_size
        _demand("patch_size", size, "32 or more", size is None or min(size) >= 32)  # noqa: PLR2004 - 2 at stride 16
        weights = self.class_weights
        _demand("class_weights", weights, "positive", weights is None or min(weights) > 0)
        shares = self.shares
        possible = shares is None or (min(shares) >= 0 and max(shares) > 0)
        _demand("shares", shares, "0 or more, and one of them above 0", possible)
        without = self.schedule == "plateau"
        _demand("warmup_share", self.warmup_share, "0 with a plateau", not without or not self.warmup_share)


def _demand(name: str, value: object, wanted: str, holds: bool) -> None:  # noqa: FBT001
    if not holds:
        msg = f"{name} must be {wanted}, got {value}"
        raise ValueError(msg)


RECIPES: Mapping[str, Recipe] = {
    "paper": Recipe(),
    # What measured best on phantoms in as many batches: docs/benchmarks.md, "The choices of the recipe modern".
    "modern": Recipe(
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        schedule="polynomial",
        ema_decay=0.99,
        dice_over="regions",
    ),
    # The network that ships: made scans and real slices, docs/how-to/starter.md.
    "starter": Recipe(
        epochs=80,
        validation_batches=16,
        batch_size=8,
        optimizer="adamw",
        learning_rate=1.5e-3,
        weight_decay=0.02,
        gradient_clip=5.0,
        schedule="polynomial",
        warmup_share=0.01,
        ema_decay=0.999,
        dice_over="regions",
        class_weights=(1.0, 1.0, 1.5),
        shares=(0.1, 0.52, 0.38, 0.3),
    ),
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
