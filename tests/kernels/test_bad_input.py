"""Input that cannot be right is an error that says what is wrong, on either path, and never a wrong number."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kitsattn.kernels.aspp import BatchNormParameters, aspp
from kitsattn.kernels.attention import attention


@pytest.fixture(params=["fused", "reference"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each path."""
    monkeypatch.setenv("KITSATTN_KERNELS", request.param)


def tokens(**change: Any) -> dict[str, Any]:
    """Return good arguments of attention, some of them changed."""
    good = {
        "q": torch.zeros(2, 6, 16),
        "k": torch.zeros(2, 5, 16),
        "v": torch.zeros(2, 5, 32),
        "scale": 0.25,
        "residual": torch.zeros(2, 6, 32),
        "gate": torch.zeros(1),
    }
    return {**good, **change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q": torch.zeros(2, 1, 6, 16)},
            r"q has the shape \(2, 1, 6, 16\): attention takes \(batch, tokens, channels\)",
        ),
        ({"residual": torch.zeros(6, 32)}, r"residual has the shape \(6, 32\)"),
        ({"q": torch.zeros(3, 6, 16)}, "q and k share batch and channels"),
        ({"q": torch.zeros(2, 6, 32)}, "q and k share batch and channels"),
        ({"v": torch.zeros(2, 6, 32)}, "k and v batch and tokens"),
        ({"k": torch.zeros(2, 0, 16), "v": torch.zeros(2, 0, 32)}, "hold no token"),
        ({"residual": torch.zeros(2, 6, 16)}, r"the residual has the shape \(2, 6, 16\): it takes \(2, 6, 32\)"),
        ({"gate": None}, "residual and gate go together"),
        ({"residual": None}, "residual and gate go together"),
        ({"gate": torch.zeros(32)}, r"the gate has the shape \(32,\)"),
        ({"scale": float("nan")}, "the scale is nan: it must be finite"),
        ({"scale": float("inf")}, "the scale is inf"),
        ({"k": torch.zeros(2, 5, 16, dtype=torch.float16)}, "q, k and v are torch.float32, torch.float16"),
        ({"v": torch.zeros(2, 5, 32, device="meta")}, "q is on cpu and v on meta: move them to one device"),
    ],
)
def test_attention_refuses(change: dict[str, Any], message: str) -> None:
    """Wrong ranks, sizes that do not go together, mixed dtypes and devices, a scale that is no number."""
    with pytest.raises(ValueError, match=message):
        attention(**tokens(**change))


def norms(*widths: int) -> list[BatchNormParameters]:
    """Return normalisations of these widths."""
    vectors = [torch.ones(width) for width in widths]
    return [BatchNormParameters(vector, vector, vector, vector, 1e-5) for vector in vectors]


def pyramid(**change: Any) -> dict[str, Any]:
    """Return good arguments of the ASPP, some of them changed."""
    good = {
        "x": torch.zeros(2, 64, 4, 5),
        "branch_weights": [torch.zeros(64, 64, 1, 1), torch.zeros(64, 64, 3, 3)],
        "pool_weight": torch.zeros(64, 64, 1, 1),
        "project_weight": torch.zeros(64, 192, 1, 1),
        "norms": norms(64, 64, 64, 64),
        "rates": (1, 2),
        "training": True,
    }
    return {**good, **change}


def weights(*last: Tensor) -> list[Tensor]:
    """Return the weights of a 1 x 1 branch, and others."""
    return [torch.zeros(64, 64, 1, 1), *last]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(64, 4, 5)},
            r"x has the shape \(64, 4, 5\): the ASPP takes \(batch, channels, height, width\)",
        ),
        ({"x": torch.zeros(2, 64, 0, 5)}, "none of them 0"),
        ({"x": torch.zeros(1, 64, 4, 5)}, "one image a batch: use a batch size of 2 or more"),
        ({"x": torch.zeros(2, 32, 4, 5)}, r"a weight has the shape \(64, 64, 1, 1\)"),
        ({"branch_weights": weights(torch.zeros(64, 64, 2, 2))}, "odd kernels"),
        ({"branch_weights": weights(torch.zeros(32, 64, 3, 3))}, r"it takes \(64, 64, 3, 3\)"),
        ({"branch_weights": weights()}, "1 branches come with 2 rates and 4 normalisations"),
        ({"rates": (1,)}, "2 branches come with 1 rates"),
        ({"rates": (1, 0)}, "a rate is 0: rates are 1 or more"),
        ({"norms": norms(64, 64, 64, 32)}, r"a normalisation has \(32,\) on cpu: it takes \(64,\)"),
        ({"norms": norms(32, 96, 64, 64)}, r"a normalisation has \(32,\)"),
        ({"norms": norms(64, 1, 64, 64)}, r"a normalisation has \(1,\)"),
        ({"project_weight": torch.zeros(64, 128, 1, 1)}, r"it takes \(64, 192, 1, 1\)"),
        (
            {"pool_weight": torch.zeros(64, 64, 1, 1, dtype=torch.float64)},
            "x is torch.float32 and a weight torch.float64",
        ),
        ({"pool_weight": torch.zeros(64, 64, 1, 1, device="meta")}, "x is on cpu and a weight on meta"),
    ],
)
def test_the_aspp_refuses(change: dict[str, Any], message: str) -> None:
    """Wrong ranks, sizes that do not go together, mixed dtypes and devices, a single image in training."""
    with pytest.raises(ValueError, match=message):
        aspp(**pyramid(**change))


def test_good_input_is_taken() -> None:
    """What the other tests change is right before."""
    assert attention(**tokens()).shape == (2, 6, 32)
    assert aspp(**pyramid())[0].shape == (2, 64, 4, 5)
