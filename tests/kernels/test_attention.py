"""The definition of the attention operation."""

import pytest
import torch
from torch import Tensor

from kitsattn.kernels.attention import attention


def _naive(q: Tensor, k: Tensor, v: Tensor, *, scale: float, residual: Tensor, gate: Tensor) -> Tensor:
    out = residual.clone()
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            scores = torch.stack([scale * (q[b, i] * k[b, j]).sum() for j in range(k.shape[1])])
            weights = torch.exp(scores) / torch.exp(scores).sum()
            out[b, i] += gate[0] * sum(weights[j] * v[b, j] for j in range(k.shape[1]))
    return out


@pytest.mark.parametrize(("queries", "keys", "dim", "value_dim"), [(6, 6, 4, 4), (5, 7, 3, 8), (1, 1, 2, 2)])
def test_every_position_gets_the_weighted_average_of_all(queries: int, keys: int, dim: int, value_dim: int) -> None:
    """Output and gradients equal a loop over positions, also where the numbers of queries and keys differ."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, queries, dim), (2, keys, dim), (2, keys, value_dim), (2, queries, value_dim), (1,)]
    q, k, v, residual, gate = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes
    )
    inputs = (q, k, v, residual, gate)
    got = attention(q, k, v, scale=0.7, residual=residual, gate=gate)
    wanted = _naive(q, k, v, scale=0.7, residual=residual, gate=gate)
    torch.testing.assert_close(got, wanted)
    weights = torch.randn(got.shape, generator=generator, dtype=torch.float64)
    for mine, naive in zip(
        torch.autograd.grad((got * weights).sum(), inputs),
        torch.autograd.grad((wanted * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, naive)


def test_a_closed_gate_returns_the_residual() -> None:
    """A fresh block changes nothing, whatever its projections hold."""
    x = torch.randn(1, 9, 4)
    assert torch.equal(attention(x, x, x, scale=1.0, residual=x, gate=torch.zeros(1)), x)
