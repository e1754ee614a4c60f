"""The operators as citizens of PyTorch: compiled, exported, checkpointed, under autocast, on several processes."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from kitsattn.blocks.aspp import ASPP
from kitsattn.blocks.attention import SelfAttention
from kitsattn.kernels import dispatch
from kitsattn.kernels.aspp import fused as aspp_operators
from kitsattn.kernels.attention import attention
from kitsattn.kernels.attention import fused as attention_operators

pytestmark = pytest.mark.usefixtures("fused")

SIZES, RATES = [1, 3], [1, 2]
TAPS = 10


class Blocks(nn.Module):
    """ASPP and attention one after the other, with an open gate."""

    def __init__(self) -> None:
        super().__init__()
        self.aspp = ASPP(64, 64, RATES[1:])
        self.attention = SelfAttention(64, 16)
        nn.init.constant_(self.attention.gate, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 64, height, width) to the same shape."""
        attended: Tensor = self.attention(self.aspp(x))
        return attended


@pytest.fixture
def blocks(device: torch.device) -> Blocks:
    """The blocks, in training mode."""
    torch.manual_seed(0)
    return Blocks().to(device).train()


@pytest.fixture
def x(device: torch.device) -> Tensor:
    """A small map in channels-last order."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 64, 5, 4, generator=generator).to(device).to(memory_format=torch.channels_last)


def tensors(device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Return random tensors that want gradients."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def samples(name: str, device: torch.device) -> tuple[Any, tuple[Any, ...]]:
    """Return an operator and arguments for it."""
    q, k, v, residual, gate = tensors(device, (2, 6, 16), (2, 5, 16), (2, 5, 32), (2, 6, 32), (1,))
    x, w = tensors(device, (2, 3, 4, 64), (TAPS, 64, 64))
    z, values = tensors(device, (2, 3, 4, 128), (2, 3, 4, 64))
    wide = tensors(device, (128,), (128,), (128,))
    narrow = tensors(device, (64,), (64,), (64,))
    u, image_bias = tensors(device, (64, 128), (2, 64))
    with torch.no_grad():
        attended, lse = attention_operators.attention_operator(q, k, v, residual, gate, 0.3, save=True)[1:]
    return {
        "attention, saved": (attention_operators.attention_operator, (q, k, v, residual, gate, 0.3, True)),
        "attention, plain": (attention_operators.attention_operator, (q, k, v, None, None, 0.3, True)),
        "attention, not saved": (
            attention_operators.attention_operator,
            (*(tensor.detach() for tensor in (q, k, v, residual, gate)), 0.3, False),
        ),
        "attention backward": (
            attention_operators.attention_backward_operator,
            (*(tensor.detach() for tensor in (residual, q, k, v, attended, lse, gate)), 0.3, True),
        ),
        "branches": (aspp_operators.branches_operator, (x, w, SIZES, RATES)),
        "branches folded": (
            aspp_operators.folded_operator,
            (x.detach(), w.detach(), wide[0].detach(), wide[1].detach(), SIZES, RATES),
        ),
        "project": (aspp_operators.project_operator, (z, *wide, u, image_bias)),
        "project folded": (
            aspp_operators.project_folded_operator,
            (z.detach(), u.detach(), image_bias.detach(), narrow[0].detach(), narrow[1].detach()),
        ),
        "normalise": (aspp_operators.normalise_operator, (values, *narrow)),
        "normalise backward": (
            aspp_operators.normalise_backward_operator,
            tuple(tensor.detach() for tensor in (values, values, *narrow)),
        ),
        "branches backward": (
            aspp_operators.branches_backward_operator,
            (
                [tensor.detach() for tensor in (z, wide[0], wide[1], x.mean((1, 2)))],
                *(tensor.detach() for tensor in (x, w, z, wide[2])),
                SIZES,
                RATES,
            ),
        ),
        "project backward": (
            aspp_operators.project_backward_operator,
            (
                [tensor.detach() for tensor in (values, narrow[0], narrow[1])],
                *(tensor.detach() for tensor in (z, *wide, u, values, narrow[2])),
            ),
        ),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "attention, saved",
        "attention, plain",
        "attention, not saved",
        "attention backward",
        "branches",
        "branches folded",
        "branches backward",
        "project",
        "project folded",
        "project backward",
        "normalise",
        "normalise backward",
    ],
)
def test_operators_are_what_they_declare(name: str, device: torch.device) -> None:
    """Schema, fake tensors, autograd registration and compiled gradients agree with what the operator does."""
    operator, arguments = samples(name, device)
    torch.library.opcheck(operator, arguments)


def trained(model: Callable[[Tensor], Tensor], blocks: Blocks, x: Tensor) -> list[Tensor]:
    """Return output, gradients and running statistics of one step."""
    blocks.zero_grad()
    for norm in blocks.aspp.norms:
        norm.reset_running_stats()  # type: ignore[operator]
    given = x.clone().requires_grad_()
    out = model(given)
    out.square().sum().backward()
    gradients = [given.grad, *(parameter.grad for parameter in blocks.parameters())]
    assert all(gradient is not None for gradient in gradients)
    return [out.detach().clone(), *(g.clone() for g in gradients if g is not None), *map(torch.clone, blocks.buffers())]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_as_one_graph_it_gives_the_same(blocks: Blocks, x: Tensor, backend: str) -> None:
    """Forward, backward and running statistics, and the output stays channels-last."""
    if backend == "inductor" and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("Inductor needs a C++ compiler")
    wanted = trained(blocks, blocks, x)
    torch._dynamo.reset()
    compiled = torch.compile(blocks, fullgraph=True, backend=backend)
    for one, other in zip(trained(compiled, blocks, x), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert compiled(x).is_contiguous(memory_format=torch.channels_last)


def test_compiled_for_any_size(blocks: Blocks, device: torch.device) -> None:
    """One graph serves several batch and map sizes."""
    blocks.eval()
    torch._dynamo.reset()
    compiled = torch.compile(blocks, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for batch, height, width in ((2, 4, 6), (3, 5, 7), (4, 6, 3)):
            x = torch.randn(batch, 64, height, width, device=device)
            torch.testing.assert_close(compiled(x), blocks(x))


def test_exported_with_a_dynamic_batch(blocks: Blocks, x: Tensor) -> None:
    """The operators stay one node each, and other batch sizes run."""
    blocks.eval()
    batch = torch.export.Dim("batch", min=2)
    with torch.no_grad():
        program = torch.export.export(blocks, (x,), dynamic_shapes={"x": {0: batch}})
        calls = [str(node.target) for node in program.graph.nodes if "kitsattn" in str(node.target)]
        other = torch.cat([x, x[:2]])
        torch.testing.assert_close(program.module()(other), blocks(other))
    assert [call.split(".")[1] for call in calls] == ["aspp_folded", "aspp_project_folded", "attention"]


def test_recomputed_activations_give_the_same_gradients(blocks: Blocks, x: Tensor) -> None:
    """Under activation checkpointing the kernels run again in the backward pass."""
    wanted = trained(blocks, blocks, x)
    blocks.train()
    got = trained(lambda given: checkpoint(blocks, given, use_reentrant=False), blocks, x)
    parameters = len(list(blocks.parameters()))
    for one, other in zip(got[: 2 + parameters], wanted, strict=False):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast_decides_the_number_format(
    blocks: Blocks, x: Tensor, half: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each dtype that autocast may ask for, with fp32 parameters and gradients, close to the reference's."""
    with torch.autocast(x.device.type, half):
        out = blocks(x)
    out.float().square().sum().backward()
    assert out.dtype == half
    assert {parameter.grad.dtype for parameter in blocks.parameters() if parameter.grad is not None} == {torch.float32}
    monkeypatch.setenv("KITSATTN_KERNELS", "reference")
    with torch.autocast(x.device.type, half):
        wanted = blocks(x)
    assert (out - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("half", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_networks_may_be_of_one_number_format(
    blocks: Blocks, x: Tensor, mode: str, half: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters in halves without autocast, normalisations included."""
    blocks.train(mode == "training").to(half)
    with nullcontext() if mode == "training" else torch.no_grad():
        out = blocks(x.to(half))
        monkeypatch.setenv("KITSATTN_KERNELS", "reference")
        wanted = blocks(x.to(half))
    assert out.dtype == half
    assert (out - wanted).norm() < 0.03 * wanted.norm()
    if mode == "training":
        out.float().square().sum().backward()
        assert all(parameter.grad is not None for parameter in blocks.parameters())


def test_float64_is_computed_by_the_reference_under_autocast_too(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast leaves it as it is."""
    monkeypatch.setenv("KITSATTN_KERNELS", "auto")
    blocks = Blocks().double().eval()
    with torch.no_grad():
        wanted = blocks(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert attention(*(torch.randn(1, 4, 16).double() for _ in range(3)), scale=0.2).dtype == torch.float64
            got = blocks(x.double())
    torch.testing.assert_close(got.double(), wanted, rtol=0.05, atol=0.05)


def test_operations_are_counted(blocks: Blocks, x: Tensor) -> None:
    """The products of convolutions and attention, forward and backward; padding counts, as for convolutions."""
    importlib.import_module("kitsattn.kernels.flops")
    pixels, batch, tokens = x[:, 0].numel(), x.shape[0], x[0, 0].numel()
    with FlopCounterMode(display=False) as counter:
        blocks(x).sum().backward()
    counts = {str(name).split(".")[1]: count for name, count in counter.get_flop_counts()["Global"].items()}
    assert counts["aspp_branches"] == 2 * pixels * TAPS * 64 * 64
    assert counts["aspp_branches_backward"] == 2 * counts["aspp_branches"]
    assert counts["aspp_project"] == 2 * pixels * 128 * 64
    assert counts["attention"] == 2 * batch * tokens**2 * (16 + 64)
    assert counts["attention_backward"] == 2 * batch * tokens**2 * (3 * 16 + 2 * 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        blocks.eval()(x)
    counts = {str(name).split(".")[1]: count for name, count in counter.get_flop_counts()["Global"].items()}
    assert counts["aspp_folded"] == 2 * pixels * TAPS * 64 * 64
    assert counts["aspp_project_folded"] == 2 * pixels * 128 * 64


def test_a_gradient_of_the_gradient_is_refused(device: torch.device) -> None:
    """It has none, and saying so is better than a wrong one."""
    q, k, v = tensors(device, (1, 4, 16), (1, 4, 16), (1, 4, 16))
    out = attention(q, k, v, scale=0.25)
    (gradient,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="has no gradient of its own: set KITSATTN_KERNELS=reference"):
        gradient.sum().backward()


@pytest.mark.parametrize("wanted", ["input", "normalisation"])
def test_gradients_with_running_statistics_are_the_references(blocks: Blocks, x: Tensor, wanted: str) -> None:
    """Frozen normalisation has gradients, by the reference: the folded kernels have none."""
    blocks.train().requires_grad_(requires_grad=False)
    blocks.aspp.norms.eval()
    leaf = x if wanted == "input" else blocks.aspp.get_parameter("norms.0.weight")
    leaf.requires_grad_()
    before = {name: buffer.clone() for name, buffer in blocks.named_buffers()}
    blocks.aspp(x).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    assert all(torch.equal(buffer, before[name]) for name, buffer in blocks.named_buffers())


def test_normalisations_are_frozen_as_a_whole(blocks: Blocks, x: Tensor) -> None:
    """Half of them would be neither this nor that."""
    blocks.aspp.norms[1].eval()
    with pytest.raises(ValueError, match="freeze `norms` as a whole, or none"):
        blocks(x)


def test_compiled_on_a_gpu_the_choice_is_made_while_tracing(
    blocks: Blocks, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and devices are asked outside the graph, once for each shape, and each gets the path measured for it."""
    monkeypatch.setenv("KITSATTN_KERNELS", "auto")
    asked: list[tuple[str, tuple[int, ...]]] = []

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def automatic(name: str, sizes: tuple[int, ...], *_: object) -> tuple[bool, str]:
        asked.append((name, sizes))
        Path(__file__).stat()  # cannot be traced
        return sizes[0] == 3, "pretended"

    class Pretended:
        """A CUDA device to the choice, this one to everybody else."""

        type = "cuda"

    monkeypatch.setattr(dispatch, "_automatic", automatic)
    choose = dispatch.choose
    monkeypatch.setattr(
        dispatch,
        "choose",
        lambda shape, _, dtype, *, training: choose(shape, Pretended(), dtype, training=training),  # type: ignore[arg-type]
    )
    blocks.eval()
    torch._dynamo.reset()
    compiled = torch.compile(blocks, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (3, 2):
            torch.testing.assert_close(compiled(x[:batch]), blocks(x[:batch]), rtol=1e-4, atol=1e-4)
    assert {sizes[0] for _, sizes in asked} == {2, 3}
    assert {name for name, _ in asked} == {"aspp", "attention"}


def test_shapes_can_be_had_without_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which has no autocast, the blocks take the reference."""
    monkeypatch.setenv("KITSATTN_KERNELS", "auto")
    with torch.device("meta"):
        blocks = Blocks().eval()
        assert blocks(torch.empty(2, 64, 5, 4)).shape == (2, 64, 5, 4)


def test_networks_load_neither_triton_nor_the_compiler() -> None:
    """Both take time, and most users need neither: Triton is imported when a kernel is launched."""
    program = (
        "import kitsattn.models, sys; print([name for name in ('triton', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
