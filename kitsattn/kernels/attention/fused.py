"""Attention as an operator of PyTorch whose work the Triton kernels do.

The operator is opaque to `torch.compile` and `torch.export`, which see its shapes, its gradient and its operations.
Triton is imported when it is first launched. The gradient has no gradient of its own: asking for one is an error.
"""

from typing import Any

import torch
from torch import Tensor

from kitsattn.kernels.operators import TAGS, refuse_second_gradient


@torch.library.custom_op("kitsattn::attention", mutates_args=(), tags=TAGS)
def attention_operator(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, gate: Tensor | None, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the attended values and the log-sum-exp; see `kernels.forward`."""
    from kitsattn.kernels.attention.kernels import forward

    return forward(q, k, v, residual, gate, scale, save=save)


@attention_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, gate: Tensor | None, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    del k, gate, scale
    shape = (q.shape[0], q.shape[1], v.shape[2])
    out = (q if residual is None else residual).new_empty(shape)
    attended = v.new_empty(shape if save and residual is not None else (0,))
    return out, attended, q.new_empty(shape[:2] if save else (0,), dtype=torch.float32)


@torch.library.custom_op("kitsattn::attention_backward", mutates_args=(), tags=TAGS)
def attention_backward_operator(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    lse: Tensor,
    gate: Tensor | None,
    scale: float,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and gate; see `kernels.backward`."""
    from kitsattn.kernels.attention.kernels import backward

    return backward(grad_out, q, k, v, attended, lse, gate, scale, deterministic=deterministic)


@attention_backward_operator.register_fake
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    lse: Tensor,
    gate: Tensor | None,
    scale: float,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del grad_out, attended, gate, scale, deterministic
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), lse.new_empty(1)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, residual, gate, ctx.scale, _ = inputs
    out, attended, lse = output
    ctx.gated = residual is not None
    ctx.save_for_backward(q, k, v, attended if ctx.gated else out, lse, gate)
    ctx.mark_non_differentiable(attended, lse)


def _backward(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, attended, lse, gate = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    dq, dk, dv, dgate = attention_backward_operator(grad_out, q, k, v, attended, lse, gate, ctx.scale, deterministic)
    if not ctx.gated:
        return dq, dk, dv, None, None, None, None
    return dq, dk, dv, grad_out, dgate.to(gate.dtype), None, None


attention_operator.register_autograd(_backward, setup_context=_save_for_backward)
attention_backward_operator.register_autograd(refuse_second_gradient)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, residual: Tensor | None, gate: Tensor | None, save: bool
) -> Tensor:
    """Do what `reference.attention` does; `save` what the backward pass needs."""
    out: Tensor = attention_operator(q, k, v, residual, gate, scale, save)[0]
    return out
