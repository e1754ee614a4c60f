"""Cross-entropy plus soft Dice, as nnU-Net's 2D configuration has them."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy, one_hot

from kitsattn.labels import Region
from kitsattn.ranks import sum_over_group

_SMOOTH = 1e-5


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    regions: Sequence[Region] = (),
    group: "distributed.ProcessGroup | None" = None,
    *,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Return cross-entropy minus the mean soft Dice of the foreground classes, or of regions.

    The Dice is taken over the whole batch at once (nnU-Net's batch Dice), so that a slice without the class does not
    count as a failure. Over several processes it is that of all their samples; the mean of their losses, and of their
    gradients, is then that of one process with the whole batch.

    Args:
        logits: (batch, classes, height, width).
        labels: (batch, height, width), int64.
        regions: What the Dice is taken over, a region's probability being the sum over its labels; without any, the
            foreground classes.
        group: The processes that share the batch, as many samples each.
        class_weights: Weight of each class in the cross-entropy; None weighs all alike.

    Returns:
        One value, fp32 at least, in [-1, inf).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    return cross_entropy(logits, labels, weights) - soft_dice(logits, labels, regions, group).mean()


def soft_dice(
    logits: Tensor,
    labels: Tensor,
    regions: Sequence[Region] = (),
    group: "distributed.ProcessGroup | None" = None,
) -> Tensor:
    """Return the soft Dice of every foreground class, or of every region, over the batch: (classes,), in [0, 1]."""
    probabilities = torch.softmax(logits, dim=1)
    target = one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).to(probabilities.dtype)
    if regions:
        probabilities, target = (
            torch.stack([tensor[:, list(region.labels)].sum(1) for region in regions], dim=1)
            for tensor in (probabilities, target)
        )
    else:
        probabilities, target = probabilities[:, 1:], target[:, 1:]
    axes = (0, 2, 3)
    counts = torch.stack([(probabilities * target).sum(axes), probabilities.sum(axes) + target.sum(axes)])
    intersection, volume = sum_over_group(counts, group).unbind()
    dice: Tensor = (2 * intersection + _SMOOTH) / (volume + _SMOOTH)
    return dice
