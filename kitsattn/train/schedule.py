"""The learning rate over the epochs: nnU-Net v1's plateau rule, or polynomial decay."""

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

    def step(self, training_loss: float) -> bool:
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

    def step(self, training_loss: float) -> bool:
        """See `Schedule.step`."""
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
    """The learning rate times (1 - epoch / epochs) ** 0.9.

    By the formula rather than by PyTorch's scheduler, which goes from rate to rate and warns where a training that was
    resumed for the validation alone has taken no step yet.
    """

    def __init__(self, optimizer: Optimizer, epochs: int) -> None:
        """Watch an optimiser, whose rates are now those of the first epoch."""
        self._optimizer = optimizer
        self._first = [float(group["lr"]) for group in optimizer.param_groups]
        self._epochs = epochs
        self._epoch = 0

    def step(self, training_loss: float) -> bool:
        """See `Schedule.step`."""
        del training_loss
        self._epoch += 1
        left = max(0.0, 1 - self._epoch / self._epochs)
        for group, first in zip(self._optimizer.param_groups, self._first, strict=True):
            group["lr"] = first * left**_POWER
        return False

    def state_dict(self) -> dict[str, Any]:
        """See `Schedule.state_dict`."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Schedule.load_state_dict`."""
        self._epoch = state["epoch"]


def build_schedule(recipe: Recipe, optimizer: Optimizer) -> Schedule:
    """Return the recipe's schedule."""
    return Plateau(optimizer) if recipe.schedule == "plateau" else Polynomial(optimizer, recipe.epochs)
