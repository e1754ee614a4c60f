"""Batch normalisation folded into the convolutions before it, for networks that only predict."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import TypeGuard

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(model: nn.Module) -> None:
    """Fold each batch normalisation with running statistics into the convolution before it, where `chains` tells of it.

    The parameters keep their names; those of the normalisations go. The ASPP's are left: its operator folds them.

    Args:
        model: In evaluation; changed in place.
    """
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for parent in list(model.modules()):
        for chain in chains(parent):
            for (name, module), (next_name, next_module) in pairwise(chain):
                once = places[id(module)] == places[id(next_module)] == 1
                if once and is_plain_convolution(module) and _has_statistics(next_module):
                    parent.register_module(name, fuse_conv_bn_eval(module, next_module))
                    parent.register_module(next_name, nn.Identity())


def chains(block: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Yield the children that a block applies one after the other, with their names.

    Each of a chain gets what the one before it returns, which goes nowhere else. The order in which a block holds its
    children says nothing of that. `nn.Sequential` is one chain; other blocks declare theirs in an attribute `CHAINS`,
    such as `(("conv1", "bn1", "relu1"), ("conv2", "bn2"))`. Names that a block does not have are passed over.
    """
    children = dict(block.named_children())
    if type(block).forward is nn.Sequential.forward:
        yield list(children.items())
    for names in getattr(block, "CHAINS", ()):
        yield [(name, children[name]) for name in names if name in children]


def is_plain_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Tell whether a module is a 2D convolution without parametrisation or hooks, which would be lost."""
    return type(module) is nn.Conv2d and not module._forward_hooks and not module._forward_pre_hooks  # noqa: SLF001


def _has_statistics(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
