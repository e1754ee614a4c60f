"""The loss."""

import math

import pytest
import torch

from kitsattn.labels import KITS19
from kitsattn.train.losses import segmentation_loss, soft_dice


def _one_hot_logits(labels: torch.Tensor, height: float) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2) * height


def test_a_perfect_prediction_loses_nothing() -> None:
    """Cross-entropy 0 and Dice 1: the least possible value is -1."""
    labels = torch.randint(0, 3, (2, 8, 8))
    assert segmentation_loss(_one_hot_logits(labels, 50.0), labels).item() == pytest.approx(-1.0, abs=1e-4)


def test_a_guess_has_the_entropy_of_a_guess() -> None:
    """Worked by hand: equal logits for three classes, half the pixels kidney, none tumour."""
    labels = torch.tensor([[[0, 0], [1, 1]]])
    logits = torch.zeros(1, 3, 2, 2)
    dice = soft_dice(logits, labels)
    # kidney: 2 * (2/3) / (4/3 + 2) = 0.4; tumour: nothing true, 4/3 predicted
    assert dice.tolist() == pytest.approx([0.4, 1e-5 / (4 / 3)], abs=1e-5)
    assert segmentation_loss(logits, labels).item() == pytest.approx(math.log(3) - 0.2, abs=1e-4)


def test_dice_is_over_the_batch() -> None:
    """A slice without the class is no failure as long as the batch as a whole is right."""
    labels = torch.tensor([[[1, 1]], [[0, 0]]])
    assert soft_dice(_one_hot_logits(labels, 50.0), labels)[0].item() == pytest.approx(1.0)


def test_a_regions_probability_is_the_sum_over_its_labels() -> None:
    """Worked by hand: kidney called tumour costs the labels' Dice and not that of both as one region."""
    labels = torch.tensor([[[1, 1, 2, 0]]])
    logits = _one_hot_logits(torch.tensor([[[1, 2, 2, 0]]]), 50.0)
    assert soft_dice(logits, labels).tolist() == pytest.approx([2 / 3, 2 / 3], abs=1e-4)
    assert soft_dice(logits, labels, KITS19.regions).tolist() == pytest.approx([1.0, 2 / 3], abs=1e-4)
    cost = segmentation_loss(logits, labels, KITS19.regions) - segmentation_loss(logits, labels)
    assert cost.item() == pytest.approx(2 / 3 - 5 / 6, abs=1e-4)


def test_the_loss_is_fp32_under_bf16_logits() -> None:
    """Soft sums over many pixels are not taken in bf16."""
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert segmentation_loss(torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16), labels).dtype == torch.float32
