"""A kernel that is broken on purpose must be found out: proof that the comparisons with float64 can fail."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import kitsattn.kernels
from kitsattn.kernels import aspp as aspp_package
from kitsattn.kernels import attention as attention_package
from kitsattn.kernels.aspp import fused as aspp_operators
from kitsattn.kernels.attention import attention
from kitsattn.kernels.attention.reference import attention as reference_attention

pytestmark = pytest.mark.usefixtures("fused")

MUTATIONS = {
    "attention, a key past the last counts": (
        "attention",
        "scores = tl.where((columns < keys)[None, :]",
        "scores = tl.where((columns < keys + 1)[None, :]",
    ),
    "attention, the gradient of the queries lacks the scale": (
        "attention",
        "factor = scale * tl.load(gate)",
        "factor = tl.load(gate)",
    ),
    "attention, the sum does not shrink when the maximum rises": (
        "attention",
        "total = total * shrink +",
        "total = total +",
    ),
    "aspp, the mask lets the next row in": (
        "aspp",
        "(x_read >= 0) & (x_read < width)",
        "(x_read >= 0) & (x_read <= width)",
    ),
    "aspp, a tap is read one pixel off": (
        "aspp",
        "(pixel + (dy * width + dx) * rate)[:, None] * IN",
        "(pixel + (dy * width + dx) * rate + dy)[:, None] * IN",
    ),
    "aspp, the weights of the same tap instead of the opposite one": (
        "aspp",
        "(1 - dy) * 3 + 1 - dx",
        "(1 + dy) * 3 + 1 + dx",
    ),
    "aspp, pixels count twice in the gradient of the weights": ("aspp", "first = split * length", "first = 0"),
}


def mutated(operation: str, old: str, new: str, folder: Path) -> ModuleType:
    """Return an operation's kernels with one piece of text replaced, imported from a file of its own."""
    source = (Path(kitsattn.kernels.__file__).parent / operation / "kernels.py").read_text(encoding="utf-8")
    assert old in source
    path = folder / "broken_programs.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("broken_programs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attention_errors(device: torch.device) -> list[float]:
    """Return the relative errors of output and gradients of attention."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 40, 16), (2, 21, 16), (2, 21, 32), (2, 40, 32)]
    q, k, v, residual = (torch.randn(*shape, generator=generator).to(device).requires_grad_() for shape in shapes)
    gate = torch.tensor([0.7], device=device)
    results = []
    for function in (attention, reference_attention):
        out = function(q, k, v, scale=0.3, residual=residual, gate=gate)
        with torch.no_grad():
            grad = torch.linspace(-1, 1, out.numel(), device=device).reshape(out.shape)
        results.append([out.detach(), *torch.autograd.grad(out, (q, k, v), grad)])
    return errors(*results)


def aspp_errors(device: torch.device) -> list[float]:
    """Return the relative errors of the branches' output and gradients."""
    generator = torch.Generator().manual_seed(0)
    # Amid a larger tensor: a broken kernel reads past the end, and shall not find what others left in memory.
    x = torch.randn(4, 6, 7, 64, generator=generator).to(device)[1:3].requires_grad_()
    w = (torch.randn(10, 64, 64, generator=generator) / 24).to(device).requires_grad_()
    outputs = [aspp_operators.branches_operator(x, w, [1, 3], [1, 2])[0]]
    weights = [w[:1], w[1:]]
    maps = [
        torch.nn.functional.conv2d(
            x.permute(0, 3, 1, 2), taps.reshape(size, size, 64, 64).permute(3, 2, 0, 1), padding=size - 1, dilation=rate
        )
        for taps, size, rate in zip(weights, (1, 3), (1, 2), strict=True)
    ]
    outputs.append(torch.cat(maps, 1).permute(0, 2, 3, 1))
    grad = torch.randn(2, 6, 7, 128, generator=generator).to(device)
    return errors(*([out.detach(), *torch.autograd.grad(out, (x, w), grad)] for out in outputs))


def errors(got: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Return relative errors."""
    return [((one - other).norm() / other.norm()).item() for one, other in zip(got, wanted, strict=True)]


@pytest.mark.parametrize(("operation", "old", "new"), list(MUTATIONS.values()), ids=list(MUTATIONS))
def test_a_broken_kernel_is_found_out(
    *, operation: str, old: str, new: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors that were at most 1e-6 become a thousand times larger."""
    measure = {"attention": attention_errors, "aspp": aspp_errors}[operation]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)  # two passes back
    assert max(measure(device)) < 2e-6
    package = {"attention": attention_package, "aspp": aspp_package}[operation]
    broken = mutated(operation, old, new, tmp_path)
    monkeypatch.setitem(sys.modules, f"{package.__name__}.kernels", broken)
    monkeypatch.setattr(package, "kernels", broken, raising=False)
    with np.errstate(all="ignore"):
        assert not max(measure(device)) < 1e-3
