"""Which path an operation takes, the Triton kernel or the PyTorch reference, and why.

`KITSATTN_KERNELS` may say `reference` or `fused`. The default, `auto`, takes the kernel where it can run and was
measured to be faster on this very model of GPU, at a shape within a factor of two. What was measured is data: the
package's own table, and the user's, which `kitsattn doctor --measure` writes.
"""

import importlib.util
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.files import read_json, write_json
from kitsattn.kernels.shapes import AsppShape, AttentionShape

VARIABLE = "KITSATTN_KERNELS"
TABLE_FORMAT = "kitsattn-kernels/1"
LEAST_CAPABILITY = (8, 0)
"""Compute capability from which Triton (3.3 and later) uses the tensor cores."""

Shape = AttentionShape | AsppShape
Mode = Literal["auto", "fused", "reference"]

_MODES = ("auto", "fused", "reference")
_HALF = (torch.float16, torch.bfloat16)
_NEAR = 1.0
"""Greatest distance to a measured shape: the logarithm to base 2 of the ratio of two numbers."""

_watchers: list[list[Shape]] = []

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Which path is taken.

    Attributes:
        fused: Whether it is the kernel.
        reason: Why, in a few words.
    """

    fused: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How long both paths took at a shape.

    Attributes:
        gpu: Name of the GPU, as PyTorch gives it.
        operation: `aspp` or `attention`.
        shape: The fields of its shape.
        dtype: `bfloat16` or `float16`.
        training: Whether it is forward and backward pass, or the forward pass without gradients.
        fused_ms: Median of the kernel, in ms.
        reference_ms: Median of the reference.
        torch: Version of PyTorch.
        triton: Version of Triton.
        date: Of the measurement, YYYY-MM-DD.
    """

    gpu: str
    operation: str
    shape: Mapping[str, Any]
    dtype: str
    training: bool
    fused_ms: float
    reference_ms: float
    torch: str
    triton: str
    date: str


def kernels_mode() -> Mode:
    """Return what `KITSATTN_KERNELS` says.

    Raises:
        KitsattnError: If it is none of the modes.
    """
    mode = os.environ.get(VARIABLE) or "auto"
    if mode not in _MODES:
        msg = f"{VARIABLE} is {mode!r}: set it to {', '.join(_MODES)}, or unset it"
        raise KitsattnError(msg)
    return mode  # type: ignore[return-value]


def choose(shape: Shape, device: torch.device, dtype: torch.dtype, *, training: bool) -> Choice:
    """Decide which path a call takes; the first time it says so in the log, at the level DEBUG.

    Args:
        shape: Of the call.
        device: Of its tensors.
        dtype: In which its products are computed.
        training: Whether gradients are wanted.

    Raises:
        KitsattnError: If `KITSATTN_KERNELS` is wrong, or demands a kernel that cannot run.
    """
    if _watchers and not torch.compiler.is_compiling():
        for shapes in _watchers:
            shapes.append(shape)
    mode = kernels_mode()
    if mode == "auto" and device.type != "cuda":
        return Choice(fused=False, reason="no CUDA device")
    choice = _decide(mode, shape, device, dtype, training)
    if not torch.compiler.is_compiling():
        _tell(shape, dtype, training, choice)
    if mode == "fused" and not choice.fused:
        msg = f"{VARIABLE}=fused, but {shape.operation} cannot: {choice.reason}; unset it, or set it to auto"
        raise KitsattnError(msg)
    return choice


@contextmanager
def watched_shapes() -> Iterator[list[Shape]]:
    """Give a list that receives the shape of every call meanwhile, in order."""
    shapes: list[Shape] = []
    _watchers.append(shapes)
    try:
        yield shapes
    finally:
        _watchers.remove(shapes)


def triton_missing() -> bool:
    """Tell whether Triton is not installed; it is not imported."""
    return importlib.util.find_spec("triton") is None


def interpreting() -> bool:
    """Tell whether Triton runs its programs in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _decide(mode: Mode, shape: Shape, device: torch.device, dtype: torch.dtype, training: bool) -> Choice:  # noqa: FBT001
    if mode == "reference":
        return Choice(fused=False, reason=f"{VARIABLE}=reference")
    obstacle = _obstacle(shape, device, dtype)
    if obstacle:
        return Choice(fused=False, reason=obstacle)
    if mode == "fused":
        return Choice(fused=True, reason=f"{VARIABLE}=fused")
    if torch.compiler.is_exporting():
        return Choice(fused=False, reason="an exported network must run where kitsattn is not installed")
    return _measured(shape, torch.cuda.get_device_name(device), _name(dtype), training)


def _obstacle(shape: Shape, device: torch.device, dtype: torch.dtype) -> str | None:
    # fp32 operands do not fit the shared memory of a GPU; the interpreter has none.
    if dtype not in _HALF and not (dtype == torch.float32 and device.type == "cpu"):
        return f"{_name(dtype)}: the kernels multiply float16 and bfloat16"
    if triton_missing():
        return "Triton is not installed: pip install 'kitsattn[gpu]'"
    if device.type != "cuda" and not interpreting():
        return f"the device is {device.type}: kernels run on CUDA, or anywhere with TRITON_INTERPRET=1"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            return f"compute capability {capability[0]}.{capability[1]}, and Triton's tensor cores begin at 8.0"
    return shape.obstacle()


@lru_cache(maxsize=1024)
def _measured(shape: Shape, gpu: str, dtype: str, training: bool) -> Choice:  # noqa: FBT001
    rows = [row for row in measurements() if row.gpu == gpu]
    if not rows:
        reason = f"nothing was measured on {gpu}: `kitsattn doctor --measure` does it, in minutes"
        return Choice(fused=False, reason=reason)
    same = [row for row in rows if (row.operation, row.dtype, row.training) == (shape.operation, dtype, training)]
    distances = [(_distance(shape, row), number) for number, row in enumerate(same)]
    distance, number = min(distances, default=(math.inf, 0))
    if distance > _NEAR:
        return Choice(fused=False, reason=f"no shape within a factor of two was measured on {gpu}")
    row = same[number]
    ratio = row.reference_ms / row.fused_ms
    return Choice(fused=ratio > 1, reason=f"measured {ratio:.2f} times as fast as the reference on {gpu}, {row.date}")


def _distance(shape: Shape, row: Measurement) -> float:
    pairs = zip(shape.measures(), _shape_of(row).measures(), strict=True)
    return max(abs(math.log2(one / other)) for one, other in pairs)


def _shape_of(row: Measurement) -> Shape:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row.shape.items()
    }
    return AttentionShape(**fields) if row.operation == "attention" else AsppShape(**fields)


def measurements() -> list[Measurement]:
    """Return what was measured: the user's own rows first, then the package's.

    A user's table that cannot be read is told and left out.
    """
    rows = []
    for path in (user_table(), Path(__file__).with_name("measured.json")):
        try:
            rows += read_table(path)
        except KitsattnError as error:
            _log.warning("%s", error)
    return rows


def user_table() -> Path:
    """Return where the user's own measurements lie: in the folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kitsattn" / "kernels.json"


def read_table(path: Path) -> list[Measurement]:
    """Read a table of measurements; a file that does not exist has none.

    Raises:
        KitsattnError: If the file cannot be read, or is of another format.
    """
    if not path.exists():
        return []
    content = read_json(path)
    try:
        rows = [Measurement(**row) for row in content["measurements"]] if content["format"] == TABLE_FORMAT else None
        for row in rows or ():
            _shape_of(row).measures()
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        rows = None
    if rows is None:
        msg = f"{path} is no table of measurements: delete it, and run `kitsattn doctor --measure` again"
        raise KitsattnError(msg)
    return rows


def write_table(path: Path, rows: list[Measurement]) -> None:
    """Write a table of measurements, atomically; what is measured from now on decides."""
    write_json(path, {"format": TABLE_FORMAT, "measurements": [to_json(row) for row in rows]})
    _measured.cache_clear()


@lru_cache(maxsize=1024)
def _tell(shape: Shape, dtype: torch.dtype, training: bool, choice: Choice) -> None:  # noqa: FBT001
    path = "kernel" if choice.fused else "reference"
    sizes = json.dumps(asdict(shape))
    _log.debug("%s %s %s, %s: %s (%s)", shape.operation, sizes, _name(dtype), _pass(training), path, choice.reason)


def _pass(training: bool) -> str:  # noqa: FBT001
    return "training" if training else "inference"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
