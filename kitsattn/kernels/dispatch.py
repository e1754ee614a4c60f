"""Which path an operation takes, the Triton kernel or the PyTorch reference, and why.

`KITSATTN_KERNELS` may say `reference` or `fused`. The default, `auto`, takes the kernel where it can run and was
measured to be faster on this very model of GPU, at a shape within a factor of two. What was measured is data: the
package's own table, and the user's, which `kitsattn doctor --measure` writes.
"""

import importlib.util
import json
import logging
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.files import read_json, write_json
from kitsattn.kernels.shapes import AsppShape, AttentionShape, OperationName

VARIABLE = "KITSATTN_KERNELS"
TABLE_FORMAT = "kitsattn-kernels/1"
LEAST_CAPABILITY = (8, 0)
"""Compute capability from which Triton (3.3 and later) uses the tensor cores."""

Function = TypeVar("Function", bound=Callable[..., object])
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
    if not torch.compiler.is_compiling():
        for shapes in _watchers:
            shapes.append(shape)
    mode = kernels_mode()
    if device.type == "meta":
        return Choice(fused=False, reason="sizes without data")
    if mode == "reference":
        choice = Choice(fused=False, reason=f"{VARIABLE}=reference")
    elif mode == "fused":
        obstacle = _device_obstacle(device, dtype) or shape.obstacle()
        choice = Choice(fused=not obstacle, reason=obstacle or f"{VARIABLE}=fused")
    elif device.type != "cuda":
        choice = Choice(fused=False, reason="no CUDA device")
    elif torch.compiler.is_exporting():
        choice = Choice(fused=False, reason="an exported network must run where kitsattn is not installed")
    else:
        choice = Choice(*_automatic(*_plain(shape), device, dtype, training))
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
        _watchers[:] = [watcher for watcher in _watchers if watcher is not shapes]


@cache
def triton_missing() -> bool:
    """Tell whether Triton is not installed; it is not imported."""
    return importlib.util.find_spec("triton") is None


def interpreting() -> bool:
    """Tell whether Triton runs its programs in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}


def _constant_while_compiling(function: Function) -> Function:
    """Do what `torch.compiler.assume_constant_result` does, which loads the compiler: a second at every start."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001
    return function


# What follows asks the device and reads files, which cannot be traced. While `torch.compile` traces a call it runs
# once, for plain numbers; what it returns is part of the graph, which is then one for these very sizes.
@_constant_while_compiling
def _device_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Return why no kernel can run on the device, or nothing."""
    # fp32 operands do not fit the shared memory of a GPU; the interpreter has none.
    if dtype not in _HALF and not (dtype == torch.float32 and device.type == "cpu"):
        return f"{_name(dtype)}: the kernels multiply float16 and bfloat16"
    if triton_missing():
        return "Triton is not installed: pip install 'kitsattn[gpu]'"
    if device.type != ("cpu" if interpreting() else "cuda"):
        return f"the device is {device.type}: kernels run on CUDA, or with TRITON_INTERPRET=1 on the CPU"
    if device.type == "cuda":
        if torch.version.hip:
            return "the GPU is AMD's, and the kernels were made for NVIDIA's"
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            return f"compute capability {capability[0]}.{capability[1]}, and Triton's tensor cores begin at 8.0"
    return ""


@_constant_while_compiling
def _automatic(  # noqa: PLR0917 - called with constants
    operation: OperationName,
    sizes: tuple[int, ...],
    kinds: tuple[tuple[int, ...], ...],
    device: torch.device,
    dtype: torch.dtype,
    training: bool,  # noqa: FBT001
) -> tuple[bool, str]:
    """Return whether the kernel was measured to be faster, and what was found."""
    shape: Shape = (AttentionShape if operation == "attention" else AsppShape)(*sizes, *kinds)  # type: ignore[arg-type]
    obstacle = _device_obstacle(device, dtype) or shape.obstacle()
    if obstacle:
        return False, obstacle
    choice = _measured(shape, torch.cuda.get_device_name(device), _name(dtype), training)
    return choice.fused, choice.reason


def _plain(shape: Shape) -> tuple[OperationName, tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return a shape as plain numbers, in the order of its fields; symbolic sizes become those of the moment."""
    if isinstance(shape, AttentionShape):
        sizes = (shape.batch, shape.queries, shape.keys, shape.dim, shape.value_dim)
        return shape.operation, tuple(operator.index(size) for size in sizes), ()
    sizes = (shape.batch, shape.height, shape.width, shape.in_channels, shape.channels)
    numbers = tuple(operator.index(size) for size in (*sizes, shape.out_channels))
    return shape.operation, numbers, (shape.sizes, shape.rates)


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
    found = f"{ratio:.2f} times as fast as the reference at the nearest measured shape"
    return Choice(fused=ratio > 1, reason=f"{found}, on {gpu}, {row.date}, Triton {row.triton}")


def _distance(shape: Shape, row: Measurement) -> float:
    pairs = zip(shape.measures(), _shape_of(row).measures(), strict=True)
    return max(abs(math.log2(one / other)) for one, other in pairs)


def _shape_of(row: Measurement) -> Shape:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row.shape.items()
    }
    return AttentionShape(**fields) if row.operation == "attention" else AsppShape(**fields)


def measurements() -> list[Measurement]:
    """Return what was measured: the user's own rows, and the package's for other GPUs.

    A user's table that cannot be read is reported and ignored.
    """
    try:
        own = read_table(user_table())
    except (KitsattnError, OSError, RuntimeError) as error:
        _log.warning("%s", error)
        own = []
    measured = {row.gpu for row in own}
    return own + [row for row in read_table(Path(__file__).with_name("measured.json")) if row.gpu not in measured]


def user_table() -> Path:
    """Return where the user's own measurements are: in the folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (
        (Path(os.path.expandvars(base)).expanduser() if base else Path.home() / ".cache") / "kitsattn" / "kernels.json"
    )


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
            numbers = (row.fused_ms, row.reference_ms, *_shape_of(row).measures())
            if not all(0 < number < math.inf for number in numbers):
                rows = None
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        rows = None
    if rows is None:
        msg = f"{path} is not a table of measurements: delete it, and run `kitsattn doctor --measure` again"
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
