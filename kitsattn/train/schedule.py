"""The learning rate over a training: nnU-Net v1's plateau rule, or polynomial decay."""

from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kitsattn.train.recipe import Recipe

_PATIENCE = 30
_FACTOR = 0.2
_LEAST_IMPROVEMENT = 1e-3
_LOSS_MEMORY = 0.93
_END_LEARNING_RATE = 1e-6
_POWER = 0.9


class Schedule(Protocol):
    """What the loop asks of a schedule."""

    def before_batch(self, done: int) -> None:
        """Set the learning rate of the batch that comes after `done` batches."""

    def after_epoch(self, training_loss: float) -> bool:
        """Set the next epoch's learning rate; return whether training is over."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back."""


class Plateau:
    """nnU-Net v1: a fifth of the learning rate where the training loss has not improved for 30 epochs.

    The loss is an exponential moving average (0.93); an improvement is 1e-3 or more. Training is over once the rate
    has fallen below 1e-6 (Isensee et al., nnU-Net: Breaking the Spell on Successful Medical Image Segmentation, 2019).
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Watch an optimiser."""
        self._optimizer = optimizer
        self._plateau = ReduceLROnPlateau(
            optimizer, factor=_FACTOR, patience=_PATIENCE, threshold=_LEAST_IMPROVEMENT, threshold_mode="abs"
        )
        self._loss: float | None = None

    def before_batch(self, done: int) -> None:
        """See `Schedule.before_batch`."""

    def after_epoch(self, training_loss: float) -> bool:
        """See `Schedule.after_epoch`."""
        kept = training_loss if self._loss is None else self._loss
        self._loss = _LOSS_MEMORY * kept + (1 - _LOSS_MEMORY) * training_loss
        self._plateau.step(self._loss)
        return bool(self._optimizer.param_groups[0]["lr"] < _END_LEARNING_RATE)

    def state_dict(self) -> dict[str, Any]:
        """See `Schedule.state_dict`."""
        plateau = self._plateau
        return {"loss": self._loss, "best": plateau.best, "bad_epochs": plateau.num_bad_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Schedule.load_state_dict`."""
        self._loss = state["loss"]
        self._plateau.best = state["best"]
        self._plateau.num_bad_epochs = state["bad_epochs"]


class Polynomial:
    """The learning rate times (1 - done / total batches) ** 0.9, after a linear warm-up.

    By the formula rather than by PyTorch's scheduler, which goes from rate to rate and would need a state.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe) -> None:
        """Watch an optimiser."""
        self._optimizer = optimizer
        self._recipe = recipe

    def before_batch(self, done: int) -> None:
        """See `Schedule.before_batch`."""
        recipe = self._recipe
        total = recipe.epochs * recipe.batches_per_epoch
        left = max(0.0, 1 - done / total)
        warm = min(1.0, (done + 1) / (recipe.warmup_share * total + 1))
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warm * left**_POWER

    def after_epoch(self, training_loss: float) -> bool:
        """See `Schedule.after_epoch`."""
        del training_loss
        return False

    def state_dict(self) -> dict[str, Any]:
        """See `Schedule.state_dict`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Schedule.load_state_dict`."""


def build_schedule(recipe: Recipe, optimizer: Optimizer) -> Schedule:
    """Return the recipe's schedule."""
    return Plateau(optimizer) if recipe.schedule == "plateau" else Polynomial(optimizer, recipe)
