"""Batch normalisation folded into convolutions."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from kitsattn.blocks.folding import fold_batch_norm
from kitsattn.models import build_model, model_entry


@pytest.mark.parametrize(
    ("name", "attention", "kept"),
    [
        ("attention-deeplab-tiny", "full", ("aspp.",)),
        ("attention-deeplab-tiny", "pam", ("aspp.",)),
        ("attention-deeplab-tiny", "ocnet", ("aspp.", "attention.norm")),
        ("attention-deeplab-tiny", "none", ("aspp.",)),
        ("attention-deeplab-r18", "full", ("aspp.",)),
        ("attention-deeplab-r50", "full", ("aspp.",)),
    ],
)
def test_a_folded_network_gives_the_same_logits(
    name: str, attention: str, kept: tuple[str, ...], trained_alike: Callable[[nn.Module], nn.Module]
) -> None:
    """With statistics and parameters that are not those of a new network; few normalisations are left."""
    torch.manual_seed(0)
    config = replace(model_entry(name).config, attention=attention)  # type: ignore[type-var]
    model = trained_alike(build_model(name, config))
    folded = copy.deepcopy(model)
    fold_batch_norm(folded)
    left = [place for place, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left
    assert all(place.startswith(kept) for place in left)
    slabs = torch.randn(2, 5, 64, 96)
    with torch.inference_mode():
        expected, found = model(slabs), folded(slabs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert float(expected.std()) > 0.001
