"""One tester for every registered network and every kind of attention: what each of them must be able to do.

A network that is added to the registry, and a kind of attention that is added to `AttentionKind`, is tested here
without another line.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from kitsattn.blocks.attention import POOLED_KINDS, AttentionKind
from kitsattn.blocks.folding import fold_batch_norm
from kitsattn.blocks.packing import pack_convolutions
from kitsattn.config import to_json
from kitsattn.models import build_model, model_entry, model_names
from kitsattn.models.registry import ModelConfig
from kitsattn.precision import mixed_precision, to_device

TINY = "attention-deeplab-tiny"
CPU = torch.device("cpu")

Network = tuple[str, ModelConfig]


def every_network() -> list[Network]:
    """Return all registered networks, and the smallest one with every kind of attention."""
    tiny = model_entry(TINY).config
    kinds = [
        replace(tiny, attention=kind, pooled_keys=pooled)  # type: ignore[type-var]
        for kind in get_args(AttentionKind)
        for pooled in ((False, True) if kind in POOLED_KINDS else (False,))
    ]
    registered = [(name, model_entry(name).config) for name in model_names()]
    return registered + [(TINY, config) for config in kinds if config != tiny]


def describe(network: Network) -> str:
    """Return the name of a network, and of its attention where it is not the registered one."""
    name, config = network
    if config == model_entry(name).config:
        return name
    return f"{name}-{config.attention}{'-pooled' if config.pooled_keys else ''}"  # type: ignore[attr-defined]


NETWORKS = every_network()
SMALL = [network for network in NETWORKS if network[0] == TINY]
"""Those that take more time to trace than to run."""

each = pytest.mark.parametrize("network", NETWORKS, ids=describe)
each_small = pytest.mark.parametrize("network", SMALL, ids=describe)

Build = Callable[[Network], nn.Module]


@pytest.fixture
def build(trained_alike: Callable[[nn.Module], nn.Module]) -> Build:
    """Return what builds a network in evaluation, in which every part changes what comes in."""

    def make(network: Network) -> nn.Module:
        torch.manual_seed(0)
        model = trained_alike(build_model(*network))
        for name, parameter in model.named_parameters():
            if name.endswith("gate") or not parameter.any():  # zero at the start, so that a fresh block does nothing
                nn.init.normal_(parameter, 0.3, 0.1)
        return model

    return make


def slabs(network: Network, batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    """Return noise as a network takes it."""
    return torch.randn((batch, network[1].slices, height, width), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def predict(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the logits of a network that must not have constant ones."""
    logits = model(x)
    assert float(logits.std()) > 1e-3
    return logits


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare logits, by the spread of the expected ones."""
    assert found.shape == expected.shape
    assert float((found.float() - expected).square().mean().sqrt()) < tolerance * float(expected.std())


@each
def test_settings_go_through_json(network: Network) -> None:
    """A checkpoint stores them so."""
    name, config = network
    assert model_entry(name).read_config(to_json(config), "here") == config


@each
@pytest.mark.parametrize("size", [(65, 83), (33, 47)])
def test_logits_have_the_size_of_the_slab(network: Network, size: tuple[int, int], build: Build) -> None:
    """Odd heights and widths too, and a batch of one."""
    logits = predict(build(network), slabs(network, 1, *size))
    assert logits.shape == (1, network[1].classes, *size)


@each
def test_every_parameter_receives_a_gradient(network: Network, build: Build) -> None:
    """The parts are trained end to end, at odd sizes too."""
    model = build(network).train()
    model(slabs(network, height=47, width=61)).square().mean().backward()
    silent = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()]
    # A bias of the keys alone adds the same to all scores of a query, and softmax does not see it.
    assert [name for name in silent if name != "attention.projection.bias"] == []


@each
def test_folding_changes_no_logits(network: Network, build: Build) -> None:
    """The normalisations that are left are the ASPP's, whose operator folds them, and those that nothing precedes."""
    model = build(network)
    folded = copy.deepcopy(model)
    fold_batch_norm(folded)
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    kept = ("aspp.", "attention.norm") if network[1].attention == "ocnet" else ("aspp.",)  # type: ignore[attr-defined]
    assert left
    assert all(name.startswith(kept) for name in left)
    x = slabs(network)
    expected, found = predict(model, x), predict(folded, x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@each
def test_bf16_and_packing_stay_near(network: Network, build: Build) -> None:
    """As a CPU predicts: mixed precision, normalisations folded, convolutions packed where PyTorch can."""
    model = build(network)
    x = slabs(network)
    expected = predict(model, x)
    fold_batch_norm(model)
    mixed = to_device(copy.deepcopy(model), CPU)
    pack_convolutions(model)
    with mixed_precision(CPU, "bf16"):
        assert_close(predict(mixed, x), expected, 0.1)
        assert_close(predict(model, x), expected, 0.1)


@each_small
def test_a_compiled_network_gives_the_same_logits(network: Network, build: Build) -> None:
    """Without a break in the graph."""
    model = build(network)
    x = slabs(network)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(predict(compiled, x), predict(model, x), 1e-4)


@each_small
def test_an_exported_network_gives_the_same_logits(network: Network, build: Build) -> None:
    """For any batch size."""
    model = build(network)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (slabs(network),), dynamic_shapes=({0: batch},))
    x = slabs(network, batch=3)
    assert_close(predict(program.module(), x), predict(model, x), 1e-4)
