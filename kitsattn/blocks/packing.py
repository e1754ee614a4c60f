"""Convolutions for networks that only predict, on a CPU in bf16: the same results in less time.

On two cores the starter is 1.23 times as fast, ResNet-18 1.13 times, ResNet-50 1.06 times: the smaller the network, the
larger the share of what is saved. `tests/benchmarks/packing.py` measures it.

Under autocast PyTorch casts the weights to bf16 and sorts them into the blocks that oneDNN multiplies, whenever a
convolution runs, and a ReLU behind it goes over its output once more. Here the weights are cast and sorted once, and
the ReLU is applied to each value before it is rounded and stored, which gives the same value.

What PyTorch's own compiler uses for this has no public name; where it is missing or works differently, networks are
left as they are.
"""

from itertools import pairwise
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu

from kitsattn.blocks.aspp import ASPP
from kitsattn.blocks.folding import chains, is_plain_convolution

_ONE = (1, 1)


class PackedConv2d(nn.Module):
    """A convolution in bf16, perhaps with a ReLU behind it.

    Args:
        weight: (out_channels, in_channels / groups, height, width).
        bias: (out_channels,) or None.
        stride: Along both axes.
        padding: Zeros on either side of both axes.
        dilation: Along both axes.
        groups: Of channels.
        relu: Whether negative values become 0.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, ...] = _ONE,
        padding: tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = _ONE,
        groups: int = 1,
        relu: bool = False,
    ) -> None:
        """Cast the weights; how they are best sorted is known when the first input comes."""
        super().__init__()
        self.weight = weight.detach().to(torch.bfloat16)
        self.bias = None if bias is None else bias.detach().to(torch.bfloat16)
        self.geometry = padding, stride, dilation, groups
        self.behind = "relu" if relu else "none"

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, ...) in bf16, channels last."""
        weight = self.weight
        if not weight.is_mkldnn:  # two threads may both sort them, to the same effect
            pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # noqa: SLF001 - see the top of this module
            self.weight = weight = pack(weight.to_mkldnn(), *self.geometry, x.shape)
        convolve = torch.ops.mkldnn._convolution_pointwise  # noqa: SLF001 - see the top of this module
        output: Tensor = convolve(x.to(torch.bfloat16), weight, self.bias, *self.geometry, self.behind, [], "")
        return output


class PackedASPP(nn.Module):
    """The ASPP outside training as `kernels.aspp.reference` defines it, with packed convolutions.

    Args:
        aspp: Whose parameters it has.
    """

    def __init__(self, aspp: ASPP) -> None:
        """Pack the convolutions; the normalisations stay as they are."""
        super().__init__()
        self.branches = nn.ModuleList(_pack(cast("nn.Conv2d", branch)) for branch in aspp.branches)
        self.pool = _pack(aspp.pool)
        pooled = aspp.pool.out_channels
        weights = aspp.project.weight.split([aspp.project.in_channels - pooled, pooled], dim=1)
        self.project, self.project_pooled = (PackedConv2d(weight) for weight in weights)
        self.norms = aspp.norms

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, channels, height, width)."""
        *branch_norms, pool_norm, norm = self.norms
        branches = [relu(norm(branch(x))) for branch, norm in zip(self.branches, branch_norms, strict=True)]
        pooled = relu(pool_norm(self.pool(x.mean((2, 3), keepdim=True))))
        return relu(norm(self.project(torch.cat(branches, dim=1)) + self.project_pooled(pooled)))


def pack_convolutions(model: nn.Module) -> None:
    """Pack all convolutions, with the ReLU that stands right behind one, if this PyTorch can.

    `folding.chains` says which modules follow directly; `folding.fold_batch_norm` must run first.

    Args:
        model: On the CPU, in evaluation; changed in place. It runs in bf16 from here on, and has no parameters to save.
    """
    if not _can_pack():
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ASPP):
                parent.register_module(name, PackedASPP(child))
    for parent in list(model.modules()):
        _pack_chains(parent)
        for name, child in list(parent.named_children()):
            if _can_be_packed(child):
                parent.register_module(name, _pack(child))


def _pack_chains(parent: nn.Module) -> None:
    """Pack the convolutions that have a ReLU right behind them."""
    for chain in chains(parent):
        there = [(name, module) for name, module in chain if not isinstance(module, nn.Identity)]
        for (name, module), (next_name, next_module) in pairwise(there):
            if _can_be_packed(module) and isinstance(next_module, nn.ReLU):
                parent.register_module(name, _pack(module, relu=True))
                parent.register_module(next_name, nn.Identity())


def _can_be_packed(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return is_plain_convolution(module) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _pack(convolution: nn.Conv2d, *, relu: bool = False) -> PackedConv2d:
    assert not isinstance(convolution.padding, str)
    return PackedConv2d(
        convolution.weight,
        convolution.bias,
        stride=convolution.stride,
        padding=convolution.padding,
        dilation=convolution.dilation,
        groups=convolution.groups,
        relu=relu,
    )


def _can_pack() -> bool:
    """Tell whether packed convolutions work here as expected, by trying one."""
    x, weight, bias = torch.linspace(-1, 1, 128).reshape(1, 8, 4, 4), torch.linspace(-1, 1, 576), torch.ones(8)
    x, weight, bias = (tensor.to(torch.bfloat16) for tensor in (x, weight.reshape(8, 8, 3, 3), bias))
    with torch.inference_mode():
        expected = relu(conv2d(x, weight, bias, padding=1))
        try:
            found = PackedConv2d(weight, bias, padding=_ONE, relu=True)(x)
        except (AttributeError, TypeError, RuntimeError):
            return False
    return torch.equal(expected, found)
