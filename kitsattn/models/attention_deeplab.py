"""The paper's network: a normalisation U-Net and an attention DeepLabv3+ in tandem, trained end to end.

Wen et al., Segmentation of kidney lesions with attention model based on Deeplab, KiTS19 challenge, 2019.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import interpolate

from kitsattn.blocks.aspp import ASPP
from kitsattn.blocks.attention import POOLED_KINDS, AttentionKind, build_attention
from kitsattn.blocks.decoder import Decoder
from kitsattn.blocks.normalizer import Normalizer
from kitsattn.blocks.resnet import BlockKind, ResNetEncoder
from kitsattn.models.registry import register_model

_MOST_BLOCKS = 1000
"""A damaged file may ask for more, and building them would take forever."""
_MOST_CHANNELS = 65_536
"""Products of two such numbers and of a kernel's size still fit into 64 bits."""
_MOST = {"encoder_depths": _MOST_BLOCKS, "attention_recurrence": _MOST_BLOCKS, "attention_reach": 127}
"""Of a setting, where it is not `_MOST_CHANNELS`."""


@dataclass(frozen=True, kw_only=True)
class AttentionDeeplabConfig:
    """Settings of the network; the defaults are the paper's, or this project's where the paper is silent.

    Attributes:
        slices: Slices in a slab, odd; the centre one is predicted.
        slab_step_mm: Distance between the slices of a slab in mm; None takes adjacent slices.
        classes: Channels of the output, background included.
        normalizer_channels: Channels of each level of the normalisation U-Net.
        encoder_block: Residual block of the encoder.
        encoder_depths: Blocks in each of its four stages.
        encoder_width: Channels of its stem.
        output_stride: 16, or 8 with doubled rates.
        aspp_channels: Channels of each ASPP branch and of the context.
        aspp_rates: Dilation of the 3 x 3 branches at output stride 16.
        attention: Which self-attention stands after the ASPP (`blocks.attention`).
        key_channels: Channels of the queries and keys of `full` and `interlaced`.
        pooled_keys: Whether its keys and values are the maxima of 2 x 2 positions; for `full`, `pam` and `ocnet`.
        attention_recurrence: How often `criss-cross` is applied.
        attention_block: Side of the blocks of `interlaced`, in positions.
        attention_reach: Greatest offset of `psa` in rows and columns, in positions.
        low_level_channels: Channels the stride-4 features are reduced to.
        decoder_channels: Channels of the decoder's convolutions.
        separable_decoder: Whether these are depthwise separable.
    """

    slices: int = 5
    slab_step_mm: float | None = None
    classes: int = 3
    normalizer_channels: tuple[int, ...] = (16, 32, 64, 128)
    encoder_block: BlockKind = "bottleneck"
    encoder_depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    encoder_width: int = 64
    output_stride: Literal[8, 16] = 16
    aspp_channels: int = 256
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    attention: AttentionKind = "full"
    key_channels: int = 64
    pooled_keys: bool = False
    attention_recurrence: int = 2
    attention_block: int = 8
    attention_reach: int = 31
    low_level_channels: int = 48
    decoder_channels: int = 256
    separable_decoder: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one of them cannot be built.
        """
        if self.slices < 1 or self.slices % 2 == 0:
            msg = f"slices must be odd and positive, so that a slab has a centre, got {self.slices}"
            raise ValueError(msg)
        if self.slab_step_mm is not None and not self.slab_step_mm > 0:
            msg = f"slab_step_mm must be positive, or null for adjacent slices, got {self.slab_step_mm}"
            raise ValueError(msg)
        if self.classes < 2:  # noqa: PLR2004 - background and something
            msg = f"classes must be 2 or more, background included, got {self.classes}"
            raise ValueError(msg)
        counts = {
            "normalizer_channels": self.normalizer_channels,
            "slices": (self.slices,),
            "classes": (self.classes,),
            "encoder_depths": self.encoder_depths,
            "encoder_width": (self.encoder_width,),
            "aspp_channels": (self.aspp_channels,),
            "aspp_rates": self.aspp_rates,
            "key_channels": (self.key_channels,),
            "attention_recurrence": (self.attention_recurrence,),
            "attention_block": (self.attention_block,),
            "attention_reach": (self.attention_reach,),
            "low_level_channels": (self.low_level_channels,),
            "decoder_channels": (self.decoder_channels,),
        }
        for name, values in counts.items():
            if not values or min(values) < 1:
                msg = f"{name} must be positive, got {values}"
                raise ValueError(msg)
            most = _MOST.get(name, _MOST_CHANNELS)
            if max(values) > most:
                msg = f"{name} must be at most {most}, got {values}"
                raise ValueError(msg)
        if self.pooled_keys and self.attention not in POOLED_KINDS:
            msg = f"the keys of attention {self.attention!r} cannot be pooled: set pooled_keys to false"
            raise ValueError(msg)
        if self.attention == "interlaced" and self.key_channels < 2:  # noqa: PLR2004 - one is for padding
            msg = f"key_channels must be 2 or more for attention 'interlaced', got {self.key_channels}"
            raise ValueError(msg)


class AttentionDeeplab(nn.Module):
    """Normalizer, ResNet encoder, ASPP, self-attention, decoder.

    Args:
        config: The numbers of every part.
    """

    def __init__(self, config: AttentionDeeplabConfig) -> None:
        """Build the parts."""
        super().__init__()
        channels = config.aspp_channels
        rates = [rate * (16 // config.output_stride) for rate in config.aspp_rates]
        self.normalizer = Normalizer(config.slices, config.normalizer_channels)
        self.encoder = ResNetEncoder(
            config.slices, config.encoder_block, config.encoder_depths, config.encoder_width, config.output_stride
        )
        self.aspp = ASPP(self.encoder.out_channels, channels, rates)
        self.attention = build_attention(
            config.attention,
            channels,
            config.key_channels,
            pooled=config.pooled_keys,
            recurrence=config.attention_recurrence,
            block=config.attention_block,
            reach=config.attention_reach,
        )
        self.decoder = Decoder(
            low_level_channels=self.encoder.low_level_channels,
            reduced_channels=config.low_level_channels,
            context_channels=channels,
            channels=config.decoder_channels,
            classes=config.classes,
            separable=config.separable_decoder,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Predict the centre slice of each slab.

        Args:
            x: Prepared intensities, (batch, slices, height, width); any height and width.

        Returns:
            Logits, (batch, classes, height, width).
        """
        low_level, features = self.encoder(self.normalizer(x))
        logits = self.decoder(low_level, self.attention(self.aspp(features)))
        return interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


_R50 = AttentionDeeplabConfig()

register_model("attention-deeplab-r50", _R50, AttentionDeeplab)
register_model("attention-deeplab-r101", replace(_R50, encoder_depths=(3, 4, 23, 3)), AttentionDeeplab)
register_model(
    "attention-deeplab-r34", replace(_R50, encoder_block="basic", encoder_depths=(3, 4, 6, 3)), AttentionDeeplab
)
register_model(
    "attention-deeplab-r18", replace(_R50, encoder_block="basic", encoder_depths=(2, 2, 2, 2)), AttentionDeeplab
)
register_model(
    "attention-deeplab-r18-half",
    replace(
        _R50,
        slab_step_mm=5.0,
        normalizer_channels=(8, 16, 32, 64),
        encoder_block="basic",
        encoder_depths=(2, 2, 2, 2),
        encoder_width=32,
        aspp_channels=128,
        key_channels=32,
        decoder_channels=128,
    ),
    AttentionDeeplab,
)
register_model(
    "attention-deeplab-tiny",
    AttentionDeeplabConfig(
        normalizer_channels=(8, 16, 32),
        encoder_block="basic",
        encoder_depths=(1, 1, 1, 1),
        encoder_width=24,
        aspp_channels=64,
        aspp_rates=(2, 4, 6),
        key_channels=16,
        low_level_channels=24,
        decoder_channels=64,
    ),
    AttentionDeeplab,
)
