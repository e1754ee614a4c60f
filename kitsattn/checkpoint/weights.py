"""Published weights in plain safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kitsattn.errors import KitsattnError


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Read the tensors of a safetensors file by name, onto the CPU.

    Raises:
        KitsattnError: If the file is missing or no safetensors file.
    """
    try:
        weights: Mapping[str, Tensor] = load_file(path, device="cpu")
    except FileNotFoundError as error:
        msg = f"{path} does not exist: name a safetensors file with ResNet weights"
        raise KitsattnError(msg) from error
    except (SafetensorError, OSError) as error:
        msg = f"{path} is no safetensors file ({error}): docs/how-to/encoder-weights.md shows the conversion"
        raise KitsattnError(msg) from error
    return weights
