"""The Triton kernels of attention, and their launches. Importing this module needs Triton.

The scores exist tile by tile only. A forward program owns a tile of queries and walks over the keys, with a running
maximum and sum of each query's scores (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018; Dao,
FlashAttention-2, 2023). Scores are in units of log 2, for which GPUs have an instruction. The backward pass makes the
weights p = exp2(score - lse) anew; with a the attended values, g the gate and d = grad_out:

    delta = sum_c a d           dv = g p^T d           ds = g scale p (d v^T - delta)
    dq = ds k                   dk = ds^T q            dgate = sum delta

One program owns a tile of keys for dk and dv, another a tile of queries for dq: nothing is added atomically, and the
gradients are the same bits every time. The one-pass program does both and adds dq atomically, with a third less work.
"""

from functools import lru_cache
from math import e, log2
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kitsattn.kernels.attention.tiles import INTERPRETER_TILES, AttentionTiles, choose_tiles
from kitsattn.kernels.numerics import INTERPRETED, OPTIONS, dot, on_its_device, refuse_large
from kitsattn.kernels.shapes import MOST_ELEMENTS

_DELTA_ROWS = 32


@triton.jit(do_not_specialize=["queries", "keys"])
def forward_kernel(
    q_start, k_start, v_start, residual_start, gate, out, attended, lse,
    score_scale, queries, keys,
    q_image, q_token, k_image, k_token, v_image, v_token, residual_image, residual_token,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    GATED: tl.constexpr, SAVE: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    dims = tl.arange(0, DIM)
    value_dims = tl.arange(0, VALUE_DIM)
    in_rows = rows < queries
    q = tl.load(q_start + image * q_image + rows[:, None] * q_token + dims[None, :], mask=in_rows[:, None], other=0.0)
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    average = tl.zeros((QUERIES, VALUE_DIM), tl.float32)
    for start in range(0, keys, KEYS):
        columns = start + tl.arange(0, KEYS)
        k_places = k_start + image * k_image + columns[None, :] * k_token + dims[:, None]
        v_places = v_start + image * v_image + columns[:, None] * v_token + value_dims[None, :]
        if EVEN:
            k = tl.load(k_places)  # [DIM, KEYS]
            v = tl.load(v_places)  # [KEYS, VALUE_DIM]
        else:
            k = tl.load(k_places, mask=(columns < keys)[None, :], other=0.0)
            v = tl.load(v_places, mask=(columns < keys)[:, None], other=0.0)
        scores = dot(q, k, tl.zeros((QUERIES, KEYS), tl.float32), UPCAST) * score_scale
        if not EVEN:
            scores = tl.where((columns < keys)[None, :], scores, float("-inf"))
        raised = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - raised[:, None])
        shrink = tl.exp2(highest - raised)
        total = total * shrink + tl.sum(weights, 1)
        average = dot(weights.to(v.dtype), v, average * shrink[:, None], UPCAST)
        highest = raised
    average = average / total[:, None]
    places = (image * queries + rows)[:, None] * VALUE_DIM + value_dims[None, :]
    if SAVE:
        tl.store(lse + image * queries + rows, highest + tl.log2(total), mask=in_rows)
    if GATED:
        if SAVE:
            tl.store(attended + places, average.to(attended.dtype.element_ty), mask=in_rows[:, None])
        residual_places = residual_start + image * residual_image + rows[:, None] * residual_token + value_dims[None, :]
        residual = tl.load(residual_places, mask=in_rows[:, None], other=0.0)
        average = residual.to(tl.float32) + tl.load(gate).to(tl.float32) * average
    tl.store(out + places, average.to(out.dtype.element_ty), mask=in_rows[:, None])


@triton.jit(do_not_specialize=["queries"])
def delta_kernel(
    attended, grad_out, delta, gate_parts, queries, grad_image, grad_token,
    VALUE_DIM: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    dims = tl.arange(0, VALUE_DIM)
    in_rows = rows < queries
    a_places = attended + (image * queries + rows)[:, None] * VALUE_DIM + dims[None, :]
    d_places = grad_out + image * grad_image + rows[:, None] * grad_token + dims[None, :]
    a = tl.load(a_places, mask=in_rows[:, None], other=0.0).to(tl.float32)
    d = tl.load(d_places, mask=in_rows[:, None], other=0.0).to(tl.float32)
    products = tl.sum(a * d, 1)
    tl.store(delta + image * queries + rows, products, mask=in_rows)
    tl.store(gate_parts + image * tl.num_programs(0) + tl.program_id(0), tl.sum(products, 0))


@triton.jit(do_not_specialize=["queries", "keys"])
def keys_kernel(
    q_start, k_start, v_start, grad_out, lse, delta, gate, dq_sum, dk, dv,
    scale, score_scale, queries, keys,
    q_image, q_token, k_image, k_token, v_image, v_token, grad_image, grad_token,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    GATED: tl.constexpr, ONE_PASS: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # Works on transposed scores, so that the weights go into the products as they are.
    image = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    dims = tl.arange(0, DIM)
    value_dims = tl.arange(0, VALUE_DIM)
    in_columns = columns < keys
    k_places = k_start + image * k_image + columns[:, None] * k_token + dims[None, :]
    v_places = v_start + image * v_image + columns[:, None] * v_token + value_dims[None, :]
    k = tl.load(k_places, mask=in_columns[:, None], other=0.0)  # [KEYS, DIM]
    v = tl.load(v_places, mask=in_columns[:, None], other=0.0)  # [KEYS, VALUE_DIM]
    factor = 1.0
    if GATED:
        factor = tl.load(gate).to(tl.float32)
    dk_sum = tl.zeros((KEYS, DIM), tl.float32)
    dv_sum = tl.zeros((KEYS, VALUE_DIM), tl.float32)
    for start in range(0, queries, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        in_rows = rows < queries
        q_places = q_start + image * q_image + rows[None, :] * q_token + dims[:, None]
        d_places = grad_out + image * grad_image + rows[:, None] * grad_token + value_dims[None, :]
        q = tl.load(q_places, mask=in_rows[None, :], other=0.0)  # [DIM, QUERIES]
        row_lse = tl.load(lse + image * queries + rows, mask=in_rows, other=float("inf"))
        row_delta = tl.load(delta + image * queries + rows, mask=in_rows, other=0.0)
        scores = dot(k, q, tl.zeros((KEYS, QUERIES), tl.float32), UPCAST) * score_scale
        if not EVEN:
            # A column that is not there has the score 0: where all others are far below, its weight would be infinite.
            scores = tl.where(in_columns[:, None], scores, float("-inf"))
        weights = tl.exp2(scores - row_lse[None, :])
        d = tl.load(d_places, mask=in_rows[:, None], other=0.0)  # [QUERIES, VALUE_DIM]
        dv_sum = dot(weights.to(v.dtype), d, dv_sum, UPCAST)
        products = dot(v, tl.trans(d), tl.zeros((KEYS, QUERIES), tl.float32), UPCAST)
        ds = (weights * (products - row_delta[None, :])).to(v.dtype)
        dk_sum = dot(ds, tl.trans(q), dk_sum, UPCAST)
        if ONE_PASS:
            dq = dot(tl.trans(ds), k, tl.zeros((QUERIES, DIM), tl.float32), UPCAST) * (scale * factor)
            dq_places = dq_sum + (image * queries + rows)[:, None] * DIM + dims[None, :]
            tl.atomic_add(dq_places, dq, mask=in_rows[:, None], sem="relaxed")
    dk_places = dk + (image * keys + columns)[:, None] * DIM + dims[None, :]
    dv_places = dv + (image * keys + columns)[:, None] * VALUE_DIM + value_dims[None, :]
    tl.store(dk_places, (dk_sum * (scale * factor)).to(dk.dtype.element_ty), mask=in_columns[:, None])
    tl.store(dv_places, (dv_sum * factor).to(dv.dtype.element_ty), mask=in_columns[:, None])


@triton.jit(do_not_specialize=["queries", "keys"])
def queries_kernel(
    q_start, k_start, v_start, grad_out, lse, delta, gate, dq,
    scale, score_scale, queries, keys,
    q_image, q_token, k_image, k_token, v_image, v_token, grad_image, grad_token,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    GATED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    dims = tl.arange(0, DIM)
    value_dims = tl.arange(0, VALUE_DIM)
    in_rows = rows < queries
    q_places = q_start + image * q_image + rows[:, None] * q_token + dims[None, :]
    d_places = grad_out + image * grad_image + rows[:, None] * grad_token + value_dims[None, :]
    q = tl.load(q_places, mask=in_rows[:, None], other=0.0)  # [QUERIES, DIM]
    d = tl.load(d_places, mask=in_rows[:, None], other=0.0)  # [QUERIES, VALUE_DIM]
    row_lse = tl.load(lse + image * queries + rows, mask=in_rows, other=float("inf"))
    row_delta = tl.load(delta + image * queries + rows, mask=in_rows, other=0.0)
    factor = scale
    if GATED:
        factor = scale * tl.load(gate).to(tl.float32)
    dq_sum = tl.zeros((QUERIES, DIM), tl.float32)
    for start in range(0, keys, KEYS):
        columns = start + tl.arange(0, KEYS)
        in_columns = columns < keys
        k_places = k_start + image * k_image + columns[None, :] * k_token + dims[:, None]
        v_places = v_start + image * v_image + columns[None, :] * v_token + value_dims[:, None]
        k = tl.load(k_places, mask=in_columns[None, :], other=0.0)  # [DIM, KEYS]
        v = tl.load(v_places, mask=in_columns[None, :], other=0.0)  # [VALUE_DIM, KEYS]
        scores = dot(q, k, tl.zeros((QUERIES, KEYS), tl.float32), UPCAST) * score_scale
        weights = tl.exp2(tl.where(in_columns[None, :], scores, float("-inf")) - row_lse[:, None])
        products = dot(d, v, tl.zeros((QUERIES, KEYS), tl.float32), UPCAST)
        ds = (weights * (products - row_delta[:, None])).to(k.dtype)
        dq_sum = dot(ds, tl.trans(k), dq_sum, UPCAST)
    dq_places = dq + (image * queries + rows)[:, None] * DIM + dims[None, :]
    tl.store(dq_places, (dq_sum * factor).to(dq.dtype.element_ty), mask=in_rows[:, None])


@on_its_device
def forward(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, gate: Tensor | None, scale: float, *, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward program.

    Args:
        q: (batch, queries, dim).
        k: (batch, keys, dim).
        v: (batch, keys, value_dim).
        residual: (batch, queries, value_dim), or None for the average alone.
        gate: (1,), or None with it.
        scale: Factor on the scores.
        save: Whether the backward pass will want `attended` and `lse`.

    Returns:
        The output (batch, queries, value_dim), contiguous, in the dtype of `residual`; the attended values in that of
        `v`; and the logarithm to base 2 of each query's sum of exponentials, (batch, queries), fp32. The last two are
        empty where they are not saved, the second also where it would equal the first.
    """
    batch, queries, dim = q.shape
    _, keys, value_dim = v.shape
    q, k, v = _token_major(q), _token_major(k), _token_major(v)
    gated = residual is not None
    residual = q if residual is None else _token_major(residual)
    out = residual.new_empty(batch, queries, value_dim)
    refuse_large(q, k, v, out)
    attended = v.new_empty(out.shape if save and gated else 0)
    lse = q.new_empty((batch, queries) if save else 0, dtype=torch.float32)
    tile = _tiles(q, queries).forward
    forward_kernel[(triton.cdiv(queries, tile.queries), batch)](
        q, k, v, residual, q if gate is None else gate, out, attended, lse, scale * log2(e), queries, keys,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *residual.stride()[:2],
        DIM=dim, VALUE_DIM=value_dim, QUERIES=tile.queries, KEYS=tile.keys, GATED=gated, SAVE=save,
        EVEN=keys % tile.keys == 0, UPCAST=INTERPRETED, num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
    )  # fmt: skip
    return out, attended, lse


@on_its_device
def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    lse: Tensor,
    gate: Tensor | None,
    scale: float,
    *,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward programs.

    Args:
        grad_out: (batch, queries, value_dim).
        q: As in `forward`.
        k: As in `forward`.
        v: As in `forward`.
        attended: As `forward` saved them, contiguous.
        lse: As `forward` saved it.
        gate: As in `forward`.
        scale: As in `forward`.
        deterministic: Whether the gradients must be the same bits every time.

    Returns:
        The gradients of q, k, v, contiguous and in their dtypes, and of the gate, (1,), fp32.
    """
    batch, queries, dim = q.shape
    _, keys, value_dim = v.shape
    q, k, v, grad_out = _token_major(q), _token_major(k), _token_major(v), _token_major(grad_out.to(v.dtype))
    tiles = _tiles(q, queries)
    delta = torch.empty_like(lse)
    parts = triton.cdiv(queries, _DELTA_ROWS)
    gate_parts = lse.new_empty(batch, parts)
    delta_kernel[(parts, batch)](
        attended, grad_out, delta, gate_parts, queries, *grad_out.stride()[:2],
        VALUE_DIM=value_dim, QUERIES=_DELTA_ROWS, **OPTIONS,
    )  # fmt: skip
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    one_pass = not deterministic and tiles.one_pass is not None
    dq = q.new_zeros(q.shape, dtype=torch.float32) if one_pass else q.new_empty(q.shape)
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2])
    numbers = (scale, scale * log2(e), queries, keys, *strides)
    sizes: dict[str, Any] = {"DIM": dim, "VALUE_DIM": value_dim, "GATED": gate is not None, "UPCAST": INTERPRETED}
    factor = q if gate is None else gate
    tile = tiles.one_pass if one_pass and tiles.one_pass else tiles.keys
    keys_kernel[(triton.cdiv(keys, tile.keys), batch)](
        q, k, v, grad_out, lse, delta, factor, dq, dk, dv, *numbers,
        QUERIES=tile.queries, KEYS=tile.keys, ONE_PASS=one_pass, EVEN=keys % tile.keys == 0,
        num_warps=tile.warps, num_stages=tile.stages,
        **sizes, **OPTIONS,
    )  # fmt: skip
    if not one_pass:
        tile = tiles.queries
        queries_kernel[(triton.cdiv(queries, tile.queries), batch)](
            q, k, v, grad_out, lse, delta, factor, dq, *numbers,
            QUERIES=tile.queries, KEYS=tile.keys, num_warps=tile.warps, num_stages=tile.stages, **sizes, **OPTIONS,
        )  # fmt: skip
    return dq.to(q.dtype), dk, dv, gate_parts.sum().reshape(1)


def _token_major(x: Tensor) -> Tensor:
    """Return a tensor whose last axis is contiguous: a slice of a projection's output is one already."""
    places_fit = (x.shape[1] - 1) * x.stride(1) + x.shape[2] <= MOST_ELEMENTS  # within an image, counted in 32 bits
    return x if x.stride(-1) == 1 and places_fit else x.contiguous()


def _tiles(q: Tensor, queries: int) -> AttentionTiles:
    if INTERPRETED:
        return INTERPRETER_TILES
    capability, multiprocessors = _device(q.device)
    programs = q.shape[0] * triton.cdiv(queries, 128)
    return choose_tiles(capability, dim=q.shape[2], programs=programs, multiprocessors=multiprocessors)


@lru_cache
def _device(device: torch.device) -> tuple[tuple[int, int], int]:
    return torch.cuda.get_device_capability(device), torch.cuda.get_device_properties(device).multi_processor_count
