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
    optimizer = _optimizer()
    schedule = build_schedule(recipe, optimizer)
    rates = []
    for loss in losses:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(loss)
    return rates


def test_the_paper_recipe_has_the_papers_numbers() -> None:
    """350 batches an epoch, Adam at 3e-4, L2 3e-5."""
    paper = RECIPES["paper"]
    assert (paper.batches_per_epoch, paper.learning_rate, paper.weight_decay) == (350, 3e-4, 3e-5)
    assert paper.schedule == "plateau"


def test_the_polynomial_falls_to_zero() -> None:
    """Worked by hand: (1 - t / 4) ** 0.9."""
    rates = _rates(Recipe(epochs=4, schedule="polynomial"), [1.0] * 4)
    assert rates == pytest.approx([1.0, 0.75**0.9, 0.5**0.9, 0.25**0.9])


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
    ends = [schedule.step(1.0) for _ in range(40)]
    assert ends.index(True) == 31


@pytest.mark.parametrize("kind", ["plateau", "polynomial"])
def test_a_resumed_schedule_goes_on(kind: str) -> None:
    """State put into a fresh schedule gives the same rates as one that was not stopped."""
    recipe = Recipe(epochs=40, schedule="plateau" if kind == "plateau" else "polynomial")
    straight, first = _optimizer(), _optimizer()
    whole, begun = build_schedule(recipe, straight), build_schedule(recipe, first)
    for _ in range(25):
        straight.step()
        first.step()
        whole.step(1.0)
        begun.step(1.0)
    second = _optimizer()
    resumed = build_schedule(recipe, second)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(begun.state_dict())
    for _ in range(12):
        straight.step()
        second.step()
        whole.step(1.0)
        resumed.step(1.0)
    assert second.param_groups[0]["lr"] == pytest.approx(straight.param_groups[0]["lr"])
    assert second.param_groups[0]["lr"] < 0.5


def test_a_recipe_is_found_by_name_or_file(tmp_path: Path) -> None:
    """A file needs only what differs from the paper."""
    (tmp_path / "mine.toml").write_text("epochs = 3\npatch_size = [64, 96]\n")
    assert find_recipe(str(tmp_path / "mine.toml")) == ("mine", Recipe(epochs=3, patch_size=(64, 96)))
    assert find_recipe("paper") == ("paper", Recipe())
    with pytest.raises(KitsattnError, match="choose one of paper, demo"):
        find_recipe("papr")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs = 0", "epochs must be positive"),
        ("batch_size = 1", "batch_size must be 2 or more"),
        ("weight_decay = -1.0", "weight_decay must not be negative"),
        ("patch_size = [16, 64]", "patch_size must be 32 or more"),
        ("optimizer = 'sgd'", "unknown key 'optimizer'"),
    ],
)
def test_a_recipe_that_makes_no_training_is_refused(tmp_path: Path, line: str, message: str) -> None:
    """By name and value."""
    (tmp_path / "mine.toml").write_text(line)
    with pytest.raises(KitsattnError, match=message):
        find_recipe(str(tmp_path / "mine.toml"))
