"""The kernels against the reference on this machine: first whether they are right, then which is faster at a shape.

`kitsattn doctor` runs `self_test`, `kitsattn doctor --measure` runs `measure_kernels`, and `dispatch` goes by the rows
it returns. Both call the two paths themselves: what is measured is not what was chosen before.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from statistics import median

import torch
from torch import Tensor

from kitsattn.errors import KitsattnError
from kitsattn.jobs import Progress, silent
from kitsattn.kernels import dispatch
from kitsattn.kernels.dispatch import Measurement, Shape
from kitsattn.kernels.problems import Inputs, Problem, compare, make_problem
from kitsattn.kernels.shapes import AsppShape, AttentionShape

_SECONDS = 0.2
"""How long each path is timed, after as long a warm-up."""
_FEWEST, _MOST = 3, 200
"""Calls that are timed."""
_MOST_COPIES = 256

_log = logging.getLogger(__name__)


def self_test(device: torch.device) -> list[tuple[str, float, float]]:
    """Run every kernel on a small, odd shape; the first time its programs are compiled, which takes longer.

    Returns:
        For each operation and pass its name, the relative error against the reference and the tolerance of whichever
        result comes closest to its tolerance, or exceeds it most.

    Raises:
        KitsattnError: If the kernels cannot run on the device.
    """
    require_kernels(device)
    dtype = measured_dtype(device)
    channels = 256 if device.type == "cuda" else 64  # the interpreter takes its time
    rows = []
    for shape in (
        AttentionShape(2, 77, 70, 64, channels),
        AsppShape(3, 13, 11, channels, channels, channels, (1, 3, 3, 3), (1, 2, 6, 12)),
    ):
        inference = compare(make_problem(shape, device, dtype, training=False), device)
        forward, *backward = compare(make_problem(shape, device, dtype, training=True), device)
        for part, results in (("inference", inference), ("training", [forward]), ("gradients", backward)):
            worst = max(results, key=lambda result: _excess(result.error, result.tolerance))
            rows.append((f"{shape.operation} {part}", worst.error, worst.tolerance))
    return rows


def measured_shapes(*, quick: bool = False) -> list[Shape]:
    """Return the shapes that are measured; `quick` keeps those of the networks here with 512 x 512 slices."""
    batches = (4, 16) if quick else (1, 4, 16)
    attention = [(1024, 64)] if quick else [(tokens, dim) for tokens in (256, 1024, 4096) for dim in (64, 32)]
    rates = [(16, (6, 12, 18)), (32, (6, 12, 18)), (64, (6, 12, 18)), (64, (12, 24, 36))]
    shapes: list[Shape] = [
        AttentionShape(batch, tokens, tokens, dim, 256) for tokens, dim in attention for batch in batches
    ]
    shapes += [
        AsppShape(batch, size, size, in_channels, 256, 256, (1, 3, 3, 3), (1, *dilations))
        for in_channels in (512, 2048)
        for size, dilations in (rates[1:2] if quick else rates)
        for batch in batches
    ]
    return shapes


def measure_kernels(
    device: torch.device,
    *,
    quick: bool = False,
    shapes: Iterable[Shape] | None = None,
    progress: Progress = silent,
) -> list[Measurement]:
    """Check the kernels and time them against the reference, shape by shape; it takes minutes.

    Shapes that do not fit the device's memory are left out, and so is training with one image where there is none.

    Args:
        device: A CUDA device; any where Triton interprets, but the times then mean nothing.
        quick: Whether to measure only the most usual shapes.
        shapes: What to measure instead of `measured_shapes`.
        progress: Called after each shape and pass.

    Returns:
        One row a shape and pass.

    Raises:
        KitsattnError: If the kernels cannot run on the device, or one gives a wrong result.
    """
    require_kernels(device)
    dtype = measured_dtype(device)
    chosen = measured_shapes(quick=quick) if shapes is None else shapes
    # One image has one value a channel behind the ASPP's pooling, which cannot be normalised by itself.
    calls = [
        (shape, training)
        for shape in chosen
        for training in (False, True)
        if not (training and shape.operation == "aspp" and shape.batch == 1)
    ]
    rows = []
    for done, (shape, training) in enumerate(calls, start=1):
        try:
            rows.append(_measure(make_problem(shape, device, dtype, training=training), device))
        except torch.OutOfMemoryError:
            _log.info("%s %s does not fit the memory of the GPU: left out", shape.operation, asdict(shape))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        progress("kernels", done, len(calls))
    return rows


def _measure(problem: Problem, device: torch.device) -> Measurement:
    wrong = [result for result in compare(problem, device) if not result.right]
    if wrong:
        msg = (
            f"the kernel of {problem.shape.operation} is wrong on {device_name(device)} at {asdict(problem.shape)}: "
            f"{wrong[0].name} is off by {wrong[0].error:.1e}, more than {wrong[0].tolerance:.1e}; "
            f"set {dispatch.VARIABLE}=reference and report it"
        )
        raise KitsattnError(msg)
    sets = rotated_inputs(problem, device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        fused_ms = median(times_ms(step(problem, problem.fused, sets[0]), sets))
        reference_ms = median(times_ms(step(problem, problem.reference, sets[0]), sets))
    return Measurement(
        gpu=device_name(device),
        operation=problem.shape.operation,
        shape=asdict(problem.shape),
        dtype=str(problem.dtype).removeprefix("torch."),
        training=problem.training,
        fused_ms=fused_ms,
        reference_ms=reference_ms,
        torch=torch.__version__,
        triton=triton_version(),
        date=datetime.now(UTC).date().isoformat(),
    )


def require_kernels(device: torch.device) -> None:
    """Refuse a device on which no kernel can run.

    Raises:
        KitsattnError: With what is missing.
    """
    if dispatch.triton_missing():
        msg = "Triton is not installed, so there is no kernel to run: pip install 'kitsattn[gpu]'"
    elif dispatch.interpreting():
        if device.type == "cpu":
            return
        msg = "TRITON_INTERPRET=1 is set, so Triton would run the kernels on the CPU: unset it"
    elif device.type != "cuda":
        msg = f"the device is {device.type}, and the kernels run on CUDA: there is nothing to measure here"
    elif torch.cuda.get_device_capability(device) < dispatch.LEAST_CAPABILITY:
        msg = (
            f"{device_name(device)} has no tensor cores that Triton can use: the reference is taken, nothing to measure"
        )
    else:
        return
    raise KitsattnError(msg)


def measured_dtype(device: torch.device) -> torch.dtype:
    """Return bf16, or fp16 where the device has none; float32 where Triton interprets, whose bf16 is not a GPU's."""
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def device_name(device: torch.device) -> str:
    """Return the name of a GPU as PyTorch gives it, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def triton_version() -> str:
    """Return the version of Triton that is installed."""
    import triton  # noqa: PLC0415 - Triton is imported when a program is launched

    return str(triton.__version__)


def rotated_inputs(problem: Problem, device: torch.device) -> list[list[Tensor]]:
    """Return inputs that differ in their activations, so many that the L2 cache holds none when its turn comes."""
    generator = torch.Generator(device).manual_seed(0)
    first = problem.draw(generator)
    activations = problem.activations(generator)
    parameters = first[len(activations) :]
    copies = copies_past_cache(activations, device)
    others = [[values.requires_grad_() for values in problem.activations(generator)] for _ in range(copies - 1)]
    return [first, *(other + parameters for other in others)]


def copies_past_cache(inputs: Inputs, device: torch.device) -> int:
    """Return how many copies of some inputs are twice as large as the L2 cache of the device; two at least."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    size = sum(values.numel() * values.element_size() for values in inputs)
    return min(max(2, math.ceil(2 * cache / size)), _MOST_COPIES)


def step(
    problem: Problem, path: Callable[[Inputs], Tensor], example: Inputs
) -> Callable[[Inputs], Tensor | tuple[Tensor, ...]]:
    """Return what is timed: the forward pass without gradients, or in training forward and backward pass."""

    def infer(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return path(inputs)

    if not problem.training:
        return infer
    with torch.no_grad():
        grad = torch.randn_like(problem.reference(example))

    def train(inputs: Inputs) -> tuple[Tensor, ...]:
        return torch.autograd.grad(path(inputs), inputs[: len(problem.names)], grad)

    return train


def times_ms(call: Callable[[Inputs], object], sets: Sequence[Inputs], *, seconds: float = _SECONDS) -> list[float]:
    """Return how long each call took, in ms, the sets of inputs in turn.

    Calls follow each other without waiting, as in a network: where the host is slower than the GPU, its time counts.

    Args:
        call: What is timed.
        sets: Its inputs.
        seconds: How long to repeat it, after as long a warm-up.
    """
    timer = _times_on_gpu if sets[0][0].is_cuda else _times_on_host
    _, once = timer(call, sets, 2)  # the first compiles, and lets cuDNN try its algorithms
    repeats = min(max(_FEWEST, math.ceil(1000 * seconds / once)), _MOST)
    timer(call, sets, repeats)
    return timer(call, sets, repeats)


def _times_on_gpu(call: Callable[[Inputs], object], sets: Sequence[Inputs], repeats: int) -> list[float]:
    device = sets[0][0].device
    with torch.cuda.device(device):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * repeats)]
        for number in range(repeats):
            events[2 * number].record()
            call(sets[number % len(sets)])
            events[2 * number + 1].record()
        torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in zip(events[::2], events[1::2], strict=True)]


def _times_on_host(call: Callable[[Inputs], object], sets: Sequence[Inputs], repeats: int) -> list[float]:
    times = []
    for number in range(repeats):
        start = time.perf_counter()
        call(sets[number % len(sets)])
        times.append(1000 * (time.perf_counter() - start))
    return times


def _excess(error: float, tolerance: float) -> float:
    return math.inf if math.isnan(error) else error / tolerance
