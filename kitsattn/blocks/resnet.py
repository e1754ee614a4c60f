"""The ResNet encoder, with strides of the last stages replaced by dilation.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, with the stride on the 3 x 3 convolution of a
bottleneck as torchvision has it. The state-dict names are those of torchvision's ResNet without its classifier, so
that published weights load as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from kitsattn.errors import KitsattnError

BlockKind = Literal["basic", "bottleneck"]

_EXPANSION: Mapping[BlockKind, int] = {"basic": 1, "bottleneck": 4}


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions (basic), or 1 x 1, 3 x 3, 1 x 1 (bottleneck), around a shortcut.

    Args:
        kind: Which of the two.
        in_channels: Channels of the input.
        width: Channels of the 3 x 3 convolutions; the output has `width` (basic) or 4 `width` (bottleneck).
        stride: Stride of the block.
        dilation: Dilation of its first 3 x 3 convolution, the one that strides.
        next_dilation: Dilation of the 3 x 3 convolution behind it, in a basic block.
    """

    CHAINS = (("conv1", "bn1", "relu1"), ("conv2", "bn2", "relu2"), ("conv3", "bn3"))

    def __init__(
        self, kind: BlockKind, in_channels: int, width: int, *, stride: int, dilation: int, next_dilation: int
    ) -> None:
        """Build the convolutions, named as in torchvision."""
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        out_channels = width * _EXPANSION[kind]
        if kind == "basic":
            self.conv1 = _conv3x3(in_channels, width, stride, dilation)
            self.bn1 = nn.BatchNorm2d(width)
            self.relu1 = nn.ReLU(inplace=True)
            self.conv2 = _conv3x3(width, out_channels, 1, next_dilation)
            self.bn2 = nn.BatchNorm2d(out_channels)
            self.convolutions = 2
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.relu1 = nn.ReLU(inplace=True)
            self.conv2 = _conv3x3(width, width, stride, dilation)
            self.bn2 = nn.BatchNorm2d(width)
            self.relu2 = nn.ReLU(inplace=True)
            self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_channels)
            self.convolutions = 3
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.convolutions == 3:  # noqa: PLR2004 - the bottleneck's third
            y = self.bn3(self.conv3(self.relu2(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu(y + shortcut)
        return output


class ResNetEncoder(nn.Module):
    """The four stages behind a stem of stride 4, at an output stride of 8 or 16.

    Args:
        in_channels: Channels of the input, the slices of a slab.
        kind: Residual block.
        depths: Blocks in each of the four stages.
        width: Channels of the stem; the stages have 1, 2, 4, 8 times as many (four times that as bottlenecks).
        output_stride: 16 or 8; stages that would go beyond it dilate their convolutions instead.
    """

    CHAINS = (("conv1", "bn1", "relu", "maxpool"),)

    def __init__(
        self, in_channels: int, kind: BlockKind, depths: Sequence[int], width: int, output_stride: Literal[8, 16]
    ) -> None:
        """Build the stem and the stages, named as in torchvision."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels, stride, dilation = width, 4, 1
        for number, depth in enumerate(depths, start=1):
            step = 1 if number == 1 else 2
            first_dilation = dilation
            if stride * step > output_stride:
                dilation *= step
                step = 1
            stride *= step
            stage_width = width * 2 ** (number - 1)
            blocks = []
            for index in range(depth):
                first = index == 0
                block = ResidualBlock(
                    kind,
                    channels,
                    stage_width,
                    stride=step if first else 1,
                    dilation=first_dilation if first else dilation,
                    next_dilation=dilation,
                )
                blocks.append(block)
                channels = stage_width * _EXPANSION[kind]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.low_level_channels = width * _EXPANSION[kind]
        self.out_channels = channels
        for module in self.modules():
            # On the meta device there is nothing to fill, and trying loads PyTorch's compiler, which takes a second.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch.

        Args:
            x: (batch, in_channels, height, width).

        Returns:
            The first stage's features at stride 4, and the last stage's at the output stride.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        low_level: Tensor = self.get_submodule("layer1")(x)
        x = low_level
        for number in (2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
        return low_level, x

    def load_published(self, weights: Mapping[str, Tensor]) -> str:
        """Load weights published under torchvision's names; the classifier (`fc`) is passed over.

        Where the first convolution was trained on another number of channels, its kernel is averaged over them
        and repeated, scaled to keep the size of the response.

        Args:
            weights: Name to tensor.

        Returns:
            One sentence that says how the first convolution was adapted.

        Raises:
            KitsattnError: If a weight is missing, unknown or of another shape.
        """
        loaded = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
        wanted = self.state_dict()
        counters = {name for name in wanted if name.endswith("num_batches_tracked")}
        missing, unknown = sorted(set(wanted) - set(loaded) - counters), sorted(set(loaded) - set(wanted))
        if missing or unknown:
            problem = f"lack {missing[0]!r}" if missing else f"have the unknown {unknown[0]!r}"
            msg = f"the encoder weights {problem}: take weights of the same ResNet, with torchvision's names"
            raise KitsattnError(msg)
        stem = loaded["conv1.weight"]
        sentence = f"the first convolution was loaded as it is ({stem.shape[1]} channels)"
        channels = self.conv1.in_channels
        if stem.shape[1] != channels:
            sentence = (
                f"the first convolution was averaged over its {stem.shape[1]} channels and repeated to {channels}"
            )
            loaded["conv1.weight"] = stem.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (stem.shape[1] / channels)
        for name, tensor in loaded.items():
            if tensor.shape != wanted[name].shape:
                msg = (
                    f"the encoder weight {name!r} has the shape {tuple(tensor.shape)}, the network needs "
                    f"{tuple(wanted[name].shape)}: take weights of the same ResNet"
                )
                raise KitsattnError(msg)
        self.load_state_dict(loaded, strict=False)
        return sentence


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
