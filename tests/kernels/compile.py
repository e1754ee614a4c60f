"""Compile every Triton program for each supported architecture, without a GPU, and inspect the machine code.

    python tests/kernels/compile.py [--arch 80 90 ...] [--quick] [--jobs 2] [--json FILE]

The functions that launch the programs are called as a network calls them, with tensors that have shapes and no memory.
Each launch is compiled instead of run, with the tiles that its function chose for the architecture and with what
Triton's own launcher finds out about its arguments. So what is inspected is what a GPU would run:

- where the program makes a product, it is made of the architecture's matrix instructions;
- registers, shared memory and tensor memory are within the architecture's limits;
- no loop with matrix instructions loads or stores local memory, where registers go that did not fit.

One line a program; the exit status is 1 if one of them fails. It cannot run in Triton's interpreter.
"""

# ruff: noqa: T201 - a script reports by printing

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from kitsattn.kernels.aspp import kernels as aspp_kernels
from kitsattn.kernels.aspp.tiles import make_branches
from kitsattn.kernels.attention import kernels as attention_kernels
from kitsattn.kernels.numerics import INTERPRETED

_KB = 1024
_MOST_REGISTERS = 255
_MOST_TENSOR_MEMORY = 512
_MATRIX_INSTRUCTIONS = {"mma.sync": "mma.sync.aligned", "wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma"}
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_BRANCH = re.compile(r"\b(?:BRA|CALL|JMP)\b.*?\b0x([0-9a-f]+)")
_ALWAYS = re.compile(r"(?:BRA(?:\.\w+)*\s+0x|JMP|EXIT|RET|KILL)")
_PRODUCT = re.compile(r"(?<![.\w])[A-Z]*MMA\b")
"""A matrix instruction; HFMA2.MMA is none."""
_LOCAL = re.compile(r"\b(?:LDL|STL)\b")


@dataclass(frozen=True)
class Architecture:
    """What the programs must fit.

    Attributes:
        capability: Compute capability.
        multiprocessors: Of a GPU that has it.
        shared: Most shared memory of a program, in bytes.
        instruction: Its matrix instruction in PTX.
    """

    capability: tuple[int, int]
    multiprocessors: int
    shared: int
    instruction: str


ARCHITECTURES = {
    80: Architecture((8, 0), 108, 163 * _KB, "mma.sync"),
    86: Architecture((8, 6), 82, 99 * _KB, "mma.sync"),
    89: Architecture((8, 9), 128, 99 * _KB, "mma.sync"),
    90: Architecture((9, 0), 132, 227 * _KB, "wgmma"),
    100: Architecture((10, 0), 148, 227 * _KB, "tcgen05"),
    120: Architecture((12, 0), 170, 99 * _KB, "mma.sync"),
}


@dataclass(frozen=True)
class Attention:
    """A call of attention.

    Attributes:
        dim: Of queries and keys.
        value_dim: Of values.
        batch: Images.
        queries: Tokens that ask.
        keys: Tokens that are asked.
        dtype: Of queries, keys and values.
        residual: Dtype of the residual; None for the average alone.
        training: Whether the backward pass follows.
        deterministic: Whether it adds nothing atomically.
    """

    dim: int
    value_dim: int
    batch: int = 16
    queries: int = 4096
    keys: int = 4096
    dtype: torch.dtype = torch.bfloat16
    residual: torch.dtype | None = torch.bfloat16
    training: bool = True
    deterministic: bool = True

    def launch(self) -> None:
        """Launch its programs."""
        q = self._tokens(self.queries)[0]
        _, k, v = self._tokens(self.keys)
        residual = gate = None
        if self.residual is not None:
            residual = _meta(self.batch, self.queries, self.value_dim, dtype=self.residual)
            gate = _meta(1)
        out, attended, lse = attention_kernels.forward(q, k, v, residual, gate, 0.125, save=self.training)
        if self.training:
            saved = out if residual is None else attended
            attention_kernels.backward(out, q, k, v, saved, lse, gate, 0.125, deterministic=self.deterministic)

    def _tokens(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        projected = _meta(self.batch, tokens, 2 * self.dim + self.value_dim, dtype=self.dtype)
        q, k, v = projected.split([self.dim, self.dim, self.value_dim], dim=-1)
        return q, k, v


@dataclass(frozen=True)
class Aspp:
    """A call of the ASPP with the branches of DeepLabv3.

    Attributes:
        in_channels: Of the input.
        channels: Of a branch, and of the output.
        batch: Images.
        height: Of the map.
        width: Of the map.
        dtype: Of the input.
        training: Whether it is training, or normalisations are folded into the products.
    """

    in_channels: int
    channels: int
    batch: int = 16
    height: int = 32
    width: int = 32
    dtype: torch.dtype = torch.bfloat16
    training: bool = True

    def launch(self) -> None:
        """Launch its programs."""
        layout = tuple(make_branches((1, 3, 3, 3), (1, 6, 12, 18)))
        united = len(layout) * self.channels
        x = _meta(self.batch, self.height, self.width, self.in_channels, dtype=self.dtype)
        w = _meta(sum(branch.size**2 for branch in layout), self.in_channels, self.channels, dtype=self.dtype)
        u = _meta(self.channels, united, dtype=self.dtype)
        image_bias = _meta(self.batch, self.channels)
        wide, narrow = _meta(united), _meta(self.channels)
        if not self.training:
            y = aspp_kernels.branches_folded(x, w, wide, wide, layout)
            aspp_kernels.project_folded(y, u, image_bias, narrow, narrow)
            return
        z, mean, variance = aspp_kernels.branches(x, w, layout)
        projected, out_mean, out_variance = aspp_kernels.project(z, mean, wide, wide, u, image_bias)
        out = aspp_kernels.normalise(projected, out_mean, narrow, narrow)
        grad = aspp_kernels.normalise_backward(out, projected, out_mean, narrow, narrow)[0]
        dz = aspp_kernels.project_backward(
            grad, out_mean, out_variance, z, mean, wide, wide, u, projected, out_mean
        )[0]  # fmt: skip
        pooled = _meta(self.batch, self.in_channels)
        aspp_kernels.branches_backward(dz, mean, variance, pooled, x, w, z, mean, layout)


Call = Attention | Aspp

_SIZES = ((64, 256), (32, 256), (128, 256), (256, 256), (16, 256), (16, 64))
_FEW_TOKENS: dict[str, Any] = {"batch": 1, "queries": 1024, "keys": 1024}
_ODD_TOKENS: dict[str, Any] = {"batch": 3, "queries": 589, "keys": 150}
_ODD_MAP: dict[str, Any] = {"batch": 3, "height": 31, "width": 19}
"""A map in which a tap is seen by one column: its pixels are divided without a multiplier."""

QUICK: tuple[Call, ...] = (
    Attention(64, 256),
    Attention(64, 256, deterministic=False),
    Attention(64, 256, training=False),
    Attention(32, 256, **_ODD_TOKENS),
    Aspp(512, 256),
    Aspp(512, 256, training=False),
    Aspp(192, 64, **_ODD_MAP),
)
"""One call for each program."""

FULL: tuple[Call, ...] = (
    *(
        Attention(*sizes, **options)
        for sizes in _SIZES
        for options in (
            {},
            {"deterministic": False},
            {"training": False},
            {"residual": None, "training": False},
            _ODD_TOKENS,
        )
    ),
    Attention(64, 256, residual=None),
    Attention(64, 256, **_FEW_TOKENS),
    Attention(64, 256, residual=torch.float32),
    Attention(64, 256, dtype=torch.float16, residual=torch.float16),
    Attention(64, 256, dtype=torch.float16, residual=torch.float16, deterministic=False),
    *(
        Aspp(*channels, training=training, **options)
        for channels in ((512, 256), (2048, 256), (192, 64))
        for training in (True, False)
        for options in ({}, _ODD_MAP)
    ),
    Aspp(512, 256, dtype=torch.float16),
    Aspp(512, 256, dtype=torch.float16, training=False),
)


@dataclass(frozen=True)
class Code:
    """What the machine code of a program shows.

    Attributes:
        registers: Of a thread.
        stack: Local memory of a thread, in bytes.
        shared: Shared memory, in bytes.
        tensor_memory: Columns of it.
        instructions: Kinds of matrix instructions in PTX.
        matrix_products: Matrix instructions in the machine code.
        products: Matrix products that are written in the program.
        scalar_products: Those of them that are made without matrix instructions.
        spills: Loads and stores of local memory in loops that hold matrix instructions.
    """

    registers: int
    stack: int
    shared: int
    tensor_memory: int
    instructions: tuple[str, ...]
    matrix_products: int
    products: int
    scalar_products: int
    spills: int


@dataclass(frozen=True)
class Program:
    """A program that was compiled.

    Attributes:
        arch: For which architecture.
        name: Of the program.
        constants: What it was compiled for.
        types: Number formats of what it points to.
        key: By which two programs are told apart.
        code: What came out; None if the compiler failed.
        failures: What is wrong with it.
    """

    arch: int
    name: str
    constants: str
    types: str
    key: str
    code: Code | None
    failures: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """Return its line of the report."""
        parts = [f"sm_{self.arch}", self.name, self.types, self.constants]
        if self.code is not None:
            parts.append(
                f"{self.code.registers} registers, stack {self.code.stack} B, shared {self.code.shared} B,"
                f" {'+'.join(self.code.instructions) or 'no product'}"
            )
        return " | ".join([*parts, "FAILED: " + "; ".join(self.failures) if self.failures else "ok"])


class _Target:
    """Stands for the driver of a GPU: Triton's launcher asks it for what to compile."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


def compile_call(arch: int, call: Call) -> list[Program]:
    """Return the programs that a call launches on an architecture."""
    programs: list[Program] = []
    run = JITFunction.run

    def compile_launch(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        try:
            kernel = run(self, *args, grid=grid, warmup=True, **options)
        except Exception as error:  # noqa: BLE001 - whatever stops the compiler is what this looks for
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            constants = ", ".join(f"{name}={value}" for name, value in options.items())
            programs.append(Program(arch, self.fn.__name__, constants, "", f"{call}", None, (message,)))
        else:
            programs.append(_program(arch, self.arg_names, kernel))

    with _gpu(arch), mock.patch.object(JITFunction, "run", compile_launch):
        call.launch()
    return programs


@contextmanager
def _gpu(arch: int) -> Iterator[None]:
    """Let the launching functions and Triton see a GPU of an architecture."""
    architecture = ARCHITECTURES[arch]
    properties = SimpleNamespace(multi_processor_count=architecture.multiprocessors)
    _forget()
    driver.set_active(_Target(arch))
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=architecture.capability),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ):
        yield
    _forget()


def _forget() -> None:
    """Clear what the launching functions remember of the device."""
    for module in (aspp_kernels, attention_kernels):
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__ and hasattr(value, "cache_clear"):
                value.cache_clear()


def _program(arch: int, names: list[str], kernel: Any) -> Program:
    constants = {names[place]: value for (place,), value in kernel.src.constants.items() if names[place].isupper()}
    constants.pop("UPCAST", None)
    constants |= {"warps": kernel.metadata.num_warps, "stages": kernel.metadata.num_stages}
    types = {kind.removeprefix("*") for kind in kernel.src.signature.values() if kind.startswith("*")}
    code = _inspect(kernel.hash, kernel)
    return Program(
        arch,
        kernel.metadata.name,
        " ".join(f"{name}={value}" for name, value in constants.items()),
        "+".join(sorted(types - {"i32"})),
        kernel.hash,
        code,
        tuple(_failures(ARCHITECTURES[arch], code)),
    )


def _failures(architecture: Architecture, code: Code) -> Iterator[str]:
    if code.products and architecture.instruction not in code.instructions:
        yield f"no {architecture.instruction}"
    if code.products and not code.matrix_products:
        yield "no matrix instruction in the machine code"
    if code.scalar_products:
        yield f"{code.scalar_products} of {code.products} products without matrix instructions"
    if code.shared > architecture.shared:
        yield f"{code.shared} B of shared memory, over {architecture.shared} B"
    if code.tensor_memory > _MOST_TENSOR_MEMORY:
        yield f"{code.tensor_memory} columns of tensor memory, over {_MOST_TENSOR_MEMORY}"
    if code.registers > _MOST_REGISTERS:
        yield f"{code.registers} registers, over {_MOST_REGISTERS}"
    if code.spills:
        yield f"{code.spills} loads and stores of local memory in loops with matrix instructions"


_inspected: dict[str, Code] = {}


def _inspect(key: str, kernel: Any) -> Code:
    if key not in _inspected:
        _inspected[key] = _read(kernel)
    return _inspected[key]


def _read(kernel: Any) -> Code:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = _dump("--dump-resource-usage", path)
        listing = _dump("-sass", path)
    found = re.search(r"\bREG:(\d+) STACK:(\d+)", usage)
    if found is None:
        msg = f"cuobjdump says nothing of registers: {usage}"
        raise RuntimeError(msg)
    return Code(
        registers=int(found[1]),
        stack=int(found[2]),
        shared=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        instructions=tuple(name for name, text in _MATRIX_INSTRUCTIONS.items() if text in kernel.asm["ptx"]),
        matrix_products=len(_PRODUCT.findall(listing)),
        products=len(re.findall(r"\btt\.dot\b", kernel.asm["ttir"])),
        # A product whose result is laid out in plain blocks is made of multiplications and additions.
        scalar_products=len(re.findall(r"\btt\.dot\b.*-> tensor<[^>]*#blocked", kernel.asm["ttgir"])),
        spills=spills_in_loops(listing),
    )


def _dump(option: str, path: Path) -> str:
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def spills_in_loops(listing: str) -> int:
    """Count the loads and stores of local memory in loops with matrix instructions.

    Two instructions are in one loop if each can be reached from the other. Addresses alone would not do: the compiler
    puts rare parts of a loop behind the end of the program.

    Args:
        listing: Machine code as `cuobjdump -sass` prints it.
    """
    code = [(int(address, 16), text) for address, text in _LINE.findall(listing)]
    places = {address: place for place, (address, _) in enumerate(code)}
    after: list[list[int]] = [[] for _ in code]
    before: list[list[int]] = [[] for _ in code]
    for place, (_, text) in enumerate(code):
        branch = _BRANCH.search(text)
        targets = [places[int(branch[1], 16)]] if branch and int(branch[1], 16) in places else []
        if not _ALWAYS.match(text) and place + 1 < len(code):
            targets.append(place + 1)
        for target in targets:
            after[place].append(target)
            before[target].append(place)
    products = [place for place, (_, text) in enumerate(code) if _PRODUCT.search(text)]
    looped: set[int] = set()
    for place in products:
        if place not in looped:
            looped |= _reach(after, place) & _reach(before, place)
    if products and not looped:
        # A loop of few steps was unrolled: it is what lies between its first and its last product.
        looped = set(range(products[0], products[-1]))
    return sum(bool(_LOCAL.search(code[place][1])) for place in looped)


def _reach(neighbours: list[list[int]], start: int) -> set[int]:
    """Return what can be reached in one step or more."""
    reached: set[int] = set()
    waiting = list(neighbours[start])
    while waiting:
        place = waiting.pop()
        if place not in reached:
            reached.add(place)
            waiting += neighbours[place]
    return reached


def compile_all(archs: Iterable[int], calls: Iterable[Call], jobs: int, report: Callable[[Program], None]) -> None:
    """Compile all calls for all architectures and report each program once."""
    work = [(arch, call) for arch in archs for call in calls]
    seen: set[tuple[int, str, str]] = set()
    # Fresh processes: one that was forked after PyTorch started its threads could hang.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for programs in pool.map(compile_call, *zip(*work, strict=True)):
            for program in programs:
                key = (program.arch, program.name, program.key)
                if key not in seen:
                    seen.add(key)
                    report(program)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def main() -> int:
    """Print one line a program; return 1 if one fails, 2 if nothing can be compiled here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--quick", action="store_true", help="one call for each program")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", type=Path, help="where to write the report")
    arguments = parser.parse_args()
    if INTERPRETED:
        print("Triton runs its interpreter, which compiles nothing: unset TRITON_INTERPRET", file=sys.stderr)
        return 2
    programs: list[Program] = []

    def report(program: Program) -> None:
        programs.append(program)
        print(program, flush=True)

    compile_all(arguments.arch, QUICK if arguments.quick else FULL, arguments.jobs, report)
    failed = sum(bool(program.failures) for program in programs)
    print(f"Triton {triton.__version__}: {len(programs)} programs, {failed} failed")
    if arguments.json:
        rows = [asdict(program) for program in programs]
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "programs": rows}, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
