"""Which device and which number format a network runs in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from kitsattn.errors import KitsattnError

DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TENSOR_CORES_BF16 = (8, 0)


def choose_device(choice: DeviceChoice = "auto") -> torch.device:
    """Return the device; `auto` takes a CUDA GPU, else Apple's GPU, else the CPU.

    Raises:
        KitsattnError: If the device that was asked for is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available.get(choice):
        there = ", ".join(name for name in available if available[name])
        msg = f"this machine, with this build of PyTorch, has no {choice} device: use one of auto, {there}"
        raise KitsattnError(msg)
    return torch.device(choice)


def choose_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """Return the number format; `auto` takes bf16 where the device computes it natively, fp16 on older GPUs.

    Raises:
        KitsattnError: If fp16 is asked for on a CPU.
    """
    if choice == "fp16" and device.type == "cpu":
        msg = "fp16 is for GPUs: use auto, bf16 or fp32 on a CPU"
        raise KitsattnError(msg)
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= _TENSOR_CORES_BF16 else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_computes_bf16() else "fp32"


def dtype_of(precision: Precision) -> torch.dtype:
    """Return the dtype of a number format."""
    return _DTYPES[precision]


def mixed_precision(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which convolutions and matrix products run in `precision`."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def autocast_enabled(x: Tensor) -> bool:
    """Tell whether autocast is on for a tensor's device; a device without it, such as `meta`, has it off."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which products of a tensor are computed: autocast's where it is on, but it leaves float64."""
    lowered = autocast_enabled(x) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if lowered else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return the context in which a tensor's operations keep their dtypes; where they do anyway, an empty one."""
    return torch.autocast(x.device.type, enabled=False) if autocast_enabled(x) else nullcontext()


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network, its convolution weights in channels-last order, which CPUs and GPUs run faster."""
    moved: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _cpu_computes_bf16() -> bool:
    # PyTorch has no public name for these yet; where one is gone, fp32 is right everywhere.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)
