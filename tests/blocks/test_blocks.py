"""The network's parts."""

from typing import Any

import pytest
import torch
from torch import nn

from kitsattn.blocks.aspp import ASPP
from kitsattn.blocks.attention import SelfAttention, build_attention
from kitsattn.blocks.decoder import Decoder
from kitsattn.blocks.normalizer import Normalizer
from kitsattn.blocks.resnet import BlockKind, ResNetEncoder
from kitsattn.errors import KitsattnError

DEPTHS = {"basic": (2, 2, 2, 2), "bottleneck": (3, 4, 6, 3)}


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (7, 5)])
def test_the_normalizer_keeps_any_shape(size: tuple[int, int]) -> None:
    """Odd heights and widths come back as they were."""
    x = torch.randn(2, 5, *size)
    assert Normalizer(5, (4, 8, 16))(x).shape == x.shape


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (7, 5)])
def test_the_normalizer_gives_the_same_without_gradients(size: tuple[int, int]) -> None:
    """What is spared where no gradient is wanted changes no bit."""
    model = Normalizer(5, (4, 8, 16)).eval()
    x = torch.randn(2, 5, *size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = model(x)
    assert torch.equal(found, model(x))


def test_the_normalizer_joins_skips_with_what_comes_from_below() -> None:
    """Both the full-resolution skip and the lowest level reach the output."""
    torch.manual_seed(0)  # else now and then a ReLU lets nothing through
    model = Normalizer(3, (4, 8, 16)).eval()
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    centre = model(x)[0, 0, 8, 8]
    (gradient,) = torch.autograd.grad(centre, x)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().squeeze(1)
    assert rows.min() <= 1
    assert rows.max() >= 14


def test_the_decoder_gives_its_logits_plane_by_plane_outside_training() -> None:
    """The same values in either order."""
    decoder = Decoder(
        low_level_channels=8, reduced_channels=4, context_channels=8, channels=8, classes=3, separable=True
    ).eval()
    low_level, context = (torch.randn(2, 8, n, n).to(memory_format=torch.channels_last) for n in (16, 4))
    with torch.no_grad():
        logits = decoder(low_level, context)
    assert logits.is_contiguous()
    for module in decoder.modules():
        module.training = isinstance(module, Decoder)
    assert torch.equal(decoder(low_level, context), logits)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_the_encoder_has_the_output_stride_it_is_asked_for(kind: BlockKind, stride: int) -> None:
    """The first stage lies at stride 4, the last at 8 or 16."""
    encoder = ResNetEncoder(5, kind, (1, 1, 1, 1), 8, 8 if stride == 8 else 16)
    low, high = encoder(torch.randn(1, 5, 64, 96))
    assert low.shape == (1, encoder.low_level_channels, 16, 24)
    assert high.shape == (1, encoder.out_channels, 64 // stride, 96 // stride)


def test_dilation_sees_what_the_strided_encoder_sees() -> None:
    """At output stride 8 the encoder of stride 32 is reproduced at its positions: dilation stands in for stride."""
    torch.manual_seed(0)
    dilated = ResNetEncoder(3, "basic", (1, 1, 1, 1), 4, 8).eval()
    plain = ResNetEncoder(3, "basic", (1, 1, 1, 1), 4, 16).eval()
    plain.load_state_dict(dilated.state_dict())
    block: Any = plain.get_submodule("layer4.0")
    # The published network strides in every stage: put the last stage's stride back.
    for convolution in (block.conv1, block.conv2):
        convolution.dilation = convolution.padding = (1, 1)
    block.conv1.stride = block.downsample[0].stride = (2, 2)
    x = torch.randn(1, 3, 256, 256)
    torch.testing.assert_close(dilated(x)[1][:, :, ::4, ::4], plain(x)[1], rtol=1e-4, atol=1e-4)


# Names and shapes of torchvision's ResNets, from their published state dicts.
PUBLISHED = {
    "basic": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.1.conv2.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.bias": (128,),
        "layer4.1.bn2.weight": (512,),
    },
    "bottleneck": {
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.2.conv3.weight": (256, 64, 1, 1),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.bn3.running_mean": (2048,),
    },
}


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_state_dict_names_are_those_of_torchvision(kind: BlockKind) -> None:
    """Published weights find their places by name."""
    state = ResNetEncoder(3, kind, DEPTHS[kind], 64, 16).state_dict()
    for name, shape in PUBLISHED[kind].items():
        assert tuple(state[name].shape) == shape
    assert len(state) == {"basic": 120, "bottleneck": 318}[kind]


def test_published_weights_load_and_the_first_convolution_is_adapted() -> None:
    """Three colour channels become five slices with the same response to a constant image."""
    published = ResNetEncoder(3, "basic", (1, 1, 1, 1), 8, 16)
    encoder = ResNetEncoder(5, "basic", (1, 1, 1, 1), 8, 16)
    weights = {**published.state_dict(), "fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
    sentence = encoder.load_published(weights)
    assert "3 channels" in sentence
    assert "5" in sentence
    torch.testing.assert_close(encoder.conv1.weight.sum((1, 2, 3)), published.conv1.weight.sum((1, 2, 3)))
    assert torch.equal(encoder.get_parameter("layer4.0.conv1.weight"), published.get_parameter("layer4.0.conv1.weight"))


def test_weights_of_another_network_are_refused() -> None:
    """Missing, unknown and misshapen weights are each named, and nothing is loaded."""
    encoder = ResNetEncoder(3, "basic", (1, 1, 1, 1), 8, 16)
    deeper = ResNetEncoder(3, "basic", (2, 1, 1, 1), 8, 16).state_dict()
    wider = ResNetEncoder(3, "basic", (1, 1, 1, 1), 16, 16).state_dict()
    before = encoder.conv1.weight.clone()
    with pytest.raises(KitsattnError, match=r"have the unknown 'layer1\.1\.bn1\.bias'"):
        encoder.load_published(deeper)
    with pytest.raises(KitsattnError, match=r"lack 'bn1\.bias'"):
        encoder.load_published({})
    with pytest.raises(KitsattnError, match=r"has the shape \(16, 3, 7, 7\), the network needs \(8, 3, 7, 7\)"):
        encoder.load_published(wider)
    assert torch.equal(encoder.conv1.weight, before)


def test_running_statistics_follow_torch() -> None:
    """After two batches the ASPP's running statistics equal those of plain BatchNorm2d modules fed the same maps."""
    torch.manual_seed(0)
    block = ASPP(3, 4, (2, 3)).train()
    plain = [nn.BatchNorm2d(4) for _ in block.norms]
    for _ in range(2):
        x = torch.randn(2, 3, 6, 5)
        block(x)
        for convolution, norm in zip(block.branches, plain, strict=False):
            norm(convolution(x))
        plain[-2](block.pool(x.mean((2, 3), keepdim=True)))
    for mine, wanted in zip(list(block.norms)[:-1], plain[:-1], strict=True):
        torch.testing.assert_close(mine.running_mean, wanted.running_mean)
        torch.testing.assert_close(mine.running_var, wanted.running_var)
        assert mine.num_batches_tracked == 2


def test_a_fresh_attention_block_passes_its_input_on_and_still_learns() -> None:
    """The gate is zero at the start, but receives a gradient."""
    block = SelfAttention(8, 4)
    x = torch.randn(2, 8, 5, 3)
    y = block(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert block.gate.grad is not None
    assert block.gate.grad.abs() > 0


def test_an_open_gate_lets_every_position_see_every_other() -> None:
    """The output at one corner depends on the opposite corner."""
    block = SelfAttention(8, 4)
    nn.init.ones_(block.gate)
    x = torch.randn(1, 8, 5, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[0, :, 0, 0].sum(), x)
    assert gradient[0, :, -1, -1].abs().sum() > 0


def test_attention_can_be_left_out_by_config() -> None:
    """The kind `none` has no parameters."""
    assert list(build_attention("none", 8, 4).parameters()) == []
