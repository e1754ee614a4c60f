"""The kernels of attention, forward and every gradient, against float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from kitsattn.kernels.attention import attention

pytestmark = pytest.mark.usefixtures("fused", "poisoned")

AssertClose = Callable[..., None]
Shape = tuple[int, int, int, int, int]


@contextmanager
def deterministic() -> Iterator[None]:
    """Demand algorithms that give the same bits every time."""
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


def in_float64(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, residual: Tensor | None = None, gate: Tensor | None = None
) -> Tensor:
    """Return the definition's value."""
    average = torch.softmax(q @ k.transpose(1, 2) * scale, dim=2) @ v
    return average if residual is None or gate is None else residual + gate * average


def make(shape: Shape, dtype: torch.dtype, device: torch.device, *, gated: bool, spread: float = 1.0) -> list[Tensor]:
    """Return q, k, v and, if gated, residual and gate; q, k and v are slices of wider tensors, as in the block."""
    batch, queries, keys, dim, value_dim = shape
    generator = torch.Generator().manual_seed(sum(shape))
    wide = torch.randn(batch, queries, dim + value_dim, generator=generator) * spread
    other = torch.randn(batch, keys, dim + value_dim, generator=generator)
    q, residual = wide.to(device, dtype).split([dim, value_dim], dim=2)
    k, v = other.to(device, dtype).split([dim, value_dim], dim=2)
    return [q, k, v, *([residual, torch.tensor([0.7], device=device)] if gated else [])]


def run(
    function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor, *, scale: float = 0.3
) -> dict[str, Tensor]:
    """Return the output and the gradient of every input."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    q, k, v, *gated = leaves
    out = function(q, k, v, scale=scale, **dict(zip(("residual", "gate"), gated, strict=False)))
    out.backward(grad.to(out.dtype))
    gradients = {name: leaf.grad for name, leaf in zip(("q", "k", "v", "residual", "gate"), leaves, strict=False)}
    assert all(gradient is not None for gradient in gradients.values())
    return {"out": out.detach(), **{name: gradient for name, gradient in gradients.items() if gradient is not None}}


@pytest.mark.parametrize("way", ["two passes", "one pass"])
@pytest.mark.parametrize("kind", ["gated", "plain"])
@pytest.mark.parametrize(
    "shape",
    [(2, 64, 64, 16, 64), (3, 77, 19, 32, 16), (1, 5, 130, 16, 32), (2, 33, 33, 64, 128)],
    ids=["even tiles", "ragged, fewer keys", "ragged, more keys", "wide"],
)
def test_it_equals_the_definition(
    *, shape: Shape, kind: str, way: str, dtype: torch.dtype, device: torch.device, assert_close: AssertClose
) -> None:
    """Output and gradients, whether or not the tokens fill the tiles, and on both ways back."""
    gated = kind == "gated"
    inputs = make(shape, dtype, device, gated=gated)
    grad = torch.randn(shape[0], shape[1], shape[4], generator=torch.Generator().manual_seed(1)).to(device, dtype)
    wanted = run(in_float64, [tensor.double() for tensor in inputs], grad.double())

    with deterministic() if way == "two passes" else nullcontext():
        got = run(attention, inputs, grad)

    # The gate's gradient is one number in which thousands of products cancel: it is held to their size.
    if gated:
        products = (wanted["out"] - inputs[3].double()) / 0.7 * grad.double()
        got["gate"] += products.norm() - wanted["gate"]
        wanted["gate"] = products.norm().reshape(1)
    assert_close(got, wanted, dtype)


def test_one_token_attends_to_itself(dtype: torch.dtype, device: torch.device, assert_close: AssertClose) -> None:
    """A map of one position: the average is its own value, and queries and keys have no gradient."""
    inputs = make((2, 1, 1, 16, 16), dtype, device, gated=True)
    grad = torch.ones(2, 1, 16, device=device, dtype=dtype)
    wanted = run(in_float64, [tensor.double() for tensor in inputs], grad.double())
    got = run(attention, inputs, grad)
    for name in ("q", "k"):
        assert got.pop(name).abs().max() < 0.02
        del wanted[name]
    assert_close(got, wanted, dtype, factor=2)


@pytest.mark.parametrize("way", ["two passes", "one pass"])
@pytest.mark.parametrize("offset", [-100.0, 100.0])
def test_large_scores_neither_overflow_nor_vanish(
    offset: float, way: str, device: torch.device, assert_close: AssertClose
) -> None:
    """Scores far from zero on either side give the weights of the same scores around zero."""
    q, k, v = make((1, 20, 21, 16, 16), torch.float32, device, gated=False)
    q, k = q.clone(), k.clone()
    q[..., 0], k[..., 0] = 10.0, offset / 10
    grad = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(1)).to(device)
    wanted = run(in_float64, [tensor.double() for tensor in (q, k, v)], grad.double(), scale=1.0)
    with deterministic() if way == "two passes" else nullcontext():
        got = run(attention, [q, k, v], grad, scale=1.0)
    # Scores of 100 are known to 100 x 2^-24 = 6e-6, and their exponentials no better.
    assert_close(got, wanted, torch.float32, factor=50)


def test_without_gradients_nothing_is_saved(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In inference the attended values and the sums are not kept."""
    saved = []
    from kitsattn.kernels.attention import kernels

    forward = kernels.forward

    def spy(*arguments: object, save: bool) -> object:
        saved.append(save)
        return forward(*arguments, save=save)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "forward", spy)
    inputs = make((1, 8, 8, 16, 16), torch.float32, device, gated=True)
    attention(*inputs[:3], scale=0.3, residual=inputs[3], gate=inputs[4])
    with torch.no_grad():
        attention(*(tensor.requires_grad_() for tensor in inputs[:3]), scale=0.3)
    assert saved == [False, False]


def test_a_map_that_is_not_channels_last_is_taken(device: torch.device, assert_close: AssertClose) -> None:
    """Tokens whose channels lie apart are put together first."""
    inputs = make((2, 12, 12, 16, 16), torch.float32, device, gated=True)
    grad = torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(1)).to(device).transpose(1, 2)
    wanted = run(in_float64, [tensor.double() for tensor in inputs], grad.double())
    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) if tensor.ndim == 3 else tensor for tensor in inputs]
    assert_close(run(attention, turned, grad), wanted, torch.float32, factor=2)


def test_gradients_are_the_same_bits_every_time(device: torch.device) -> None:
    """The two passes back add nothing atomically."""
    inputs = make((2, 70, 70, 16, 32), torch.float32, device, gated=True)
    grad = torch.randn(2, 70, 32, generator=torch.Generator().manual_seed(1)).to(device)
    with deterministic():
        first, second = (run(attention, inputs, grad) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
