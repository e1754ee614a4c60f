"""Convolutions packed for the CPU."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from kitsattn.blocks import packing
from kitsattn.blocks.folding import fold_batch_norm
from kitsattn.blocks.packing import PackedConv2d, pack_convolutions
from kitsattn.models import build_model
from kitsattn.precision import mixed_precision, to_device

CPU = torch.device("cpu")

needs_packing = pytest.mark.skipif(not packing._can_pack(), reason="this PyTorch packs no bf16 convolutions")


@pytest.fixture
def build(trained_alike: Callable[[nn.Module], nn.Module]) -> Callable[[str], nn.Module]:
    """Return what builds a folded network whose attention does something."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        model = trained_alike(build_model(name))
        nn.init.constant_(model.get_parameter("attention.gate"), 0.5)
        fold_batch_norm(model)
        return model

    return make


def predict(model: nn.Module, slabs: Tensor) -> Tensor:
    """Run a network as prediction does."""
    with torch.inference_mode(), mixed_precision(CPU, "bf16"):
        logits: Tensor = model(slabs.contiguous(memory_format=torch.channels_last))
    return logits


def packed_parts(model: nn.Module) -> int:
    """Count the packed convolutions."""
    return sum(isinstance(module, PackedConv2d) for module in model.modules())


@needs_packing
@pytest.mark.parametrize("name", ["attention-deeplab-tiny", "attention-deeplab-r18", "attention-deeplab-r50"])
def test_a_packed_network_gives_the_very_same_logits(name: str, build: Callable[[str], nn.Module]) -> None:
    """Bit by bit, for inputs of several sizes and counts, although each convolution was sorted for the first."""
    model = build(name)
    packed = copy.deepcopy(model)
    pack_convolutions(packed)
    model = to_device(model, CPU)
    assert packed_parts(packed) > 20
    assert not any(isinstance(module, nn.Conv2d) for module in packed.modules())
    for shape in ((2, 5, 64, 96), (1, 5, 64, 96), (2, 5, 77, 50)):
        slabs = torch.randn(shape)
        expected = predict(model, slabs)
        assert torch.equal(predict(packed, slabs), expected)
        assert float(expected.std()) > 0.01


@needs_packing
def test_threads_may_share_a_packed_network(build: Callable[[str], nn.Module]) -> None:
    """Also the first time, when the weights are sorted."""
    model = build("attention-deeplab-tiny")
    slabs = torch.randn(1, 5, 64, 64)
    expected = predict(to_device(copy.deepcopy(model), CPU), slabs)
    pack_convolutions(model)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: predict(model, slabs), range(8)))
    assert all(torch.equal(logits, expected) for logits in found)


def test_where_packing_is_missing_or_wrong_the_network_is_left_as_it_is(
    build: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names are private to PyTorch: they may go, and come to mean something else."""
    model = build("attention-deeplab-tiny")
    monkeypatch.setattr(PackedConv2d, "forward", lambda _, x: torch.zeros_like(x))
    pack_convolutions(model)
    monkeypatch.undo()
    monkeypatch.delattr("torch._C._nn.mkldnn_reorder_conv2d_weight", raising=False)
    pack_convolutions(model)
    assert packed_parts(model) == 0
