"""Learning rates and recipes."""

from pathlib import Path

import pytest
import torch

from kitsattn.errors import KitsattnError
from kitsattn.train.recipe import RECIPES, Recipe, find_recipe
from kitsattn.train.schedule import build_schedule


def _optimizer(rate: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def _rates(recipe: Recipe, losses: list[float]) -> list[float]:
    """Return the rate of the first batch of each epoch."""
    optimizer = _optimizer()
    schedule = build_schedule(recipe, optimizer)
    rates = []
    for epoch, loss in enumerate(losses):
        schedule.before_batch(epoch * recipe.batches_per_epoch)
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.after_epoch(loss)
    return rates


def test_the_paper_recipe_has_the_papers_numbers() -> None:
    """350 batches an epoch, Adam at 3e-4, L2 3e-5."""
    paper = RECIPES["paper"]
    assert (paper.batches_per_epoch, paper.learning_rate, paper.weight_decay) == (350, 3e-4, 3e-5)
    assert paper.schedule == "plateau"


def test_the_polynomial_falls_to_zero() -> None:
    """Worked by hand: (1 - t / 4) ** 0.9, and batch by batch in between."""
    recipe = Recipe(epochs=4, batches_per_epoch=2, schedule="polynomial", learning_rate=1.0)
    assert _rates(recipe, [1.0] * 4) == pytest.approx([1.0, 0.75**0.9, 0.5**0.9, 0.25**0.9])
    optimizer = _optimizer()
    build_schedule(recipe, optimizer).before_batch(7)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.125**0.9)


def test_a_warm_up_rises_from_zero() -> None:
    """Worked by hand: a quarter, a half, three quarters, then all of what the polynomial leaves."""
    recipe = Recipe(epochs=1, batches_per_epoch=100, schedule="polynomial", learning_rate=2.0, warmup_share=0.03)
    optimizer = _optimizer()
    schedule = build_schedule(recipe, optimizer)
    rates = []
    for done in range(5):
        schedule.before_batch(done)
        rates.append(optimizer.param_groups[0]["lr"])
    left = [2.0 * (1 - done / 100) ** 0.9 for done in range(5)]
    assert rates == pytest.approx([share * rate for share, rate in zip((0.25, 0.5, 0.75, 1, 1), left, strict=True)])


def test_a_plateau_of_thirty_epochs_costs_four_fifths() -> None:
    """The rate is held while the loss falls, and drops 31 epochs after its last improvement."""
    rates = _rates(Recipe(), [1.0] * 35)
    assert rates[:32] == [1.0] * 32
    assert rates[32:] == pytest.approx([0.2] * 3)
    assert _rates(Recipe(), [1.0 - 0.1 * epoch for epoch in range(60)]) == [1.0] * 60


def test_training_is_over_below_a_millionth() -> None:
    """The plateau rule ends the training by itself."""
    optimizer = _optimizer(1.5e-6)
    schedule = build_schedule(Recipe(), optimizer)
    ends = [schedule.after_epoch(1.0) for _ in range(40)]
    assert ends.index(True) == 31


def test_a_resumed_plateau_goes_on() -> None:
    """State put into a fresh schedule gives the same rates as one that was not stopped."""
    straight, first = _optimizer(), _optimizer()
    whole, begun = build_schedule(Recipe(), straight), build_schedule(Recipe(), first)
    for _ in range(25):
        whole.after_epoch(1.0)
        begun.after_epoch(1.0)
    second = _optimizer()
    resumed = build_schedule(Recipe(), second)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(begun.state_dict())
    for _ in range(12):
        whole.after_epoch(1.0)
        resumed.after_epoch(1.0)
    assert second.param_groups[0]["lr"] == pytest.approx(straight.param_groups[0]["lr"])
    assert second.param_groups[0]["lr"] < 0.5


def test_a_recipe_is_found_by_name_or_file(tmp_path: Path) -> None:
    """A file needs only what differs from the paper."""
    (tmp_path / "mine.toml").write_text("epochs = 3\npatch_size = [64, 96]\n")
    assert find_recipe(str(tmp_path / "mine.toml")) == ("mine", Recipe(epochs=3, patch_size=(64, 96)))
    assert find_recipe("paper") == ("paper", Recipe())
    with pytest.raises(KitsattnError, match="choose one of paper, modern, starter, demo"):
        find_recipe("papr")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs = 0", "epochs must be positive"),
        ("batch_size = 1", "batch_size must be 2 or more"),
        ("weight_decay = -1.0", "weight_decay must be 0 or more"),
        ("patch_size = [16, 64]", "patch_size must be 32 or more"),
        ("optimiser = 'sgd'", "unknown key 'optimiser'.*did you mean 'optimizer'"),
        ("optimizer = 'lion'", "optimizer"),
        ("ema_decay = 1.0", "ema_decay must be 0 or more and below 1, got 1.0"),
        ("warmup_share = 0.1", "warmup_share must be 0 with a plateau, got 0.1"),
        ("foreground_share = 2.0", "foreground_share must be from 0 to 1"),
    ],
)
def test_a_recipe_that_makes_no_training_is_refused(tmp_path: Path, line: str, message: str) -> None:
    """By name and value."""
    (tmp_path / "mine.toml").write_text(line)
    with pytest.raises(KitsattnError, match=message):
        find_recipe(str(tmp_path / "mine.toml"))
