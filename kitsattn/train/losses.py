"""Cross-entropy plus soft Dice, as nnU-Net's 2D configuration has them."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

_SMOOTH = 1e-5


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross-entropy minus the mean soft Dice of the foreground classes.

    The Dice of a class is taken over the whole batch at once (nnU-Net's batch Dice), so that a slice without the
    class does not count as a failure.

    Args:
        logits: (batch, classes, height, width).
        labels: (batch, height, width), int64.

    Returns:
        One fp32 value, in [-1, inf).
    """
    logits = logits.float()
    return cross_entropy(logits, labels) - soft_dice(logits, labels)[1:].mean()


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the soft Dice of every class over the batch, (classes,), in [0, 1]."""
    probabilities = torch.softmax(logits, dim=1)
    target = one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2)
    axes = (0, 2, 3)
    intersection = (probabilities * target).sum(axes)
    volume = probabilities.sum(axes) + target.sum(axes)
    return (2 * intersection + _SMOOTH) / (volume + _SMOOTH)
