"""The operations at a shape as the blocks call them: inputs, both paths, and how far apart their results are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from kitsattn.kernels.aspp import BatchNormParameters
from kitsattn.kernels.aspp import reference as aspp_reference
from kitsattn.kernels.aspp.fused import fused_aspp
from kitsattn.kernels.attention import reference as attention_reference
from kitsattn.kernels.attention.fused import fused_attention
from kitsattn.kernels.dispatch import Shape
from kitsattn.kernels.shapes import AsppShape, AttentionShape

Inputs = Sequence[Tensor]

TOLERANCES = {torch.float32: 2e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative errors that rounding explains: some units in the last place of half precision; in float32 what the pooled
branch, normalised over a few images, makes of one."""
_TIMES = 3
"""How many times the error of the reference in the same format is allowed, too. Near zero, rounding decides whether a
value passes the ReLU and has a gradient: a few such values make most of a gradient's error, in either path others."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One operation at one shape, as the blocks call it in mixed precision.

    Attributes:
        shape: Its sizes.
        training: Whether gradients are wanted.
        dtype: In which products are computed.
        names: Of the inputs that have gradients; inputs behind them have none.
        activations: Draws the inputs that are new in every call, the first ones.
        parameters: Draws the others, the parameters and running statistics.
        fused: The kernel's path.
        reference: The definition's path, with autocast where the activations are in half precision.
    """

    shape: Shape
    training: bool
    dtype: torch.dtype
    names: tuple[str, ...]
    activations: Callable[[torch.Generator], list[Tensor]]
    parameters: Callable[[torch.Generator], list[Tensor]]
    fused: Callable[[Inputs], Tensor]
    reference: Callable[[Inputs], Tensor]

    def draw(self, generator: torch.Generator) -> list[Tensor]:
        """Return random inputs; those with a name take gradients."""
        inputs = self.activations(generator) + self.parameters(generator)
        return [values.requires_grad_(number < len(self.names)) for number, values in enumerate(inputs)]


@dataclass(frozen=True)
class Comparison:
    """How far a kernel's result is from the reference, computed in a wider format.

    Attributes:
        name: `output`, or which gradient.
        error: Norm of the difference divided by the norm of the reference's result.
        tolerance: What rounding may amount to.
    """

    name: str
    error: float
    tolerance: float

    @property
    def right(self) -> bool:
        """Whether the kernel is right; one that is not a number is not."""
        return self.error <= self.tolerance


def make_problem(shape: Shape, device: torch.device, dtype: torch.dtype, *, training: bool) -> Problem:
    """Return the operation that has this shape, with inputs on a device."""
    make = _attention_problem if isinstance(shape, AttentionShape) else _aspp_problem
    return make(shape, device, dtype, training)  # type: ignore[arg-type]  # each takes its own shape


def compare(problem: Problem, device: torch.device, seed: int = 0) -> list[Comparison]:
    """Return how far the kernel's output, and in training each gradient, is from the reference's.

    The truth is the reference in float32 without TF32, or in float64 where the products are in float32.
    """
    generator = torch.Generator(device).manual_seed(seed)
    inputs = problem.draw(generator)
    wide = torch.float64 if problem.dtype == torch.float32 else torch.float32
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = [values.to(wide) for values in inputs]
        with torch.no_grad():
            # A gradient like the output: with noise alone, the one of attention's gate would cancel out.
            grad = problem.reference(exact)
            noise = torch.randn(grad.shape, generator=generator, dtype=wide, device=device)
            grad = (grad + noise).to(problem.dtype)
        wanted = results(problem, problem.reference, exact, grad.to(wide))
    usual = results(problem, problem.reference, inputs, grad)
    got = results(problem, problem.fused, inputs, grad)
    names = ("output", *(f"gradient of {name}" for name in problem.names))
    rounding = [relative_error(other, truth) for other, truth in zip(usual, wanted, strict=True)]
    typical = [0.0] + [median(rounding[1:])] * (len(rounding) - 1) if problem.training else [0.0]
    return [
        Comparison(name, relative_error(mine, truth), max(TOLERANCES[problem.dtype], _TIMES * max(own, others)))
        for name, mine, truth, own, others in zip(names, got, wanted, rounding, typical, strict=False)
    ]


def results(problem: Problem, path: Callable[[Inputs], Tensor], inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """Return the output of one of the problem's paths, and in training the gradient of each named input."""
    if not problem.training:
        with torch.no_grad():
            return [path(inputs)]
    leaves = [values.detach().requires_grad_(number < len(problem.names)) for number, values in enumerate(inputs)]
    out = path(leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves[: len(problem.names)], grad.to(out.dtype))]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference divided by the norm of `wanted`."""
    difference, whole = (
        torch.linalg.vector_norm(values, dtype=torch.float64) for values in (got.to(wanted.dtype) - wanted, wanted)
    )
    return float(difference / whole)


def _attention_problem(shape: AttentionShape, device: torch.device, dtype: torch.dtype, training: bool) -> Problem:  # noqa: FBT001
    sizes = (shape.dim, shape.dim, shape.value_dim)

    def activations(generator: torch.Generator) -> list[Tensor]:
        draw = partial(torch.randn, generator=generator, device=device)
        q, k, v = draw(shape.batch, max(shape.queries, shape.keys), sum(sizes)).to(dtype).split(sizes, dim=2)
        residual = draw(shape.batch, shape.queries, shape.value_dim).to(dtype)
        return [values.detach() for values in (q[:, : shape.queries], k[:, : shape.keys], v[:, : shape.keys], residual)]

    def parameters(generator: torch.Generator) -> list[Tensor]:
        del generator
        # An average over many keys is small: with this gate it is as large as the residual, which would hide it.
        return [torch.full((1,), shape.keys**0.5, device=device)]

    def run(operation: Callable[..., Tensor], inputs: Inputs) -> Tensor:
        q, k, v, residual, gate = inputs
        return operation(q, k, v, scale=shape.dim**-0.5, residual=residual, gate=gate)

    return Problem(
        shape=shape,
        training=training,
        dtype=dtype,
        names=("q", "k", "v", "residual", "gate"),
        activations=activations,
        parameters=parameters,
        fused=partial(run, partial(fused_attention, save=training)),
        reference=partial(_autocast, partial(run, attention_reference.attention)),
    )


def _aspp_problem(shape: AsppShape, device: torch.device, dtype: torch.dtype, training: bool) -> Problem:  # noqa: FBT001
    branches, norms = len(shape.sizes), len(shape.sizes) + 2
    weights = [(shape.channels, shape.in_channels, size, size) for size in (*shape.sizes, 1)]
    weights.append((shape.out_channels, shape.channels * (branches + 1), 1, 1))
    widths = [shape.channels] * (norms - 1) + [shape.out_channels]

    def activations(generator: torch.Generator) -> list[Tensor]:
        x = torch.randn(
            shape.batch, shape.in_channels, shape.height, shape.width, generator=generator, device=device
        ).to(dtype)
        return [x.contiguous(memory_format=torch.channels_last)]

    def parameters(generator: torch.Generator) -> list[Tensor]:
        draw = partial(torch.randn, generator=generator, device=device)
        kernels = [draw(size) * math.prod(size[1:]) ** -0.5 for size in weights]
        scales, shifts, means = ([start + 0.2 * draw(width) for width in widths] for start in (1.0, 0.0, 0.0))
        variances = [0.5 + draw(width).square() for width in widths]
        kernels = [kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels]
        return kernels + scales + shifts + means + variances

    def run(operation: Callable[..., tuple[Tensor, object]], inputs: Inputs) -> Tensor:
        x, *kernels = inputs[: branches + 3]
        scales, shifts, means, variances = (inputs[branches + 3 + part * norms :][:norms] for part in range(4))
        vectors = zip(scales, shifts, means, variances, strict=True)
        parameters = [BatchNormParameters(*four, 1e-5) for four in vectors]
        return operation(x, kernels[:-2], *kernels[-2:], parameters, rates=shape.rates, training=training)[0]

    return Problem(
        shape=shape,
        training=training,
        dtype=dtype,
        names=(
            "x",
            *(f"branch {number}" for number in range(1, branches + 1)),
            "pooling",
            "projection",
            *(f"{kind} {number}" for kind in ("scale", "shift") for number in range(1, norms + 1)),
        ),
        activations=activations,
        parameters=parameters,
        fused=partial(run, fused_aspp),
        reference=partial(_autocast, partial(run, aspp_reference.aspp)),
    )


def _autocast(path: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    # The context is entered in every call: it keeps casts of parameters until it is left.
    dtype = inputs[0].dtype
    half = dtype in {torch.float16, torch.bfloat16}
    with torch.autocast(inputs[0].device.type, dtype if half else None, enabled=half):
        return path(inputs)
