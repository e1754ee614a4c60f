"""How many operations the operators have, for `torch.utils.flop_counter.FlopCounterMode`.

Import this module before counting. It is not imported by others: PyTorch's counter imports Triton.
"""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from kitsattn.kernels.aspp import fused as _aspp  # noqa: F401 - registers its operators
from kitsattn.kernels.attention import fused as _attention  # noqa: F401


@register_flop_formula(torch.ops.kitsattn.attention)
def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return _pairs(q, k, q[2] + v[2])


@register_flop_formula(torch.ops.kitsattn.attention_backward)
def _attention_backward_flops(grad_out: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    del grad_out
    return _pairs(q, k, 3 * q[2] + 2 * v[2])


def _pairs(q: Any, k: Any, dims: int) -> int:
    """Return the floating-point operations of products that take so many dimensions for each pair of tokens."""
    return int(2 * q[0] * q[1] * k[1] * dims)


@register_flop_formula([torch.ops.kitsattn.aspp_branches, torch.ops.kitsattn.aspp_folded])
def _branch_flops(x: Any, w: Any, *_: Any, **__: Any) -> int:
    return _products(x, w[0] * w[2])


@register_flop_formula(torch.ops.kitsattn.aspp_branches_backward)
def _branch_backward_flops(grads: Any, x: Any, w: Any, *_: Any, **__: Any) -> int:
    del grads
    return 2 * _products(x, w[0] * w[2])


@register_flop_formula(torch.ops.kitsattn.aspp_project)
def _project_flops(z: Any, mean: Any, scale: Any, bias: Any, u: Any, *_: Any, **__: Any) -> int:
    del mean, scale, bias
    return _products(z, u[0])


@register_flop_formula(torch.ops.kitsattn.aspp_project_folded)
def _project_folded_flops(y: Any, u: Any, *_: Any, **__: Any) -> int:
    return _products(y, u[0])


@register_flop_formula(torch.ops.kitsattn.aspp_project_backward)
def _project_backward_flops(grads: Any, z: Any, mean: Any, scale: Any, bias: Any, u: Any, *_: Any, **__: Any) -> int:
    del grads, mean, scale, bias
    return 2 * _products(z, u[0])


def _products(x: Any, channels: int) -> int:
    """Return the floating-point operations of a dense product, by which convolutions are counted: padding included."""
    return int(2 * x[0] * x[1] * x[2] * x[3] * channels)
