"""Self-attention: the check of its input, and the choice of its path."""

import math

import torch
from torch import Tensor

from kitsattn.kernels import dispatch
from kitsattn.kernels.attention import reference
from kitsattn.kernels.attention.fused import fused_attention
from kitsattn.kernels.shapes import AttentionShape
from kitsattn.precision import autocast_enabled, compute_dtype, without_autocast


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Return the softmax-weighted average of all values for every query, gated and added to the residual.

    The definition is `reference.attention`; `dispatch.choose` says which path is taken.

    Args:
        q: Queries, (batch, queries, dim); slices of a projection's output are fine as they are.
        k: Keys, (batch, keys, dim).
        v: Values, (batch, keys, value_dim); `value_dim` may differ from `dim`, `keys` from `queries`.
        scale: Factor on the scores before the softmax.
        residual: (batch, queries, value_dim); None returns the average alone.
        gate: One value, shape (1,), with a residual; 0 returns the residual.

    Returns:
        (batch, queries, value_dim), in the dtype of `residual`, or of the values under autocast if there is none.

    Raises:
        ValueError: If shapes, dtypes or devices do not go together, or the scale is not finite.
        KitsattnError: If `KITSATTN_KERNELS` is wrong, or demands a kernel that cannot run.
    """
    _check_tokens(q, k, v, residual)
    _check_gate(residual, gate, (*q.shape[:2], v.shape[2]))
    if not -math.inf < scale < math.inf:
        msg = f"the scale is {scale}: it must be finite"
        raise ValueError(msg)
    # A float64 residual asks for more than the kernel's sums have.
    dtype = torch.float64 if residual is not None and residual.dtype == torch.float64 else compute_dtype(q)
    shape = AttentionShape(q.shape[0], q.shape[1], k.shape[1], q.shape[2], v.shape[2])
    training = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (q, k, v, residual, gate)
    )
    if not dispatch.choose(shape, q.device, dtype, training=training).fused:
        return reference.attention(q, k, v, scale=scale, residual=residual, gate=gate)
    with without_autocast(q):
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        return fused_attention(q, k, v, scale=scale, residual=residual, gate=gate, save=training)


def _check_tokens(q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None) -> None:
    shapes = {"q": q, "k": k, "v": v, **({} if residual is None else {"residual": residual})}
    for name, tensor in shapes.items():
        if tensor.ndim != 3:  # noqa: PLR2004 - batch, tokens, channels
            msg = f"{name} has the shape {tuple(tensor.shape)}: attention takes (batch, tokens, channels)"
            raise ValueError(msg)
        if tensor.device != q.device:
            msg = f"q is on {q.device} and {name} on {tensor.device}: move them to one device"
            raise ValueError(msg)
    if not (q.dtype == k.dtype == v.dtype) and not autocast_enabled(q):
        msg = f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: give them one dtype, or use autocast"
        raise ValueError(msg)
    if q.shape[0] != k.shape[0] or k.shape[:2] != v.shape[:2] or q.shape[2] != k.shape[2]:
        msg = (
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not go together: "
            "q and k share batch and channels, k and v batch and tokens"
        )
        raise ValueError(msg)
    if 0 in q.shape or 0 in k.shape:
        msg = f"q {tuple(q.shape)} and k {tuple(k.shape)} hold no token: there is nothing to attend to"
        raise ValueError(msg)


def _check_gate(residual: Tensor | None, gate: Tensor | None, shape: tuple[int, int, int]) -> None:
    if residual is None or gate is None:
        if residual is not None or gate is not None:
            msg = "residual and gate go together: give both, or neither"
            raise ValueError(msg)
        return
    if residual.shape != shape:
        msg = f"the residual has the shape {tuple(residual.shape)}: it takes {shape}"
        raise ValueError(msg)
    if gate.shape != (1,) or gate.device != residual.device:
        msg = (
            f"the gate has the shape {tuple(gate.shape)} on {gate.device}: it is one value, (1,), on {residual.device}"
        )
        raise ValueError(msg)
