"""The definition of the ASPP operation."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from kitsattn.kernels.aspp import BatchNormParameters, aspp

RATES = (1, 2, 5)


def _modules(
    in_channels: int = 3, channels: int = 4
) -> tuple[list[nn.Conv2d], nn.Conv2d, nn.Conv2d, list[nn.BatchNorm2d]]:
    torch.manual_seed(1)
    sizes = [1] + [3] * (len(RATES) - 1)
    branches = [
        nn.Conv2d(in_channels, channels, size, padding=rate * (size // 2), dilation=rate, bias=False)
        for size, rate in zip(sizes, RATES, strict=True)
    ]
    pool = nn.Conv2d(in_channels, channels, 1, bias=False)
    project = nn.Conv2d(channels * (len(RATES) + 1), channels, 1, bias=False)
    norms = [nn.BatchNorm2d(channels) for _ in range(len(RATES) + 2)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    for module in (*branches, pool, project, *norms):
        module.double()
    return branches, pool, project, norms


@pytest.mark.parametrize("training", [True, False])
def test_it_equals_the_published_block(*, training: bool) -> None:
    """Branches, resized pooled branch, concatenation and projection as separate modules give the same numbers."""
    branches, pool, project, norms = _modules()
    for norm in norms:
        norm.train(training)
    x = torch.randn(3, 3, 7, 9, dtype=torch.float64)
    parameters = [
        BatchNormParameters(n.weight, n.bias, n.running_mean.clone(), n.running_var.clone(), n.eps)  # type: ignore[union-attr]
        for n in norms
    ]
    got, statistics = aspp(
        x, [b.weight for b in branches], pool.weight, project.weight, parameters, rates=RATES, training=training
    )

    maps = [norm(branch(x)).relu() for branch, norm in zip(branches, norms, strict=False)]
    pooled = norms[-2](pool(x.mean((2, 3), keepdim=True))).relu()
    maps.append(interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=False))
    wanted = norms[-1](project(torch.cat(maps, 1))).relu()
    torch.testing.assert_close(got, wanted)
    assert len(statistics) == (len(norms) if training else 0)


def test_the_statistics_are_mean_and_biased_variance() -> None:
    """Each entry is what torch computes over batch and space of that branch's convolution."""
    branches, pool, project, norms = _modules()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    parameters = [BatchNormParameters(n.weight, n.bias, n.running_mean, n.running_var, n.eps) for n in norms]  # type: ignore[arg-type]
    _, statistics = aspp(
        x, [b.weight for b in branches], pool.weight, project.weight, parameters, rates=RATES, training=True
    )
    for convolution, seen in zip(branches, statistics, strict=False):
        var, mean = torch.var_mean(convolution(x), dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(seen.mean, mean)
        torch.testing.assert_close(seen.var, var)
        assert seen.values == 60
    assert statistics[-2].values == 2


def test_one_image_cannot_be_trained() -> None:
    """The pooled branch would have one value a channel: the error says what to do."""
    branches, pool, project, norms = _modules()
    parameters = [BatchNormParameters(n.weight, n.bias, n.running_mean, n.running_var, n.eps) for n in norms]  # type: ignore[arg-type]
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="batch size of 2 or more"):
        aspp(x, [b.weight for b in branches], pool.weight, project.weight, parameters, rates=RATES, training=True)
