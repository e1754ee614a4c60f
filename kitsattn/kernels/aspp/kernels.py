"""The Triton kernels of the ASPP, and their launches. Importing this module needs Triton.

Everything is channels-last. With x the input, w_b the weights of branch b, z its raw output, (mean, scale, bias) of a
channel its batch normalisation, u the weights of the projection and i the pooled branch's part of it, one row an image:

    z_b[p] = sum over visible taps t of x[p + t] w_b[t]              y = relu((z - mean) scale + bias)
    out[p] = y[p] u^T + i[image of p]

`y` is never stored in training: whoever multiplies with it makes it from `z`. The backward pass, with g the gradient of
`out` and m = (y > 0):

    dy = m (g u)       dz = scale dy       dbias = sum_p dy       dscale = sum_p dy (z - mean)       du = g^T y
    dx[p] = sum over branches and taps of dz_b[p - t] w_b[t]^T       dw_b[t] = sum_p x[p + t]^T dz_b[p]

Sums over pixels are made in a fixed order, without atomic additions: the same input gives the same bits.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kitsattn.kernels.aspp.tiles import (
    INTERPRETER_TILE,
    Branch,
    Tile,
    block_table,
    branch_table,
    choose_patch,
    choose_tile,
    input_table,
    tap_table,
)
from kitsattn.kernels.numerics import INTERPRETED, OPTIONS, dot, on_its_device, refuse_large

_ROW_BLOCK = 64
"""Rows that elementwise programs take at a time."""
_COLUMN_BLOCK = 64
_FEWEST_PROGRAMS = 2
"""Of the weights' gradient, for each multiprocessor: the sum over pixels is split until there are so many."""


@triton.jit(do_not_specialize=["batch", "height", "width"])
def branches_kernel(
    x, w, out, table, scale, bias, sums, squares, batch, height, width,
    IN: tl.constexpr, OUT: tl.constexpr, BRANCHES: tl.constexpr,
    IMAGES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WIDE: tl.constexpr, DEEP: tl.constexpr, FOLDED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # One program: a patch of pixels, one branch, WIDE of its channels. A single flat loop over taps and depth, whose
    # tap is computed rather than looked up, keeps the loads ahead of the products.
    PIXELS: tl.constexpr = IMAGES * ROWS * COLUMNS
    STEPS: tl.constexpr = IN // DEEP
    PARTS: tl.constexpr = OUT // WIDE
    tile = tl.program_id(0) // PARTS
    row = table + tile * 11
    branch = tl.load(row)
    rate = tl.load(row + 4)
    dy0 = tl.load(row + 5)
    dx0 = tl.load(row + 6)
    columns = tl.load(row + 7)
    taps = tl.load(row + 8)
    weight = tl.load(row + 9)
    slot = tl.load(row + 10)
    i = tl.arange(0, PIXELS)
    image = tl.load(row + 1) + i // (ROWS * COLUMNS)
    y = tl.load(row + 2) + (i // COLUMNS) % ROWS
    x_pixel = tl.load(row + 3) + i % COLUMNS
    there = (image < batch) & (y < height) & (x_pixel < width)
    pixel = (image * height + y) * width + x_pixel
    depth = tl.arange(0, DEEP)
    channel = (tl.program_id(0) % PARTS) * WIDE + tl.arange(0, WIDE)
    total = tl.zeros((PIXELS, WIDE), tl.float32)
    for step in range(0, taps * STEPS):
        tap = step // STEPS
        start = (step % STEPS) * DEEP
        dy = dy0 + tap // columns
        dx = dx0 + tap % columns
        y_read = y + dy * rate
        x_read = x_pixel + dx * rate
        seen = there & (y_read >= 0) & (y_read < height) & (x_read >= 0) & (x_read < width)
        x_places = x + (pixel + (dy * width + dx) * rate)[:, None] * IN + (start + depth)[None, :]
        w_places = w + ((weight + (dy + 1) * 3 + dx + 1) * IN + start + depth)[:, None] * OUT + channel[None, :]
        total = dot(tl.load(x_places, mask=seen[:, None], other=0.0), tl.load(w_places), total, UPCAST)
    column = branch * OUT + channel
    if FOLDED:
        total = tl.maximum(total * tl.load(scale + column)[None, :] + tl.load(bias + column)[None, :], 0.0)
    else:
        # Pixels that are not there have only multiplied zeros.
        sum_ = tl.sum(total, 0)
        count = tl.sum(there.to(tl.float32), 0)
        centred = tl.where(there[:, None], total - (sum_ / count)[None, :], 0.0)
        tl.store(sums + slot * (BRANCHES * OUT) + column, sum_)
        tl.store(squares + slot * (BRANCHES * OUT) + column, tl.sum(centred * centred, 0))
    places = out + pixel[:, None] * (BRANCHES * OUT) + column[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=there[:, None])


@triton.jit(do_not_specialize=["slots", "pixels"])
def merge_kernel(
    sums, squares, counts, mean, variance, slots, pixels, CHANNELS: tl.constexpr, SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    # Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, slots, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        places = slot[:, None] * CHANNELS + channel[None, :]
        total += tl.sum(tl.load(sums + places, mask=(slot < slots)[:, None], other=0.0), 0)
    centre = total / pixels
    spread = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, slots, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        there = slot < slots
        places = slot[:, None] * CHANNELS + channel[None, :]
        count = tl.load(counts + slot, mask=there, other=1.0)
        sum_ = tl.load(sums + places, mask=there[:, None], other=0.0)
        away = sum_ / count[:, None] - centre[None, :]
        square = tl.load(squares + places, mask=there[:, None], other=0.0) + count[:, None] * away * away
        spread += tl.sum(tl.where(there[:, None], square, 0.0), 0)
    tl.store(mean + channel, centre)
    tl.store(variance + channel, spread / pixels)


@triton.jit(do_not_specialize=["pixels", "area"])
def project_kernel(
    z, u, image_bias, out, mean, scale, bias, out_scale, out_bias, sums, squares, pixels, area,
    IN: tl.constexpr, OUT: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr,
    FOLDED: tl.constexpr, ONE_IMAGE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    there = pixel < pixels
    total = tl.zeros((PIXELS, WIDE), tl.float32)
    for start in range(0, IN, DEEP):
        depth = start + tl.arange(0, DEEP)
        y = tl.load(z + pixel[:, None] * IN + depth[None, :], mask=there[:, None], other=0.0)
        if not FOLDED:
            centred = y.to(tl.float32) - tl.load(mean + depth)[None, :]
            normalised = centred * tl.load(scale + depth)[None, :] + tl.load(bias + depth)[None, :]
            y = tl.maximum(normalised, 0.0).to(z.dtype.element_ty)
        total = dot(y, tl.load(u + channel[None, :] * IN + depth[:, None]), total, UPCAST)
    if ONE_IMAGE:
        total += tl.load(image_bias + (tl.program_id(0) * PIXELS // area) * OUT + channel)[None, :]
    else:
        rows = tl.minimum(pixel, pixels - 1) // area
        total += tl.load(image_bias + rows[:, None] * OUT + channel[None, :])
    if FOLDED:
        total = tl.maximum(total * tl.load(out_scale + channel)[None, :] + tl.load(out_bias + channel)[None, :], 0.0)
    else:
        count = tl.minimum(pixels - tl.program_id(0) * PIXELS, PIXELS).to(tl.float32)
        sum_ = tl.sum(tl.where(there[:, None], total, 0.0), 0)
        centred = tl.where(there[:, None], total - (sum_ / count)[None, :], 0.0)
        tl.store(sums + tl.program_id(0) * OUT + channel, sum_)
        tl.store(squares + tl.program_id(0) * OUT + channel, tl.sum(centred * centred, 0))
    tl.store(out + pixel[:, None] * OUT + channel[None, :], total.to(out.dtype.element_ty), mask=there[:, None])


@triton.jit(do_not_specialize=["pixels"])
def normalise_kernel(
    values, mean, scale, bias, out, pixels, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    places = pixel[:, None] * CHANNELS + channel[None, :]
    there = (pixel < pixels)[:, None]
    centred = tl.load(values + places, mask=there, other=0.0).to(tl.float32) - tl.load(mean + channel)[None, :]
    normalised = centred * tl.load(scale + channel)[None, :] + tl.load(bias + channel)[None, :]
    tl.store(out + places, tl.maximum(normalised, 0.0).to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["pixels"])
def normalise_backward_kernel(
    grad, values, mean, scale, bias, out, bias_sums, scale_sums, pixels,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    places = pixel[:, None] * CHANNELS + channel[None, :]
    there = (pixel < pixels)[:, None]
    channel_scale = tl.load(scale + channel)[None, :]
    centred = tl.load(values + places, mask=there, other=0.0).to(tl.float32) - tl.load(mean + channel)[None, :]
    passed = there & (centred * channel_scale + tl.load(bias + channel)[None, :] > 0.0)
    dy = tl.where(passed, tl.load(grad + places, mask=there, other=0.0).to(tl.float32), 0.0)
    tl.store(out + places, (dy * channel_scale).to(out.dtype.element_ty), mask=there)
    tl.store(bias_sums + tl.program_id(0) * CHANNELS + channel, tl.sum(dy, 0))
    tl.store(scale_sums + tl.program_id(0) * CHANNELS + channel, tl.sum(dy * centred, 0))


@triton.jit(do_not_specialize=["pixels"])
def statistics_backward_kernel(
    grad, values, mean, slope, offset, out, pixels, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    places = pixel[:, None] * CHANNELS + channel[None, :]
    there = (pixel < pixels)[:, None]
    centred = tl.load(values + places, mask=there, other=0.0).to(tl.float32) - tl.load(mean + channel)[None, :]
    direct = tl.load(grad + places, mask=there, other=0.0).to(tl.float32)
    total = direct + centred * tl.load(slope + channel)[None, :] + tl.load(offset + channel)[None, :]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["pixels"])
def project_backward_kernel(
    grad, u, z, mean, scale, bias, dz, bias_sums, scale_sums, pixels,
    IN: tl.constexpr, OUT: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    there = pixel < pixels
    total = tl.zeros((PIXELS, WIDE), tl.float32)
    for start in range(0, OUT, DEEP):
        depth = start + tl.arange(0, DEEP)
        g = tl.load(grad + pixel[:, None] * OUT + depth[None, :], mask=there[:, None], other=0.0)
        total = dot(g, tl.load(u + depth[:, None] * IN + channel[None, :]), total, UPCAST)
    places = pixel[:, None] * IN + channel[None, :]
    channel_scale = tl.load(scale + channel)[None, :]
    centred = tl.load(z + places, mask=there[:, None], other=0.0).to(tl.float32) - tl.load(mean + channel)[None, :]
    passed = there[:, None] & (centred * channel_scale + tl.load(bias + channel)[None, :] > 0.0)
    dy = tl.where(passed, total, 0.0)
    tl.store(dz + places, (dy * channel_scale).to(dz.dtype.element_ty), mask=there[:, None])
    tl.store(bias_sums + tl.program_id(0) * IN + channel, tl.sum(dy, 0))
    tl.store(scale_sums + tl.program_id(0) * IN + channel, tl.sum(dy * centred, 0))


@triton.jit(do_not_specialize=["pixels", "part"])
def project_weight_kernel(
    grad, z, mean, scale, bias, du, pixels, part,
    IN: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    # ROWS input channels times WIDE output channels; the sum runs over one part of the pixels.
    PARTS: tl.constexpr = OUT // WIDE
    row = (tl.program_id(0) // PARTS) * ROWS + tl.arange(0, ROWS)
    channel = (tl.program_id(0) % PARTS) * WIDE + tl.arange(0, WIDE)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, pixels)
    row_mean = tl.load(mean + row)[:, None]
    row_scale = tl.load(scale + row)[:, None]
    row_bias = tl.load(bias + row)[:, None]
    total = tl.zeros((ROWS, WIDE), tl.float32)
    for start in range(first, last, DEEP):
        pixel = start + tl.arange(0, DEEP)
        there = pixel < last
        values = tl.load(z + pixel[None, :] * IN + row[:, None], mask=there[None, :], other=0.0)
        y = tl.maximum((values.to(tl.float32) - row_mean) * row_scale + row_bias, 0.0).to(z.dtype.element_ty)
        g = tl.load(grad + pixel[:, None] * OUT + channel[None, :], mask=there[:, None], other=0.0)
        total = dot(y, g, total, UPCAST)
    tl.store(du + (tl.program_id(1) * IN + row)[:, None] * OUT + channel[None, :], total)


@triton.jit(do_not_specialize=["batch", "height", "width"])
def input_kernel(
    dz, w, pooled, x_grad, table, batch, height, width, share,
    IN: tl.constexpr, OUT: tl.constexpr, BRANCHES: tl.constexpr,
    IMAGES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WIDE: tl.constexpr, DEEP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # One sum over all branches, so that the gradient is written once; one flat loop for each keeps the loads ahead.
    PIXELS: tl.constexpr = IMAGES * ROWS * COLUMNS
    STEPS: tl.constexpr = OUT // DEEP
    PARTS: tl.constexpr = IN // WIDE
    row = table + (tl.program_id(0) // PARTS) * (3 + 6 * BRANCHES)
    i = tl.arange(0, PIXELS)
    image = tl.load(row) + i // (ROWS * COLUMNS)
    y = tl.load(row + 1) + (i // COLUMNS) % ROWS
    x_pixel = tl.load(row + 2) + i % COLUMNS
    there = (image < batch) & (y < height) & (x_pixel < width)
    pixel = (image * height + y) * width + x_pixel
    depth = tl.arange(0, DEEP)
    channel = (tl.program_id(0) % PARTS) * WIDE + tl.arange(0, WIDE)
    total = tl.zeros((PIXELS, WIDE), tl.float32)
    for branch in tl.static_range(BRANCHES):
        entry = row + 3 + 6 * branch
        rate = tl.load(entry)
        dy0 = tl.load(entry + 1)
        dx0 = tl.load(entry + 2)
        columns = tl.load(entry + 3)
        taps = tl.load(entry + 4)
        weight = tl.load(entry + 5)
        for step in range(0, taps * STEPS):
            tap = step // STEPS
            start = (step % STEPS) * DEEP
            dy = dy0 + tap // columns
            dx = dx0 + tap % columns
            y_read = y + dy * rate
            x_read = x_pixel + dx * rate
            seen = there & (y_read >= 0) & (y_read < height) & (x_read >= 0) & (x_read < width)
            read = pixel + (dy * width + dx) * rate
            z_places = dz + read[:, None] * (BRANCHES * OUT) + (branch * OUT + start + depth)[None, :]
            w_places = w + ((weight + (1 - dy) * 3 + 1 - dx) * IN + channel)[None, :] * OUT + (start + depth)[:, None]
            total = dot(tl.load(z_places, mask=seen[:, None], other=0.0), tl.load(w_places), total, UPCAST)
    rows = tl.minimum(image, batch - 1)
    total += tl.load(pooled + rows[:, None] * IN + channel[None, :]) * share
    places = x_grad + pixel[:, None] * IN + channel[None, :]
    tl.store(places, total.to(x_grad.dtype.element_ty), mask=there[:, None])


@triton.jit(do_not_specialize=["batch", "height", "width", "splits", "total_taps"])
def weight_kernel(
    x, dz, dw, table, batch, height, width, splits, total_taps,
    IN: tl.constexpr, OUT: tl.constexpr, BRANCHES: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, EXACT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # ROWS input channels times WIDE output channels of one tap; the sum runs over a part of the pixels that see it.
    BANDS: tl.constexpr = IN // ROWS
    PARTS: tl.constexpr = OUT // WIDE
    entry = table + (tl.program_id(0) // (BANDS * PARTS)) * 10
    part = tl.program_id(0) % (BANDS * PARTS)
    split = tl.program_id(1)
    branch = tl.load(entry)
    ahead = tl.load(entry + 1) * width + tl.load(entry + 2)
    base = tl.load(entry + 3) * width + tl.load(entry + 4)
    rows = tl.load(entry + 5)
    columns = tl.load(entry + 6)
    weight = tl.load(entry + 7)
    by_width = tl.load(entry + 8)
    by_area = tl.load(entry + 9)
    row_skip = width - columns
    image_skip = (height - rows) * width
    seen = batch * rows * columns
    length = tl.cdiv(tl.cdiv(seen, splits), DEEP) * DEEP
    first = split * length
    last = tl.minimum(first + length, seen)
    row = (part // PARTS) * ROWS + tl.arange(0, ROWS)
    channel = (part % PARTS) * WIDE + tl.arange(0, WIDE)
    total = tl.zeros((ROWS, WIDE), tl.float32)
    for start in range(first, last, DEEP):
        number = start + tl.arange(0, DEEP)
        there = number < last
        if EXACT:
            line = tl.umulhi(number.to(tl.uint32), by_width.to(tl.uint32)).to(tl.int32)
            image = tl.umulhi(number.to(tl.uint32), by_area.to(tl.uint32)).to(tl.int32)
        else:
            line = number // columns
            image = number // (columns * rows)
        pixel = number + line * row_skip + image * image_skip + base
        x_values = tl.load(x + (pixel + ahead)[None, :] * IN + row[:, None], mask=there[None, :], other=0.0)
        z_places = dz + pixel[:, None] * (BRANCHES * OUT) + (branch * OUT + channel)[None, :]
        total = dot(x_values, tl.load(z_places, mask=there[:, None], other=0.0), total, UPCAST)
    tl.store(dw + ((split * total_taps + weight) * IN + row)[:, None] * OUT + channel[None, :], total)


@on_its_device
def branches(x: Tensor, w: Tensor, layout: tuple[Branch, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve with all branches, in training.

    Args:
        x: (batch, height, width, in_channels), contiguous.
        w: (taps of all branches, in_channels, channels), contiguous, in the dtype of `x`.
        layout: The branches.

    Returns:
        The branches' raw outputs, (batch, height, width, branches * channels), in the dtype of `x`; mean and biased
        variance of each of their channels, fp32.
    """
    out, sums, squares, counts = _branches(x, w, layout, None, None)
    mean, variance = _merge(sums, squares, counts, out.numel() // out.shape[-1])
    return out, mean, variance


@on_its_device
def branches_folded(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor, layout: tuple[Branch, ...]) -> Tensor:
    """Convolve with all branches, then scale, shift and clip at zero; `scale` and `bias` (branches * channels,)."""
    return _branches(x, w, layout, scale, bias)[0]


@on_its_device
def branches_backward(
    grad: Tensor,
    mean_grad: Tensor,
    variance_grad: Tensor,
    pooled_grad: Tensor,
    x: Tensor,
    w: Tensor,
    z: Tensor,
    mean: Tensor,
    layout: tuple[Branch, ...],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of input and weights, from those of raw outputs, their statistics, and the image means.

    Args:
        grad: Of `z`.
        mean_grad: Of its mean, (branches * channels,), fp32.
        variance_grad: Of its variance.
        pooled_grad: Of the mean of each image and channel of `x`, (batch, in_channels), fp32.
        x: As in `branches`.
        w: As in `branches`.
        z: As `branches` returned it.
        mean: As `branches` returned it.
        layout: The branches.

    Returns:
        The gradient of `x` in its dtype, and that of `w`, fp32.
    """
    batch, height, width, channels_in = x.shape
    taps, _, channels = w.shape
    dz = _statistics_backward(grad, z, mean, mean_grad, variance_grad)
    tile = _tile(x.device)
    patch = choose_patch(batch, height, width, layout, tile.rows)
    fit = tile.fit(channels_in)
    table = input_table((batch, height, width), layout, patch, x.device)
    dx = torch.empty_like(x)
    input_kernel[(len(table) * (channels_in // fit.columns),)](
        dz, w, pooled_grad.contiguous(), dx, table, batch, height, width, 1 / (height * width),
        IN=channels_in, OUT=channels, BRANCHES=len(layout), IMAGES=patch.images, ROWS=patch.height,
        COLUMNS=patch.width, WIDE=fit.columns, **_options(fit),
    )  # fmt: skip
    fit = tile.fit(channels)
    seen, exact = tap_table((batch, height, width), layout, x.device)
    rows = _band(tile, channels_in)
    programs = len(seen) * (channels_in // rows) * (channels // fit.columns)
    splits = _splits(programs, batch * height * width, fit, x.device)
    # A tap that is outside for all pixels has no program.
    make = x.new_empty if len(seen) == taps else x.new_zeros
    dw = make((splits, taps, channels_in, channels), dtype=torch.float32)
    weight_kernel[(programs, splits)](
        x, dz, dw, seen, batch, height, width, splits, taps,
        IN=channels_in, OUT=channels, BRANCHES=len(layout), ROWS=rows, WIDE=fit.columns, EXACT=exact, **_options(fit),
    )  # fmt: skip
    return dx, dw.sum(0)


@on_its_device
def project(
    z: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, u: Tensor, image_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise, clip at zero and project, in training.

    Args:
        z: (batch, height, width, in_channels), contiguous.
        mean: What is subtracted, (in_channels,), fp32.
        scale: What the difference is multiplied by.
        bias: What is added.
        u: (out_channels, in_channels), contiguous, in the dtype of `z`.
        image_bias: What is added to the projection, (batch, out_channels), fp32, contiguous.

    Returns:
        (batch, height, width, out_channels) in the dtype of `z`; mean and biased variance of its channels, fp32.
    """
    out, sums, squares, counts = _project(z, (mean, scale, bias), u, image_bias, None)
    mean, variance = _merge(sums, squares, counts, out.numel() // out.shape[-1])
    return out, mean, variance


@on_its_device
def project_folded(y: Tensor, u: Tensor, image_bias: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Project, add, then scale, shift and clip at zero; `scale` and `bias` (out_channels,), fp32."""
    return _project(y, None, u, image_bias, (scale, bias))[0]


@on_its_device
def project_backward(
    grad: Tensor,
    mean_grad: Tensor,
    variance_grad: Tensor,
    z: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    u: Tensor,
    out: Tensor,
    out_mean: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `z`, `scale`, `bias`, `u` and `image_bias` of `project`; all but the first fp32."""
    batch, height, width, channels_in = z.shape
    channels = u.shape[0]
    pixels = batch * height * width
    g = _statistics_backward(grad, out, out_mean, mean_grad, variance_grad)
    tile = _tile(z.device)
    # Half as wide as elsewhere, to leave registers for a tile of z.
    fit = replace(tile, columns=tile.columns // 2).fit(channels_in)
    dz = torch.empty_like(z)
    blocks = triton.cdiv(pixels, fit.rows)
    bias_sums, scale_sums = (z.new_empty((blocks, channels_in), dtype=torch.float32) for _ in range(2))
    project_backward_kernel[(blocks, channels_in // fit.columns)](
        g, u, z, mean, scale, bias, dz, bias_sums, scale_sums, pixels,
        IN=channels_in, OUT=channels, PIXELS=fit.rows, WIDE=fit.columns, **_options(fit),
    )  # fmt: skip
    fit = tile.fit(channels)
    rows = _band(tile, channels_in)
    programs = (channels_in // rows) * (channels // fit.columns)
    splits = _splits(programs, pixels, fit, z.device)
    part = triton.cdiv(triton.cdiv(pixels, splits), fit.depth) * fit.depth
    du = z.new_empty((splits, channels_in, channels), dtype=torch.float32)
    project_weight_kernel[(programs, splits)](
        g, z, mean, scale, bias, du, pixels, part,
        IN=channels_in, OUT=channels, ROWS=rows, WIDE=fit.columns, **_options(fit),
    )  # fmt: skip
    image_grad = g.reshape(batch, -1, channels).sum(1, dtype=torch.float32)
    return dz, scale_sums.sum(0), bias_sums.sum(0), du.sum(0).t().contiguous(), image_grad


@on_its_device
def normalise(values: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return `relu((values - mean) scale + bias)` of channels-last values."""
    channels = values.shape[-1]
    pixels = values.numel() // channels
    out = torch.empty_like(values)
    normalise_kernel[_elementwise_grid(pixels, channels)](
        values, mean, scale, bias, out, pixels, CHANNELS=channels, ROWS=_ROW_BLOCK, COLUMNS=_COLUMN_BLOCK, **OPTIONS
    )
    return out


@on_its_device
def normalise_backward(
    grad: Tensor, values: Tensor, mean: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `values`, `scale` and `bias` of `normalise`; the last two fp32."""
    channels = values.shape[-1]
    pixels = values.numel() // channels
    out = torch.empty_like(values)
    grid = _elementwise_grid(pixels, channels)
    bias_sums, scale_sums = (values.new_empty((grid[0], channels), dtype=torch.float32) for _ in range(2))
    normalise_backward_kernel[grid](
        grad.contiguous(), values, mean, scale, bias, out, bias_sums, scale_sums, pixels,
        CHANNELS=channels, ROWS=_ROW_BLOCK, COLUMNS=_COLUMN_BLOCK, **OPTIONS,
    )  # fmt: skip
    return out, scale_sums.sum(0), bias_sums.sum(0)


def _branches(
    x: Tensor, w: Tensor, layout: tuple[Branch, ...], scale: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, height, width, channels_in = x.shape
    channels = w.shape[2]
    tile = _tile(x.device).fit(channels)
    patch = choose_patch(batch, height, width, layout, tile.rows)
    table, counts = branch_table((batch, height, width), layout, patch, x.device)
    out = x.new_empty(batch, height, width, len(layout) * channels)
    refuse_large(x, out)
    folded = scale is not None
    parts = (0 if folded else len(counts), out.shape[-1])
    sums, squares = (x.new_empty(parts, dtype=torch.float32) for _ in range(2))
    branches_kernel[(len(table) * (channels // tile.columns),)](
        x, w, out, table, sums if scale is None else scale, sums if bias is None else bias, sums, squares,
        batch, height, width,
        IN=channels_in, OUT=channels, BRANCHES=len(layout), IMAGES=patch.images, ROWS=patch.height,
        COLUMNS=patch.width, WIDE=tile.columns, FOLDED=folded, **_options(tile),
    )  # fmt: skip
    return out, sums, squares, counts


def _project(
    z: Tensor,
    normalisation: tuple[Tensor, Tensor, Tensor] | None,
    u: Tensor,
    image_bias: Tensor,
    folded: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project `z`, normalised first by mean, scale and bias, or afterwards by the folded scale and bias."""
    batch, height, width, channels_in = z.shape
    channels = u.shape[0]
    area = height * width
    pixels = batch * area
    tile = _tile(z.device).fit(channels)
    blocks = triton.cdiv(pixels, tile.rows)
    out = z.new_empty(batch, height, width, channels)
    refuse_large(z, out)
    sums, squares = (z.new_empty((0 if folded else blocks, channels), dtype=torch.float32) for _ in range(2))
    project_kernel[(blocks, channels // tile.columns)](
        z, u, image_bias, out, *(normalisation or (z, z, z)), *(folded or (z, z)), sums, squares, pixels, area,
        IN=channels_in, OUT=channels, PIXELS=tile.rows, WIDE=tile.columns, FOLDED=folded is not None,
        ONE_IMAGE=area % tile.rows == 0, **_options(tile),
    )  # fmt: skip
    return out, sums, squares, block_table(pixels, tile.rows, z.device)


def _merge(sums: Tensor, squares: Tensor, counts: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance from the sums, and the squares about their own means, of parts of the pixels."""
    slots, channels = sums.shape
    mean, variance = sums.new_empty(channels), sums.new_empty(channels)
    merge_kernel[(triton.cdiv(channels, _COLUMN_BLOCK),)](
        sums, squares, counts, mean, variance, slots, pixels,
        CHANNELS=channels, SLOTS=_ROW_BLOCK, COLUMNS=_COLUMN_BLOCK, **OPTIONS,
    )  # fmt: skip
    return mean, variance


def _statistics_backward(
    grad: Tensor, values: Tensor, mean: Tensor, mean_grad: Tensor, variance_grad: Tensor
) -> Tensor:
    """Add to the gradient of some values what they receive through their mean and their biased variance."""
    channels = values.shape[-1]
    pixels = values.numel() // channels
    out = torch.empty_like(values)
    statistics_backward_kernel[_elementwise_grid(pixels, channels)](
        grad.contiguous(), values, mean, variance_grad * (2 / pixels), mean_grad / pixels, out, pixels,
        CHANNELS=channels, ROWS=_ROW_BLOCK, COLUMNS=_COLUMN_BLOCK, **OPTIONS,
    )  # fmt: skip
    return out


def _elementwise_grid(pixels: int, channels: int) -> tuple[int, int]:
    return triton.cdiv(pixels, _ROW_BLOCK), channels // _COLUMN_BLOCK


def _band(tile: Tile, channels: int) -> int:
    """Return how many input channels a program of the weights' gradient takes: a divisor of theirs."""
    return min(tile.rows, 64 if channels % 128 else 128)


def _options(tile: Tile) -> dict[str, Any]:
    return {
        "DEEP": tile.depth, "UPCAST": INTERPRETED, "num_warps": tile.warps, "num_stages": tile.stages, **OPTIONS
    }  # fmt: skip


def _splits(programs: int, pixels: int, tile: Tile, device: torch.device) -> int:
    """Return into how many parts a sum over pixels is cut, so that all multiprocessors have some."""
    if INTERPRETED:
        return 2
    wanted = -(-_FEWEST_PROGRAMS * _multiprocessors(device) // programs)
    return max(1, min(wanted, pixels // (4 * tile.depth)))


@lru_cache
def _tile(device: torch.device) -> Tile:
    return INTERPRETER_TILE if INTERPRETED else choose_tile(torch.cuda.get_device_capability(device))


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
