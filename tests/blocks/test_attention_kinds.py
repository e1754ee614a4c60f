"""Each kind of attention against its paper's sentence, written as loops over the positions of a small map."""

import math

import pytest
import torch
from torch import Tensor, nn

from kitsattn.blocks.attention import AttentionKind, ObjectContext, SelfAttention, build_attention
from kitsattn.blocks.criss_cross import CrissCrossAttention
from kitsattn.blocks.interlaced import InterlacedAttention
from kitsattn.blocks.pointwise import PointwiseAttention

HEIGHT, WIDTH, CHANNELS, KEY_CHANNELS = 3, 5, 16, 4

Positions = dict[tuple[int, int], Tensor]


def positions(x: Tensor) -> Positions:
    """Return the features of each position of a map without a batch."""
    return {(row, column): x[:, row, column] for row in range(x.shape[1]) for column in range(x.shape[2])}


def convolved(convolution: nn.Module, features: Positions) -> Positions:
    """Apply a 1 x 1 convolution at each position."""
    assert isinstance(convolution, nn.Conv2d)
    bias = 0 if convolution.bias is None else convolution.bias
    return {place: convolution.weight[:, :, 0, 0] @ feature + bias for place, feature in features.items()}


def normalised(norm: nn.Module, features: Positions) -> Positions:
    """Apply a batch normalisation by its running statistics at each position, and clip at zero."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return {
        place: ((feature - norm.running_mean) * scale + norm.bias).clamp(min=0) for place, feature in features.items()
    }


def pooled_positions(features: Positions) -> Positions:
    """Return the maxima of 2 x 2 positions, of fewer at the lower and right edges."""
    windows: dict[tuple[int, int], list[Tensor]] = {}
    for (row, column), feature in features.items():
        windows.setdefault((row // 2, column // 2), []).append(feature)
    return {place: torch.stack(window).amax(0) for place, window in windows.items()}


def averages(queries: Positions, keys: Positions, values: Positions, scale: float) -> Positions:
    """Return for each position the average of all values, weighted by the softmax of the scaled scores."""
    result = {}
    for place, query in queries.items():
        scores = {other: scale * (query @ key).item() for other, key in keys.items()}
        highest = max(scores.values())
        weights = {other: math.exp(score - highest) for other, score in scores.items()}
        total = sum(weights.values())
        result[place] = torch.stack([weights[other] / total * values[other] for other in values]).sum(0)
    return result


def split(features: Positions, *sizes: int) -> list[Positions]:
    """Cut the features of each position into parts."""
    parts: list[Positions] = []
    start = 0
    for size in sizes:
        parts.append({place: feature[start : start + size] for place, feature in features.items()})
        start += size
    return parts


def randomised(block: nn.Module) -> nn.Module:
    """Give every parameter and running statistic a value of its own: fresh gates are zero."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.5
            tensor.data.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return block


def test_kinds_are_the_published_ones() -> None:
    """Channels and scales of queries and keys are those of the papers."""
    full, pam, ocnet = (build_attention(kind, 64, 32) for kind in ("full", "pam", "ocnet"))
    assert isinstance(full, SelfAttention)
    assert (full.sizes, full.scale) == ((32, 32, 64), 32**-0.5)
    assert isinstance(pam, SelfAttention)
    assert (pam.sizes, pam.scale) == ((8, 8, 64), 1.0)
    assert isinstance(ocnet, ObjectContext)
    assert (ocnet.sizes, ocnet.scale) == ((32, 32, 32), 32**-0.5)


@pytest.mark.parametrize("pooled", ["all keys", "pooled keys"])
@pytest.mark.parametrize("kind", ["full", "pam"])
def test_gated_kinds_add_the_average_through_a_gate(kind: AttentionKind, pooled: str) -> None:
    """The position attention module scales no scores; the non-local block scales them by the root of the key size."""
    block = randomised(build_attention(kind, CHANNELS, KEY_CHANNELS, pooled=pooled == "pooled keys")).double()
    assert isinstance(block, SelfAttention)
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)
    keys_size = KEY_CHANNELS if kind == "full" else CHANNELS // 8
    scale = keys_size**-0.5 if kind == "full" else 1.0

    out = block(x)

    for image, result in zip(x, out, strict=True):
        features = positions(image)
        projected = convolved(block.projection, features)
        queries, keys, values = split(projected, keys_size, keys_size, CHANNELS)
        if pooled == "pooled keys":
            keys, values = pooled_positions(keys), pooled_positions(values)
        for place, average in averages(queries, keys, values, scale).items():
            torch.testing.assert_close(result[:, *place], features[place] + block.gate * average)


@pytest.mark.parametrize("pooled", ["all keys", "pooled keys"])
def test_object_context_joins_the_average_with_the_input(pooled: str) -> None:
    """Queries and keys are normalised and clipped; average and input are concatenated and convolved."""
    block = randomised(build_attention("ocnet", CHANNELS, KEY_CHANNELS, pooled=pooled == "pooled keys")).double().eval()
    assert isinstance(block, ObjectContext)
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)
    half = CHANNELS // 2

    out = block(x)

    for image, result in zip(x, out, strict=True):
        features = positions(image)
        both, values = split(convolved(block.projection, features), 2 * half, half)
        queries, keys = split(normalised(block.norm, both), half, half)
        if pooled == "pooled keys":
            keys, values = pooled_positions(keys), pooled_positions(values)
        context = convolved(block.context, averages(queries, keys, values, half**-0.5))
        joined = {place: torch.cat([context[place], features[place]]) for place in features}
        for place, wanted in normalised(block.join_norm, convolved(block.join, joined)).items():
            torch.testing.assert_close(result[:, *place], wanted)


@pytest.mark.parametrize("kind", ["full", "pam"])
def test_a_fresh_gated_block_passes_its_input_on(kind: AttentionKind) -> None:
    """With pooled keys too, on a map of one position too."""
    for pooled in (False, True):
        x = torch.randn(2, CHANNELS, 1, 1)
        assert torch.equal(build_attention(kind, CHANNELS, KEY_CHANNELS, pooled=pooled)(x), x)


def test_a_fresh_object_context_does_not_see_other_positions() -> None:
    """Its last convolution of the average is zero at the start."""
    block = build_attention("ocnet", CHANNELS, KEY_CHANNELS).eval()
    x = torch.randn(1, CHANNELS, HEIGHT, WIDTH, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[0, :, 0, 0].sum(), x)
    assert gradient[0, :, 0, 0].abs().sum() > 0
    assert gradient[0, :, 1:].abs().sum() == 0


@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_criss_cross_averages_over_row_and_column(recurrence: int) -> None:
    """The position itself counts once, no score is scaled, and all passes share their weights."""
    block = randomised(build_attention("criss-cross", CHANNELS, KEY_CHANNELS, recurrence=recurrence)).double()
    assert isinstance(block, CrissCrossAttention)
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)
    keys_size = CHANNELS // 8

    out = block(x)

    for image, result in zip(x, out, strict=True):
        features = positions(image)
        for _ in range(recurrence):
            queries, keys, values = split(convolved(block.projection, features), keys_size, keys_size, CHANNELS)
            crossed = {}
            for place, query in queries.items():
                cross = [other for other in keys if other[0] == place[0] or other[1] == place[1]]
                average = averages(
                    {place: query}, {one: keys[one] for one in cross}, {one: values[one] for one in cross}, 1.0
                )
                crossed[place] = features[place] + block.gate * average[place]
            features = crossed
        for place, wanted in features.items():
            torch.testing.assert_close(result[:, *place], wanted)


@pytest.mark.parametrize("side", [2, 4, 8])
def test_interlaced_averages_over_far_positions_and_then_over_near_ones(side: int) -> None:
    """Also on maps that are no multiple of a block, and on maps that are smaller than one: padding has no weight."""
    block = randomised(build_attention("interlaced", CHANNELS, KEY_CHANNELS, block=side)).double()
    assert isinstance(block, InterlacedAttention)
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)

    def place_in_block(place: tuple[int, int]) -> tuple[int, int]:
        return place[0] % side, place[1] % side

    def block_of(place: tuple[int, int]) -> tuple[int, int]:
        return place[0] // side, place[1] // side

    out = block(x)

    for image, result in zip(x, out, strict=True):
        features = positions(image)
        for attend, group in ((block.far, place_in_block), (block.near, block_of)):
            projected = {place: attend.projection(feature) for place, feature in features.items()}
            queries, keys, values = split(projected, KEY_CHANNELS - 1, KEY_CHANNELS - 1, CHANNELS)
            attended = {}
            for place, query in queries.items():
                members = [other for other in keys if group(other) == group(place)]
                average = averages(
                    {place: query},
                    {one: keys[one] for one in members},
                    {one: values[one] for one in members},
                    KEY_CHANNELS**-0.5,
                )
                attended[place] = features[place] + attend.gate * average[place]
            features = attended
        for place, wanted in features.items():
            torch.testing.assert_close(result[:, *place], wanted)


@pytest.mark.parametrize("reach", [1, 2, 4, 7])
def test_psa_collects_and_distributes_by_predicted_weights(reach: int) -> None:
    """With a reach of 4 all positions of a map of 3 x 5 see each other; with 7 the outer offsets are not used."""
    block = randomised(build_attention("psa", CHANNELS, KEY_CHANNELS, reach=reach)).double().eval()
    assert isinstance(block, PointwiseAttention)
    x = torch.randn(2, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)
    side = 2 * reach + 1

    out = block(x)

    for image, result in zip(x, out, strict=True):
        features = positions(image)
        both: list[Positions] = []
        for branch, distributes in ((block.collect, False), (block.distribute, True)):
            reduced = normalised(branch.reduce[1], convolved(branch.reduce[0], features))
            maps = convolved(branch.weights, normalised(branch.hidden[1], convolved(branch.hidden[0], reduced)))
            sums = {}
            for place in features:
                scores = {}
                for other in features:
                    down, right = other[0] - place[0], other[1] - place[1]
                    if max(abs(down), abs(right)) > reach:
                        continue
                    # What a position distributes it predicts itself, by the offset of the one that receives it.
                    source, sign = (other, -1) if distributes else (place, 1)
                    scores[other] = maps[source][(sign * down + reach) * side + sign * right + reach]
                weights = torch.stack(list(scores.values())).softmax(0)
                sums[place] = sum(
                    (w * reduced[other] for w, other in zip(weights, scores, strict=True)), torch.zeros(())
                )
            both.append(sums)
        context = convolved(block.context, {place: torch.cat([part[place] for part in both]) for place in features})
        joined = {place: torch.cat([context[place], features[place]]) for place in features}
        for place, wanted in normalised(block.join_norm, convolved(block.join, joined)).items():
            torch.testing.assert_close(result[:, *place], wanted)


@pytest.mark.parametrize("kind", ["criss-cross", "interlaced"])
def test_fresh_sparse_blocks_pass_their_input_on(kind: AttentionKind) -> None:
    """Their gates are zero at the start; on one row, one column and one position too."""
    for shape in ((1, 1), (1, 9), (9, 1)):
        x = torch.randn(2, CHANNELS, *shape)
        assert torch.equal(build_attention(kind, CHANNELS, KEY_CHANNELS)(x), x)


@pytest.mark.parametrize("kind", ["criss-cross", "interlaced", "psa"])
def test_sparse_kinds_refuse_pooled_keys(kind: AttentionKind) -> None:
    """Their groups are of single positions."""
    with pytest.raises(ValueError, match="cannot be pooled: set pooled_keys to false"):
        build_attention(kind, CHANNELS, KEY_CHANNELS, pooled=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_padding_has_no_weight_in_half_precision(dtype: torch.dtype) -> None:
    """What is attended to is the same whatever lies beyond the map."""
    block = randomised(build_attention("interlaced", CHANNELS, KEY_CHANNELS, block=4)).to(dtype)
    assert isinstance(block, InterlacedAttention)
    tokens = torch.randn(3, 16, CHANNELS).to(dtype)
    inside = torch.ones(3, 16, 1, dtype=dtype)
    inside[:, 10:] = 0
    other = torch.where(inside.bool(), tokens, 100 * torch.randn(3, 16, CHANNELS).to(dtype))
    assert torch.equal(block.far(tokens, inside)[:, :10], block.far(other, inside)[:, :10])
