"""The kernels on this machine's GPU: whether they are right, and how fast beside what PyTorch offers.

    python -m tests.benchmarks.kernels --json FILE [--only 3 5] [--write-table FILE] [--dry-run]

It answers, after the kernels were checked (3):

1. How long does cuDNN take for an atrous convolution, rate by rate? If the time is flat, it skips no padding.
2. Which backends of `scaled_dot_product_attention` take keys narrower than values, forward and backward?
3. Are the compiled kernels right, in memory that was filled with NaN, and the same bits every time if asked for?
4. Which tiles and which variants of the kernels are fastest?
5. How fast are the whole operations beside eager PyTorch in channels-last, `torch.compile` and attention of PyTorch
   with keys padded to the width of the values, and how much memory do they need on top of their inputs?

Times are medians with 20 % and 80 % quantiles, in ms, of calls whose inputs lie outside the L2 cache. It needs PyTorch,
Triton and NumPy alone. Where a machine is at hand for minutes, run the questions one by one: 3 before 4 and 5.
"""

import argparse
import contextlib
import json
import platform
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, pad, scaled_dot_product_attention

from kitsattn.config import to_json
from kitsattn.kernels import dispatch
from kitsattn.kernels.aspp.tiles import INTERPRETER_TILE, Patch, branch_table, choose_patch, make_branches
from kitsattn.kernels.aspp.tiles import Tile as AsppTile
from kitsattn.kernels.attention.tiles import AttentionTiles
from kitsattn.kernels.attention.tiles import Tile as AttentionTile
from kitsattn.kernels.measure import (
    copies_past_cache,
    device_name,
    measure_kernels,
    rotated_inputs,
    step,
    times_ms,
    triton_version,
)
from kitsattn.kernels.problems import Inputs, Problem, compare, make_problem, results
from kitsattn.kernels.shapes import AsppShape, AttentionShape

Row = dict[str, Any]
Run = Callable[[Inputs], Tensor]

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
SIZES = (1, 3, 3, 3)
_WIDEST_VARIED = 512
"""Channels of the input up to which variants of the ASPP are tried."""
TARGETS: dict[tuple[str, str, str], tuple[float, float | None]] = {
    ("aspp", "forward", "eager"): (1.4, 1.7),
    ("aspp", "forward", "torch.compile"): (1.25, 1.45),
    ("aspp", "forward + backward", "eager"): (1.5, 1.8),
    ("attention", "forward", "eager"): (4.0, 5.5),
    ("attention", "forward", "default SDPA"): (1.5, 2.5),
    ("attention", "forward", "best padded SDPA"): (1.0, 1.15),
    ("attention", "backward", "eager"): (2.0, None),
    ("attention", "backward", "default SDPA"): (1.5, None),
    ("attention", "backward", "best padded SDPA"): (1.0, None),
}
"""On an H100 in bf16 with 16 images: how many times as fast the kernel must be, and should be."""
MEMORY_TARGET = 0.1
"""What attention's training may need of the memory that eager PyTorch needs."""


@dataclass(frozen=True)
class Scale:
    """What is run: on a GPU the shapes that matter, in a dry run small ones.

    Attributes:
        seconds: How long each thing is timed.
        dtypes: In which the kernels are checked; the first is timed.
        conv: Batch, channels out, maps, channels in and rates of the convolutions.
        tokens: Batch, numbers of tokens, dim and value dim of attention.
        checked: Shapes at which the kernels are checked, the passes in training too.
        aspp: Shapes at which the ASPP is timed.
        targets: Sizes for which there are targets, as `size_of` writes them.
        attention_tiles: For the forward pass, and of keys for the backward pass.
        aspp_tiles: For the branches and their backward pass.
        patches: Of pixels, for the default tile.
        compiler: Backend of `torch.compile`.
    """

    seconds: float
    dtypes: tuple[torch.dtype, ...]
    conv: tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    tokens: tuple[int, tuple[int, ...], int, int]
    checked: tuple[dispatch.Shape, ...]
    aspp: tuple[AsppShape, ...]
    targets: tuple[str, ...]
    attention_tiles: tuple[tuple[AttentionTile, ...], tuple[AttentionTile, ...]]
    aspp_tiles: tuple[AsppTile, ...]
    patches: tuple[Patch, ...]
    compiler: str


def _aspp_shape(size: int, in_channels: int, *rates: int) -> AsppShape:
    return AsppShape(16, size, size, in_channels, 256, 256, SIZES, (1, *rates))


FULL = Scale(
    seconds=0.2,
    dtypes=(torch.bfloat16, torch.float16),
    conv=(16, 256, (32, 64), (512, 2048), (1, 6, 12, 18, 24, 36)),
    tokens=(16, (1024, 4096), 64, 256),
    checked=(
        AttentionShape(2, 77, 70, 64, 256),
        AttentionShape(3, 1000, 250, 64, 256),
        AttentionShape(16, 1024, 1024, 64, 256),
        AttentionShape(16, 1, 33, 64, 256),
        AttentionShape(2, 130, 200, 32, 256),
        AsppShape(3, 13, 11, 256, 256, 256, SIZES, (1, 2, 6, 12)),
        AsppShape(5, 40, 24, 256, 256, 256, SIZES, (1, 6, 12, 36)),
        AsppShape(16, 32, 32, 256, 256, 256, SIZES, (1, 6, 12, 18)),
        AsppShape(3, 9, 17, 128, 64, 128, (1, 3, 3), (1, 9, 20)),
    ),
    aspp=(
        _aspp_shape(32, 512, 6, 12, 18),
        _aspp_shape(64, 512, 12, 24, 36),
        _aspp_shape(64, 512, 6, 12, 18),
        _aspp_shape(32, 2048, 6, 12, 18),
        _aspp_shape(64, 2048, 12, 24, 36),
    ),
    targets=(
        "4096 tokens",
        "32 x 32, 512 channels, rates 6 12 18",
        "32 x 32, 2048 channels, rates 6 12 18",
        "64 x 64, 512 channels, rates 12 24 36",
        "64 x 64, 2048 channels, rates 12 24 36",
    ),
    attention_tiles=(
        (
            AttentionTile(128, 64),
            AttentionTile(128, 64, stages=3),
            AttentionTile(64, 64, stages=3),
            AttentionTile(64, 64, warps=4, stages=3),
            AttentionTile(128, 128),
        ),
        (AttentionTile(32, 128), AttentionTile(64, 64), AttentionTile(32, 64)),
    ),
    aspp_tiles=(
        AsppTile(128, 256, 64),
        AsppTile(128, 256, 64, stages=4),
        AsppTile(128, 128, 64),
        AsppTile(128, 128, 64, stages=4),
    ),
    patches=(Patch(16, 2, 4), Patch(2, 8, 8), Patch(1, 4, 32)),
    compiler="inductor",
)

_SMALL_ASPP = AsppShape(3, 2, 5, 64, 64, 64, (1, 3), (1, 2))
DRY = Scale(
    seconds=0.0,
    dtypes=(torch.float32,),
    conv=(2, 8, (4,), (8,), (1, 3)),
    tokens=(2, (20,), 16, 32),
    checked=(AttentionShape(2, 20, 17, 16, 32), _SMALL_ASPP),
    aspp=(_SMALL_ASPP,),
    targets=("20 tokens", "2 x 5, 64 channels, rates 2"),
    attention_tiles=((AttentionTile(16, 16),), (AttentionTile(16, 32),)),
    aspp_tiles=(INTERPRETER_TILE,),
    patches=(Patch(2, 4, 4),),
    compiler="aot_eager",
)


@dataclass(frozen=True)
class Bench:
    """Where and what is measured; `kernels` tells whether they can run here."""

    device: torch.device
    scale: Scale
    kernels: bool

    @property
    def dtype(self) -> torch.dtype:
        """In which is timed."""
        return self.scale.dtypes[0]

    def time(self, call: Callable[[Inputs], object], sets: Sequence[Inputs]) -> Row:
        """Return median and quantiles of a call, or the error that it ended with."""
        try:
            times = times_ms(call, sets, seconds=self.scale.seconds)
        except Exception as error:  # noqa: BLE001 - whatever a backend or a tile refuses with is the answer
            return {"error": summary(error)}
        quantiles = statistics.quantiles(times, n=5)
        return {"ms": statistics.median(times), "low": quantiles[0], "high": quantiles[-1]}

    def draws(self, make: Callable[[torch.Generator], list[Tensor]]) -> list[list[Tensor]]:
        """Return as many inputs as the L2 cache cannot hold."""
        generator = torch.Generator(self.device).manual_seed(0)
        first = make(generator)
        return [first, *(make(generator) for _ in range(copies_past_cache(first, self.device) - 1))]

    def problem(self, shape: dispatch.Shape, *, training: bool) -> Problem:
        """Return an operation to time."""
        return make_problem(shape, self.device, self.dtype, training=training)

    def peak_mib(self, call: Callable[[Inputs], object], inputs: Inputs) -> float | None:
        """Return the most memory that a call holds on top of its inputs."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call(inputs)
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20


def convolutions(bench: Bench) -> list[Row]:
    """Answer 1: an atrous convolution, rate by rate."""
    _, _, maps, widths, rates = bench.scale.conv
    rows = []
    for size, in_channels in product(maps, widths):
        sets = bench.draws(partial(_conv_inputs, bench, size, in_channels))
        rows += [_convolution(bench, sets, rate) for rate in rates]
    return rows


def _conv_inputs(bench: Bench, size: int, in_channels: int, generator: torch.Generator) -> list[Tensor]:
    batch, channels, *_ = bench.scale.conv
    shapes = ((batch, in_channels, size, size), (channels, in_channels, 3, 3))
    drawn = (torch.randn(shape, generator=generator, device=bench.device).to(bench.dtype) for shape in shapes)
    return [values.contiguous(memory_format=torch.channels_last).requires_grad_() for values in drawn]


def _convolution(bench: Bench, sets: Sequence[Inputs], rate: int) -> Row:
    def forward(inputs: Inputs) -> Tensor:
        return conv2d(inputs[0], inputs[1], padding=rate, dilation=rate)

    def both(inputs: Inputs) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(inputs), inputs, grad)

    x, w = sets[0]
    size = x.shape[-1]
    with torch.no_grad():
        grad = torch.randn_like(forward(sets[0]))
        time = bench.time(forward, sets)
    visible = min(1.0, (1 + 2 * max(0.0, 1 - rate / size)) ** 2 / 9)
    row: Row = {"map": size, "in": x.shape[1], "rate": rate, "visible": visible, **time}
    if "ms" in time:
        row["dense TFLOP/s"] = 2 * x.shape[0] * size**2 * w.numel() / time["ms"] / 1e9
    return row | {"forward + backward": bench.time(both, sets).get("ms")}


def attention_backends(bench: Bench) -> list[Row]:
    """Answer 2: each backend of PyTorch's attention, with keys as they are and padded."""
    _, counts, dim, value_dim = bench.scale.tokens
    rows = []
    for tokens, width in product(counts, (dim, value_dim)):
        sets = bench.draws(partial(_attention_inputs, bench, tokens, width))
        row: Row = {"tokens": tokens, "keys": width, "values": value_dim}
        rows += [row | _backend(bench, sets, name) for name in ("default", *BACKENDS)]
    return rows


def _attention_inputs(bench: Bench, tokens: int, width: int, generator: torch.Generator) -> list[Tensor]:
    batch, _, dim, value_dim = bench.scale.tokens
    widths = ((dim, width), (dim, width), (value_dim, value_dim))
    shapes = [((batch, 1, tokens, narrow), (0, wide - narrow)) for narrow, wide in widths]
    drawn = (pad(torch.randn(shape, generator=generator, device=bench.device), more) for shape, more in shapes)
    return [values.to(bench.dtype).requires_grad_() for values in drawn]


def _backend(bench: Bench, sets: Sequence[Inputs], name: str) -> Row:
    scale = bench.scale.tokens[2] ** -0.5

    def forward(inputs: Inputs) -> Tensor:
        q, k, v = inputs
        return scaled_dot_product_attention(q, k, v, scale=scale)

    def both(inputs: Inputs) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(inputs), inputs, inputs[2])

    only = sdpa_kernel(BACKENDS[name]) if name in BACKENDS else contextlib.nullcontext()
    with warnings.catch_warnings(record=True) as told, only:
        warnings.simplefilter("always")
        with torch.no_grad():
            time = bench.time(forward, sets)
        training = bench.time(both, sets)
    if name not in BACKENDS:
        name = f"default: {_default_backend(sets[0])}"
    reasons = list(dict.fromkeys(str(warning.message).splitlines()[0] for warning in told))
    row: Row = {"backend": name, **time, "forward + backward": training.get("ms"), "reasons": reasons}
    return row | ({"error": training["error"]} if "error" in training and "error" not in row else {})


def correctness(bench: Bench) -> list[Row]:
    """Answer 3: the kernels' results, in memory of NaN and with deterministic algorithms."""
    rows = []
    for shape, dtype, training in product(bench.scale.checked, bench.scale.dtypes, (False, True)):
        problem = make_problem(shape, bench.device, dtype, training=training)
        row: Row = {"operation": shape.operation, "size": size_of(shape), "shape": asdict(shape), "dtype": _name(dtype)}
        for deterministic in (False, True):
            row |= {"training": training, "deterministic": deterministic}
            try:
                rows.append(row | _check(problem, bench.device, deterministic=deterministic))
            except Exception as error:  # noqa: BLE001 - one that cannot run is an answer, and the others are wanted
                rows.append(row | {"right": False, "error": summary(error)})
    return rows


def _check(problem: Problem, device: torch.device, *, deterministic: bool) -> Row:
    def poisoned(inputs: Inputs) -> Tensor:
        fill_free_memory(device)
        return problem.fused(inputs)

    with _deterministic(deterministic):
        found = compare(replace(problem, fused=poisoned), device, seed=torch.seed() % 2**31)
        worst = max(found, key=lambda result: result.error / result.tolerance if result.right else float("inf"))
        row: Row = {
            "right": worst.right,
            "worst": worst.name,
            "relative error": worst.error,
            "tolerance": worst.tolerance,
        }
        if deterministic:
            inputs = problem.draw(torch.Generator(device).manual_seed(0))
            with torch.no_grad():
                grad = torch.randn_like(problem.fused(inputs))
            first, again = (results(problem, problem.fused, inputs, grad) for _ in range(2))
            row["same bits"] = all(map(torch.equal, first, again))
            row["right"] = row["right"] and row["same bits"]
    return row


def variants(bench: Bench) -> list[Row]:
    """Answer 4: tiles, the order of tiles, and both backward passes of attention."""
    return _attention_variants(bench) + _aspp_variants(bench)


def _attention_variants(bench: Bench) -> list[Row]:
    from kitsattn.kernels.attention import kernels

    batch, counts, dim, value_dim = bench.scale.tokens
    scale = dim**-0.5
    forward_tiles, key_tiles = bench.scale.attention_tiles
    rows = []
    for tokens in counts:
        problem = bench.problem(AttentionShape(batch, tokens, tokens, dim, value_dim), training=False)
        sets = [[values.detach() for values in inputs] for inputs in rotated_inputs(problem, bench.device)]
        usual = kernels._tiles(sets[0][0], tokens)
        q, k, v, residual, gate = sets[0]
        _, attended, lse = kernels.forward(q, k, v, residual, gate, scale, save=True)

        def backward(
            inputs: Inputs, *, deterministic: bool, attended: Tensor = attended, lse: Tensor = lse, gate: Tensor = gate
        ) -> object:
            q, k, v, grad, _ = inputs
            return kernels.backward(grad, q, k, v, attended, lse, gate, scale, deterministic=deterministic)

        calls: list[tuple[str, str, AttentionTiles, Callable[[Inputs], object]]] = [
            ("forward", f"{tile}", replace(usual, forward=tile), problem.fused) for tile in forward_tiles
        ]
        for tile in key_tiles:
            tiles = replace(usual, keys=tile, one_pass=tile)
            calls.append(("backward", f"two passes, keys {tile}", tiles, partial(backward, deterministic=True)))
            calls.append(("backward", f"one pass, atomic, {tile}", tiles, partial(backward, deterministic=False)))
        for program, variant, tiles, call in calls:
            with patch.object(kernels, "_tiles", partial(_constant, tiles)):
                time = bench.time(call, sets)
            rows.append(
                {"operation": "attention", "size": f"{tokens} tokens", "program": program, "variant": variant, **time}
            )
    return rows


def _aspp_variants(bench: Bench) -> list[Row]:
    from kitsattn.kernels.aspp import kernels

    rows = []
    for shape in (shape for shape in bench.scale.aspp if shape.in_channels <= _WIDEST_VARIED):
        problem = bench.problem(shape, training=False)
        layout = tuple(make_branches(shape.sizes, shape.rates))
        sets = rotated_inputs(problem, bench.device)
        images = [[inputs[0].detach().permute(0, 2, 3, 1).contiguous()] for inputs in sets]
        weights = [values.detach().to(bench.dtype) for values in sets[0][1 : len(layout) + 1]]
        w = torch.cat([kernel.permute(2, 3, 1, 0).flatten(0, 1) for kernel in weights])
        z, mean, ones = kernels.branches(images[0][0], w, layout)
        pooled = torch.zeros(shape.batch, shape.in_channels, device=bench.device)
        forward = partial(_call_branches, kernels.branches_folded, (w, ones, mean, layout))
        backward = partial(_call_backward, kernels.branches_backward, (z, mean, mean, pooled), (w, z, mean, layout))
        usual = kernels._tile(bench.device)
        extent = (shape.batch, shape.height, shape.width)
        table, pixels = branch_table(extent, layout, choose_patch(*extent, layout, usual.rows), bench.device)
        order = (table[:, 0].long() * len(pixels) + table[:, 10]).argsort()
        calls: list[tuple[str, str, str, object, Callable[[Inputs], object]]] = []
        for tile in bench.scale.aspp_tiles:
            calls.append(("branches", f"{tile}", "_tile", tile, forward))
            calls.append(("branches, backward", f"{tile}", "_tile", tile, backward))
        calls += [("branches", f"{shape}", "choose_patch", shape, forward) for shape in bench.scale.patches]
        calls.append(("branches", "longest tiles first", "branch_table", (table, pixels), forward))
        calls.append(("branches", "tiles as they lie", "branch_table", (table[order].contiguous(), pixels), forward))
        for program, variant, name, value, call in calls:
            with patch.object(kernels, name, partial(_constant, value)):
                time = bench.time(call, images)
            rows.append({"operation": "aspp", "size": size_of(shape), "program": program, "variant": variant, **time})
    return rows


def _call_branches(program: Callable[..., Tensor], others: Sequence[object], inputs: Inputs) -> Tensor:
    return program(inputs[0], *others)


def _call_backward(program: Callable[..., object], grads: Inputs, others: Sequence[object], inputs: Inputs) -> object:
    return program(*grads, inputs[0], *others)


def _constant(value: object, *_: object) -> object:
    return value


def operations(bench: Bench) -> list[Row]:
    """Answer 5: the whole operations beside what PyTorch offers."""
    rows = []
    batch, counts, dim, value_dim = bench.scale.tokens
    for tokens in counts:
        shape = AttentionShape(batch, tokens, tokens, dim, value_dim)
        for training in (False, True):
            problem = bench.problem(shape, training=training)
            rows += _contest(
                bench,
                problem,
                {"eager": _eager_attention(problem), "default SDPA": problem.reference, **_padded(shape)},
            )
    for aspp in bench.scale.aspp:
        for training in (False, True):
            problem = bench.problem(aspp, training=training)
            rows += _contest(bench, problem, {"eager": problem.reference})
    return rows


def _contest(bench: Bench, problem: Problem, rivals: dict[str, Run]) -> list[Row]:
    torch.compiler.reset()
    compiled = torch.compile(rivals["eager"], dynamic=False, backend=bench.scale.compiler)
    paths = ({"kernel": problem.fused} if bench.kernels else {}) | rivals | {"torch.compile": compiled}
    sets = rotated_inputs(problem, bench.device)
    row: Row = {"operation": problem.shape.operation, "size": size_of(problem.shape)}
    rows = []
    for name, path in paths.items():
        row |= {"path": name, "pass": "forward + backward" if problem.training else "forward"}
        try:
            # The buffers of what is compiled are gone after one backward pass.
            rows += [row | times for times in _contender(bench, problem, path, sets, again=path is not compiled)]
        except Exception as error:  # noqa: BLE001 - a backend that refuses is an answer
            rows.append(row | {"error": summary(error)})
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _contender(bench: Bench, problem: Problem, path: Run, sets: Sequence[Inputs], *, again: bool) -> list[Row]:
    call = step(problem, path, sets[0])
    time = bench.time(call, sets)
    if "error" in time:
        return [time]
    rows: list[Row] = [time | {"peak MiB": bench.peak_mib(call, sets[0])}]
    if problem.training and again:
        rows.append({"pass": "backward", **bench.time(*_backward(problem, path, sets[:2]))})
    return rows


def _backward(
    problem: Problem, path: Run, sets: Sequence[Inputs]
) -> tuple[Callable[[Inputs], object], list[list[Tensor]]]:
    """Return what is timed, and the outputs, each with its inputs, that it takes."""
    outs = [[path(inputs), *inputs] for inputs in sets]
    grad = torch.randn_like(outs[0][0])

    def backward(inputs: Inputs) -> tuple[Tensor, ...]:
        return torch.autograd.grad(inputs[0], inputs[1 : 1 + len(problem.names)], grad, retain_graph=True)

    return backward, outs


def _eager_attention(problem: Problem) -> Run:
    scale = problem.shape.dim**-0.5 if isinstance(problem.shape, AttentionShape) else 1.0
    half = problem.dtype != torch.float32

    def attend(inputs: Inputs) -> Tensor:
        q, k, v, residual, gate = inputs
        with torch.autocast(q.device.type, problem.dtype if half else None, enabled=half):
            weights = (q @ k.mT * scale).softmax(-1)
            return residual + (gate * (weights @ v)).to(residual.dtype)

    return attend


def _padded(shape: AttentionShape) -> dict[str, Run]:
    def attend(inputs: Inputs, backend: SDPBackend) -> Tensor:
        q, k, v, residual, gate = inputs
        q, k = (pad(values, (0, shape.value_dim - shape.dim)).unsqueeze(1) for values in (q, k))
        with sdpa_kernel(backend):
            average = scaled_dot_product_attention(q, k, v.unsqueeze(1), scale=shape.dim**-0.5).squeeze(1)
        return residual + (gate * average).to(residual.dtype)

    return {f"padded, {name}": partial(attend, backend=backend) for name, backend in BACKENDS.items()}


def ratios(rows: list[Row], scale: Scale) -> list[Row]:
    """Return how many times as fast as each rival the kernel is, beside the targets."""
    found = []
    for ours in (row for row in rows if row["path"] == "kernel" and "ms" in row):
        alike = [
            row for row in rows if "ms" in row and all(row[key] == ours[key] for key in ("operation", "size", "pass"))
        ]
        rivals = {row["path"]: row for row in alike if row["path"] != "kernel"}
        padded = [row for name, row in rivals.items() if name.startswith("padded")]
        if padded:
            rivals["best padded SDPA"] = min(padded, key=lambda row: row["ms"])
        targeted = ours["size"] in scale.targets
        for name, rival in rivals.items():
            must, goal = (
                TARGETS.get((ours["operation"], ours["pass"], name), (None, None)) if targeted else (None, None)
            )
            ratio = rival["ms"] / ours["ms"]
            row = {"operation": ours["operation"], "size": ours["size"], "pass": ours["pass"], "rival": name}
            row |= {"kernel ms": ours["ms"], "rival ms": rival["ms"], "ratio": ratio, "target": must, "goal": goal}
            row["met"] = None if must is None else "yes" if ratio >= must else "NO"
            if ours.get("peak MiB") and rival.get("peak MiB"):
                row["memory"] = ours["peak MiB"] / rival["peak MiB"]
            if (ours["operation"], ours["pass"], name) == ("attention", "forward + backward", "eager") and targeted:
                row |= {
                    "target": f"memory {MEMORY_TARGET}",
                    "met": "yes" if row.get("memory", 1) <= MEMORY_TARGET else "NO",
                }
            found.append(row)
    return found


QUESTIONS: dict[int, tuple[str, Callable[[Bench], list[Row]]]] = {
    3: ("Are the compiled kernels right?", correctness),
    1: ("How long does cuDNN take, rate by rate?", convolutions),
    2: ("Which backends take keys narrower than values?", attention_backends),
    4: ("Which tiles and variants are fastest?", variants),
    5: ("How fast are the whole operations?", operations),
}
"""In the order in which they are answered: what is wrong is not timed."""


def main() -> int:
    """Answer the questions; return 1 if a kernel is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where everything that was measured is written")
    parser.add_argument(
        "--only", type=int, nargs="*", choices=sorted(QUESTIONS), help="which questions; none: no number"
    )
    parser.add_argument("--write-table", type=Path, metavar="FILE", help="measure the rows that dispatch goes by, too")
    parser.add_argument("--dry-run", action="store_true", help="run every step on the CPU, small")
    arguments = parser.parse_args()
    bench = _bench(dry=arguments.dry_run)
    report: Row = {"machine": machine(bench), "dry_run": arguments.dry_run, "answers": {}}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    asked = QUESTIONS if arguments.only is None else arguments.only
    right = True
    for number in (number for number in QUESTIONS if number in asked):
        title, answer = QUESTIONS[number]
        needs_kernels = answer in {correctness, variants}
        if (needs_kernels and not bench.kernels) or (not right and answer in {variants, operations}):
            print(f"\n{number}. {title}\nskipped: {'no kernel can run here' if right else 'a kernel is wrong'}")
            continue
        rows = answer(bench)
        report["answers"][str(number)] = rows
        right = right and all(row["right"] for row in rows if "right" in row)
        show(f"{number}. {title}", rows)
        if answer is operations:
            report["ratios"] = ratios(rows, bench.scale)
            show("How many times as fast as its rivals the kernel is", report["ratios"])
        _write(arguments.json, report)
    if arguments.write_table and bench.kernels and right:
        write_table(arguments.write_table, bench)
    if arguments.dry_run:
        print("\nThis was a dry run: its figures mean nothing.")
    return 0 if right else 1


def _bench(*, dry: bool) -> Bench:
    if dry:
        kernels = dispatch.interpreting() and not dispatch.triton_missing()
        if not kernels:
            print(
                "The kernels are left out, only the reference runs: TRITON_INTERPRET=1 is not set, or no Triton there."
            )
        return Bench(torch.device("cpu"), DRY, kernels)
    if not torch.cuda.is_available() or dispatch.interpreting():
        msg = "this measures a CUDA GPU, with TRITON_INTERPRET unset: on another machine use --dry-run"
        raise SystemExit(msg)
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda", torch.cuda.current_device())
    return Bench(device, FULL, torch.cuda.get_device_capability(device) >= dispatch.LEAST_CAPABILITY)


def machine(bench: Bench) -> Row:
    """Return what the figures depend on."""
    return {
        "gpu": device_name(bench.device),
        "torch": torch.__version__,
        "triton": None if dispatch.triton_missing() else triton_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "dtype": _name(bench.dtype),
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_table(path: Path, bench: Bench) -> None:
    """Measure the rows that dispatch goes by, and put them in the place of this GPU's in a table."""
    others = [row for row in dispatch.read_table(path) if row.gpu != device_name(bench.device)]
    rows = measure_kernels(bench.device, shapes=None if bench.device.type == "cuda" else bench.scale.checked)
    dispatch.write_table(path, others + rows)
    show(f"Rows in {path}", [{**to_json(row), "ratio": row.reference_ms / row.fused_ms} for row in rows])


def show(title: str, rows: list[Row]) -> None:
    """Print rows as a table; what is long stands in the JSON file alone."""
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in {"shape", "reasons"}))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(path: Path | None, report: Row) -> None:
    """Write what there is so far, so that it is there if the time runs out."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")


def size_of(shape: dispatch.Shape) -> str:
    """Return what tells a shape from the others, in words."""
    if isinstance(shape, AttentionShape):
        return f"{shape.queries} tokens"
    rates = " ".join(map(str, shape.rates[1:]))
    return f"{shape.height} x {shape.width}, {shape.in_channels} channels, rates {rates}"


def summary(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:100]


def fill_free_memory(device: torch.device) -> None:
    """Fill what PyTorch will hand out next with NaN; on a CPU deterministic mode does it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # Small tensors come from a pool of their own.
        blocks = [torch.full((elements,), torch.nan, device=device) for elements in [2**17] * 128 + [2**28]]
        del blocks


@contextlib.contextmanager
def _deterministic(flag: bool) -> Iterator[None]:  # noqa: FBT001
    """Ask for the same bits every time; PyTorch then also fills the memory it hands out with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operations of the reference that cannot
        torch.use_deterministic_algorithms(flag, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _default_backend(inputs: Inputs) -> str:
    # PyTorch has no public name for its choice; where this one is gone, the answer lacks it.
    try:
        q, k, v = inputs
        number = torch._fused_sdp_choice(q, k, v)
    except Exception as error:  # noqa: BLE001 - see above
        return summary(error)
    return next((name for name, backend in BACKENDS.items() if backend.value == number), str(number))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    raise SystemExit(main())
