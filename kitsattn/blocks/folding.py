"""Batch normalisation folded into the convolutions before it, for networks that only predict."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(model: nn.Module) -> None:
    """Fold each batch normalisation with running statistics into the convolution that stands right before it.

    What stands right before it is the module before it in the order in which their parent holds them, as in all blocks
    here. The parameters keep their names; those of the normalisations go. The ASPP's are left: its operator folds them.

    Args:
        model: In evaluation; changed in place.
    """
    for parent in list(model.modules()):
        before: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if before and isinstance(before[1], nn.Conv2d) and isinstance(child, nn.BatchNorm2d):
                parent.register_module(before[0], fuse_conv_bn_eval(before[1], child))
                parent.register_module(name, nn.Identity())
            before = name, child
