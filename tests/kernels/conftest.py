"""What the kernels' tests share: the device, poisoned memory, and how exact is exact enough."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

TOLERANCES = {
    # Relative Frobenius error of one product against float64 of the same rounded inputs. Sums are fp32 throughout.
    # fp32: some roundings of 2^-24 in sums of up to a few thousand terms; measured at most 4e-7.
    torch.float32: 2e-6,
    # fp16 and bf16: one rounding of the output (2^-12 and 2^-9 at most, a little over half of that on average), and
    # one of the weights or of the normalised branches before they are multiplied. fp16 measured at most 4e-4.
    torch.float16: 1e-3,
    # bf16: Triton's interpreter cuts fp32 to bf16 instead of rounding it, which doubles the error; measured 8e-3.
    torch.bfloat16: 2e-2,
}
"""How exact a kernel must be. The only place that says so."""


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=list(TOLERANCES), ids=["fp32", "fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each number format."""
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Assert that tensors equal float64 ones to a number format's tolerance, times a factor that needs a reason."""

    def check(got: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype, factor: float = 1.0) -> None:
        errors = {name: relative_error(got[name], wanted[name]) for name in wanted}
        wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= factor * TOLERANCES[dtype]}
        assert not wrong, f"{wrong} exceed {factor * TOLERANCES[dtype]:.1e}"

    return check


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the Frobenius norm of the difference over that of what is wanted; where that is 0, of the difference."""
    assert got.shape == wanted.shape
    difference = (got.double().cpu() - wanted.double().cpu()).norm()
    norm = wanted.double().cpu().norm()
    return float(difference / norm) if norm > 0 else float(difference)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill all fresh memory with NaN, so that a place that no program writes shows."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *sizes, **kind: poison(new_empty(self, *sizes, **kind)))
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **kind: poison(empty_like(tensor, **kind)))


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every operation take its kernel."""
    monkeypatch.setenv("KITSATTN_KERNELS", "fused")
