"""The paper's network and the registry."""

from dataclasses import replace

import pytest
import torch

from kitsattn.errors import KitsattnError
from kitsattn.models import build_model, model_entry, model_names
from kitsattn.models.attention_deeplab import AttentionDeeplab, AttentionDeeplabConfig
from kitsattn.models.registry import register_model

TINY = "attention-deeplab-tiny"


def test_the_paper_names_are_registered() -> None:
    """Names survive: checkpoints store them."""
    assert model_names() == [f"attention-deeplab-{size}" for size in ("r50", "r101", "r34", "r18", "r18-half", "tiny")]
    assert model_entry("attention-deeplab-r50").config == AttentionDeeplabConfig()


# Parameters without the classifier: torchvision's ResNet-18 11 176 512, -34 21 284 672, -50 23 508 032,
# -101 42 500 160, of which the first convolution has 9 408 for 3 channels and 15 680 for 5.
@pytest.mark.parametrize(
    ("name", "published"),
    [("r18", 11_176_512), ("r34", 21_284_672), ("r50", 23_508_032), ("r101", 42_500_160)],
)
def test_the_encoders_have_the_published_number_of_parameters(name: str, published: int) -> None:
    """ResNet is ResNet, down to the last parameter."""
    with torch.device("meta"):
        encoder = build_model(f"attention-deeplab-{name}").get_submodule("encoder")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == published + 15_680 - 9_408


def test_rates_double_at_output_stride_eight() -> None:
    """As DeepLabv3 has it."""
    model = AttentionDeeplab(AttentionDeeplabConfig(output_stride=8))
    assert model.aspp.rates == (1, 12, 24, 36)
    assert AttentionDeeplab(AttentionDeeplabConfig()).aspp.rates == (1, 6, 12, 18)


def test_the_decoder_is_separable_unless_told_otherwise() -> None:
    """Dense convolutions have many times the parameters."""
    sizes = {}
    for separable in (True, False):
        config = replace(AttentionDeeplabConfig(), separable_decoder=separable)
        with torch.device("meta"):
            decoder = AttentionDeeplab(config).decoder
        sizes[separable] = sum(parameter.numel() for parameter in decoder.refine.parameters())
    assert sizes[False] > 6 * sizes[True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": 4}, "slices must be odd"),
        ({"slices": -1}, "slices must be odd"),
        ({"slab_step_mm": 0.0}, "slab_step_mm must be positive"),
        ({"classes": 1}, "classes must be 2 or more"),
        ({"normalizer_channels": []}, "normalizer_channels must be positive"),
        ({"encoder_depths": [1, 0, 1, 1]}, "encoder_depths must be positive"),
        ({"encoder_depths": [1, 1, 2000, 1]}, "encoder_depths must be at most 1000"),
        ({"encoder_width": 2**31}, "encoder_width must be at most 65536"),
        ({"aspp_channels": 2**70}, "aspp_channels must be at most 65536"),
        ({"aspp_rates": [6, 2**40]}, "aspp_rates must be at most 65536"),
        ({"slices": 2**40 + 1}, "slices must be at most 65536"),
        ({"output_stride": 32}, "output_stride must be one of 8, 16"),
        ({"attention": "all"}, "attention must be one of 'full', 'pam', 'ocnet', 'criss-cross'"),
        ({"attention": "psa", "pooled_keys": True}, "attention 'psa' cannot be pooled: set pooled_keys to false"),
        ({"attention": "interlaced", "key_channels": 1}, "key_channels must be 2 or more for attention 'interlaced'"),
        ({"attention_reach": 500}, "attention_reach must be at most 127"),
        ({"dropout": 0.5}, "unknown key 'dropout'"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(change: dict[str, object], message: str) -> None:
    """Each with its name and value."""
    with pytest.raises(KitsattnError, match=message):
        model_entry(TINY).read_config(change, "here")


def test_names_are_unique_and_unknown_ones_are_answered_with_the_known() -> None:
    """A second registration is a programming error, an unknown name a user's."""
    with pytest.raises(ValueError, match="registered already"):
        register_model(TINY, AttentionDeeplabConfig(), AttentionDeeplab)
    with pytest.raises(KitsattnError, match=f"choose one of .*{TINY}"):
        build_model("unet")
