"""Saving and loading checkpoints: header and tensors in one safetensors file, written atomically."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kitsattn.checkpoint.header import MODEL_PREFIX, TRAINING_PREFIX, Header, read_header, to_metadata
from kitsattn.errors import KitsattnError
from kitsattn.files import atomic_path
from kitsattn.models import build_model, model_entry


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        header: What it says of itself.
        model: The network's state dict, on the CPU. A file that stores half precision is read as float32.
        training: Tensors of the training state; empty in files that cannot be resumed.
    """

    header: Header
    model: Mapping[str, Tensor]
    training: Mapping[str, Tensor]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically; an existing file is replaced.

    Raises:
        KitsattnError: If the file cannot be written, for example because the disk is full.
    """
    tensors = {
        **{MODEL_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.items()},
        **{TRAINING_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.training.items()},
    }
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, to_metadata(checkpoint.header))
        except SafetensorError as error:
            # The library's own error type hides the operating system's number, its text names the cause.
            msg = f"{path} cannot be written ({error}): see that the disk has room and run the command again"
            raise KitsattnError(msg) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; weights that are stored in half precision become float32.

    Raises:
        KitsattnError: If the file is missing, damaged, or no checkpoint of this format.
    """
    header, _ = read_header(path)
    try:
        tensors = load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        msg = f"{path} is damaged ({error}): copy it again"
        raise KitsattnError(msg) from error
    model = {name: _single(tensor) for name, tensor in _without(MODEL_PREFIX, tensors).items()}
    return Checkpoint(header, model, _without(TRAINING_PREFIX, tensors))


def load_model(checkpoint: Checkpoint, where: str) -> nn.Module:
    """Build a checkpoint's network with its weights, in evaluation mode, on the CPU.

    Args:
        checkpoint: The checkpoint.
        where: The file that is named in errors.

    Raises:
        KitsattnError: If the network is unknown to this version, or its weights do not fit.
    """
    header = checkpoint.header
    config = model_entry(header.model).read_config(header.config, f"{where}: model settings")
    if config.classes != len(header.labels):
        msg = f"{where} predicts {config.classes} classes and names {len(header.labels)}: the file is damaged"
        raise KitsattnError(msg)
    with torch.device("meta"):
        model = build_model(header.model, config)
    unsaved = {name for name, _ in model.named_buffers()} - checkpoint.model.keys()
    if unsaved:  # the network computes them when it is built
        model = build_model(header.model, config)
    try:
        model.load_state_dict(dict(checkpoint.model), assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        msg = f"{where} does not fit the network {header.model!r} of this version: {reason}"
        raise KitsattnError(msg) from error
    return model.eval()


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _single(tensor: Tensor) -> Tensor:
    """Return floating values as float32; a float32 tensor is returned as it is, without a copy."""
    return tensor.float() if tensor.is_floating_point() else tensor
