"""Weights to start from: published ones in plain safetensors files, and those of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kitsattn.checkpoint.file import load_checkpoint
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
        msg = f"{path} is not a safetensors file ({error}): docs/how-to/encoder-weights.md shows the conversion"
        raise KitsattnError(msg) from error
    return weights


def load_initial(network: nn.Module, name: str, path: Path) -> str:
    """Put the weights of a checkpoint into a fresh network, for fine-tuning.

    Where the checkpoint has other classes, the network keeps its own weights in the layers whose first axis is the
    classes.

    Args:
        network: The network.
        name: Its registered name.
        path: The checkpoint.

    Returns:
        What was done, as one sentence.

    Raises:
        KitsattnError: If the checkpoint cannot be read, or is of another network.
    """
    checkpoint = load_checkpoint(path)
    own = network.state_dict()
    found = dict(checkpoint.model)
    if own.keys() != found.keys():
        msg = f"{path} is a network {checkpoint.header.model} and not {name} with these settings: leave --model out"
        raise KitsattnError(msg)
    classes = len(checkpoint.header.labels)
    other = [key for key, tensor in found.items() if tensor.shape != own[key].shape]
    for key in other:
        (first, *rest), (_, *own_rest) = found[key].shape or (0,), own[key].shape or (0,)
        if first == classes and rest == own_rest:
            continue
        sizes = f"{tuple(found[key].shape)}, the network needs {tuple(own[key].shape)}"
        msg = f"{path}: {key} has the shape {sizes}: leave --model and --model-settings out to take its settings"
        raise KitsattnError(msg)
    network.load_state_dict({key: own[key] if key in other else tensor for key, tensor in found.items()})
    kept = "; the last layer is new, for other classes" if other else ""
    return f"those of {path}{kept}"
