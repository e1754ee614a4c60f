"""The kernels of the ASPP, forward and every gradient, against float64: each operator, then all of them together."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu

from kitsattn.kernels.aspp import BatchNormParameters, aspp
from kitsattn.kernels.aspp import fused as operators

pytestmark = pytest.mark.usefixtures("fused", "poisoned")

AssertClose = Callable[..., None]

SIZES = [1, 3, 3, 3]
MAPS = {
    # batch, height, width, in_channels, channels, rates
    "odd map, ragged batch": (3, 9, 7, 128, 64, [1, 2, 4, 9]),
    "rates beyond the map": (5, 4, 12, 64, 128, [1, 3, 12, 30]),
    "one position": (2, 1, 1, 64, 64, [1, 6, 12, 18]),
    "one row": (2, 1, 33, 64, 64, [1, 1, 8, 32]),
}

Map = tuple[int, int, int, int, int, list[int]]


@pytest.fixture(params=list(MAPS.values()), ids=list(MAPS))
def shape(request: pytest.FixtureRequest) -> Map:
    """Each map."""
    chosen: Map = request.param
    return chosen


class Maker:
    """Makes tensors from one seed, rounded to a number format."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.dtype, self.device = dtype, device

    def half(self, *sizes: int, scale: float = 1.0) -> Tensor:
        """Return values that the number format holds, in it."""
        return (torch.randn(*sizes, generator=self.generator) * scale).to(self.device, self.dtype)

    def weight(self, *sizes: int, scale: float = 1.0) -> Tensor:
        """Return values that the number format holds, in fp32."""
        return self.half(*sizes, scale=scale).float()

    def vector(self, size: int, shift: float = 0.0) -> Tensor:
        """Return fp32 values about a shift."""
        return (torch.randn(size, generator=self.generator) * 0.3 + shift).to(self.device)


def gradients(outputs: tuple[Tensor, ...], grads: list[Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs, and the gradient of every input."""
    differentiated = torch.autograd.grad(outputs, list(inputs.values()), grads)
    return {
        **{f"output {number}": output.detach() for number, output in enumerate(outputs)},
        **{f"gradient of {name}": gradient for name, gradient in zip(inputs, differentiated, strict=True)},
    }


def leaves(*, double: bool, **tensors: Tensor) -> dict[str, Tensor]:
    """Return copies that want gradients, in float64 if `double`."""
    return {
        name: (tensor.double() if double else tensor).detach().clone().requires_grad_()
        for name, tensor in tensors.items()
    }


def convolutions(x: Tensor, w: Tensor, rates: list[int]) -> Tensor:
    """Return what the branches are by definition: channels-last convolutions from packed weights."""
    maps, first = [], 0
    for size, rate in zip(SIZES, rates, strict=True):
        taps = w[first : first + size**2]
        first += size**2
        weight = taps.reshape(size, size, *taps.shape[1:]).permute(3, 2, 0, 1)
        maps.append(conv2d(x.permute(0, 3, 1, 2), weight, padding=rate * (size // 2), dilation=rate))
    return torch.cat(maps, 1).permute(0, 2, 3, 1)


def statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of channels-last values."""
    return values.mean((0, 1, 2)), values.var((0, 1, 2), correction=0)


def test_the_branches_are_the_convolutions(
    shape: Map, dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    """Raw outputs, their statistics and the image means; and the gradients of all four, through input and weights."""
    batch, height, width, channels_in, channels, rates = shape
    make = Maker(dtype, device)
    x = make.half(batch, height, width, channels_in)
    w = make.weight(28, channels_in, channels, scale=(9 * channels_in) ** -0.5)
    count = batch * height * width
    grads = [
        make.half(batch, height, width, 4 * channels),
        make.vector(4 * channels) * count,
        make.vector(4 * channels) * count,
        make.vector(batch * channels_in).reshape(batch, channels_in),
    ]

    got_inputs = leaves(double=False, x=x, w=w)
    got = gradients(operators.branches_operator(*got_inputs.values(), SIZES, rates), grads, got_inputs)

    inputs = leaves(double=True, x=x, w=w)
    z = convolutions(inputs["x"], inputs["w"], rates)
    outputs = (z, *statistics(z), inputs["x"].mean((1, 2)))
    wanted = gradients(outputs, [grad.double() for grad in grads], inputs)
    # The gradient of z is rounded once more where it takes in what comes through the statistics.
    assert_close(got, wanted, dtype, factor=2)


def test_the_projection_is_that_of_normalised_branches(
    shape: Map, dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    """The projection, its statistics, and the gradients through branches, normalisation, weights and image bias."""
    batch, height, width, _, channels, _ = shape
    make = Maker(dtype, device)
    tensors = {
        "z": make.half(batch, height, width, 4 * channels),
        "mean": make.vector(4 * channels),
        "scale": make.vector(4 * channels, 1.0),
        "bias": make.vector(4 * channels),
        "u": make.weight(channels, 4 * channels, scale=(4 * channels) ** -0.5),
        "image_bias": make.vector(batch * channels).reshape(batch, channels),
    }
    count = batch * height * width
    grads = [make.half(batch, height, width, channels), *(make.vector(channels) * count for _ in range(2))]

    got_inputs = leaves(double=False, **tensors)
    got = gradients(operators.project_operator(*got_inputs.values()), grads, got_inputs)

    inputs = leaves(double=True, **tensors)
    y = relu((inputs["z"] - inputs["mean"]) * inputs["scale"] + inputs["bias"])
    out = y @ inputs["u"].t() + inputs["image_bias"][:, None, None]
    wanted = gradients((out, *statistics(out)), [grad.double() for grad in grads], inputs)
    # The incoming gradient is rounded where it takes in what comes through the statistics, and multiplied after that.
    assert_close(got, wanted, dtype, factor=3)


def test_the_last_normalisation(
    shape: Map, dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    """Output and gradients of `relu((values - mean) scale + bias)`."""
    batch, height, width, _, channels, _ = shape
    make = Maker(dtype, device)
    tensors = {
        "values": make.half(batch, height, width, channels),
        "mean": make.vector(channels),
        "scale": make.vector(channels, 1.0),
        "bias": make.vector(channels),
    }
    grad = make.half(batch, height, width, channels)
    got_inputs = leaves(double=False, **tensors)
    got = gradients((operators.normalise_operator(*got_inputs.values()),), [grad], got_inputs)
    inputs = leaves(double=True, **tensors)
    out = relu((inputs["values"] - inputs["mean"]) * inputs["scale"] + inputs["bias"])
    assert_close(got, gradients((out,), [grad.double()], inputs), dtype)


def parameters(make: Maker, channels_in: int, channels: int) -> dict[str, Any]:
    """Return the arguments of `aspp` besides the input."""
    sizes = [(channels, channels_in, size, size) for size in SIZES]
    return {
        "branch_weights": [make.weight(*size, scale=(channels_in * size[2]) ** -0.5) for size in sizes],
        "pool_weight": make.weight(channels, channels_in, 1, 1, scale=channels_in**-0.5),
        "project_weight": make.weight(channels, 5 * channels, 1, 1, scale=(5 * channels) ** -0.5),
        "norms": [
            BatchNormParameters(
                make.vector(channels, 1.0),
                make.vector(channels),
                make.vector(channels),
                make.vector(channels, 1.0).abs(),
                1e-5,
            )
            for _ in range(6)
        ],
    }


def in_float64(given: dict[str, Any]) -> dict[str, Any]:
    """Return the same arguments in float64."""
    return {
        "branch_weights": [weight.double() for weight in given["branch_weights"]],
        "pool_weight": given["pool_weight"].double(),
        "project_weight": given["project_weight"].double(),
        "norms": [
            BatchNormParameters(
                norm.weight.double(),
                norm.bias.double(),
                norm.running_mean.double(),
                norm.running_var.double(),
                norm.eps,
            )
            for norm in given["norms"]
        ],
    }


def test_folded_normalisation_is_that_of_the_running_statistics(
    shape: Map, dtype: torch.dtype, device: torch.device, assert_close: AssertClose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside training the block equals the reference in float64."""
    batch, height, width, channels_in, channels, rates = shape
    make = Maker(dtype, device)
    x = make.half(batch, channels_in, height, width)
    given = parameters(make, channels_in, channels)
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        got, none = aspp(x, **given, rates=rates, training=False)
    monkeypatch.setenv("KITSATTN_KERNELS", "reference")
    wanted, _ = aspp(x.double(), **in_float64(given), rates=rates, training=False)
    assert none == []
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    # Two products in a row.
    assert_close({"out": got}, {"out": wanted}, dtype, factor=2)


@pytest.mark.parametrize("shape", [MAPS["odd map, ragged batch"]], ids=["odd map"], indirect=True)
def test_the_whole_block_trains_as_the_reference(
    shape: Map, device: torch.device, assert_close: AssertClose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output, statistics and the gradient of everything, in fp32: in halves a ReLU may fall to the other side."""
    batch, height, width, channels_in, channels, rates = shape
    make = Maker(torch.float32, device)
    x = make.half(batch, channels_in, height, width)
    given = parameters(make, channels_in, channels)
    grad = make.half(batch, channels, height, width)
    results = []
    for arguments, values in ((given, x), (in_float64(given), x.double())):
        wanting = {"x": values, "pool": arguments["pool_weight"], "project": arguments["project_weight"]}
        wanting |= {f"branch {number}": weight for number, weight in enumerate(arguments["branch_weights"])}
        wanting |= {f"norm weight {number}": norm.weight for number, norm in enumerate(arguments["norms"])}
        wanting |= {f"norm bias {number}": norm.bias for number, norm in enumerate(arguments["norms"])}
        for tensor in wanting.values():
            tensor.requires_grad_()
        out, seen = aspp(values, **arguments, rates=rates, training=True)
        result = gradients((out,), [grad.to(out.dtype)], wanting)
        result |= {f"mean {number}": one.mean for number, one in enumerate(seen)}
        result |= {f"variance {number}": one.var for number, one in enumerate(seen)}
        results.append(result)
        assert {one.values for one in seen} == {batch * height * width, batch}
        monkeypatch.setenv("KITSATTN_KERNELS", "reference")
    # Three images behind the pooled branch's statistics make its gradients large and their errors with them.
    assert_close(*results, torch.float32, factor=10)
