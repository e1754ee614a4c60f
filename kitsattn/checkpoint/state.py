"""The state that lets a training resume, as tensors and JSON: no pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from kitsattn.config import from_json, to_json

_OPTIMIZER = "optimizer/"


_DICE_MEMORY = 0.9
"""Weight of the earlier epochs in the moving average of the validation Dice, as in nnU-Net."""


@dataclass(frozen=True, kw_only=True)
class Counters:
    """How far a training is.

    Attributes:
        epoch: Finished epochs.
        batch: Finished batches of the next epoch.
        losses: Their losses; a skipped batch has none.
        skipped_in_a_row: How many of the last batches were skipped, one after the other.
        best: Best moving average of the validation Dice so far; None before the first epoch.
        moving_dice: That moving average now; None before the first epoch.
        finished: Whether the schedule has ended the training.
    """

    epoch: int = 0
    batch: int = 0
    losses: tuple[float, ...] = ()
    skipped_in_a_row: int = 0
    best: float | None = None
    moving_dice: float | None = None
    finished: bool = False

    def after_step(self, loss: float) -> Self:
        """Return the counters after a batch that changed the weights."""
        return replace(self, losses=(*self.losses, loss), skipped_in_a_row=0)

    def after_skipped_step(self) -> Self:
        """Return the counters after a batch that was skipped, because its loss or gradient was not finite."""
        return replace(self, skipped_in_a_row=self.skipped_in_a_row + 1)

    def after_batch(self) -> Self:
        """Return the counters with one more finished batch."""
        return replace(self, batch=self.batch + 1)

    def after_epoch(self, dice: Mapping[str, float]) -> tuple[Self, bool]:
        """Return the counters with one more finished epoch, and whether its moving average is the best so far.

        Args:
            dice: Validation Dice by region key.
        """
        mean = sum(dice.values()) / len(dice)
        kept = mean if self.moving_dice is None else self.moving_dice
        moving = _DICE_MEMORY * kept + (1 - _DICE_MEMORY) * mean
        improved = self.best is None or moving > self.best
        best = moving if improved else self.best
        return replace(self, epoch=self.epoch + 1, batch=0, losses=(), moving_dice=moving, best=best), improved


@dataclass(frozen=True, kw_only=True)
class TrainingState(Counters):
    """What resuming needs beside tensors; the counters are those of `Counters`.

    Attributes:
        schedule: State of the learning-rate schedule.
        scaler: State of the gradient scaler; empty without one.
        optimizer_groups: Settings of the optimiser's parameter groups, learning rate included.
        recipe: The recipe, as JSON values.
        train_cases: Cases that were learnt from.
        held_out_cases: Cases that were not.
    """

    schedule: Mapping[str, Any] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)
    optimizer_groups: tuple[Mapping[str, Any], ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    train_cases: tuple[str, ...] = ()
    held_out_cases: tuple[str, ...] = ()

    @property
    def counters(self) -> Counters:
        """How far the training was."""
        return Counters(**{one.name: getattr(self, one.name) for one in fields(Counters)})


def training_state_to_json(state: TrainingState) -> str:
    """Return the JSON text that a header keeps."""
    return json.dumps(to_json(state))


def training_state_from_json(text: str, where: str) -> TrainingState:
    """Read the JSON text that a header keeps.

    Raises:
        KitsattnError: If it has unknown keys.
    """
    return from_json(TrainingState, json.loads(text), where)


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], tuple[Mapping[str, Any], ...]]:
    """Return an optimiser's tensors, named `optimizer/<parameter number>/<key>`, and its groups' settings."""
    state = optimizer.state_dict()
    tensors = {
        f"{_OPTIMIZER}{number}/{key}": torch.as_tensor(value)
        for number, values in state["state"].items()
        for key, value in values.items()
    }
    return tensors, tuple(state["param_groups"])


def restore_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], groups: tuple[Mapping[str, Any], ...]
) -> None:
    """Put tensors and settings from `optimizer_state` back into an optimiser of the same network."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith(_OPTIMIZER):
            continue
        number, key = name.removeprefix(_OPTIMIZER).split("/", 1)
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape:  # moments in the memory order of the parameter, as they were
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)  # noqa: PLW2901
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": [dict(group) for group in groups]})
