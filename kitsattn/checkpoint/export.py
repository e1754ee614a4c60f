"""Networks for other programs: a checkpoint as ONNX or as PyTorch's exported program, checked against the original."""

import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kitsattn.checkpoint.file import load_checkpoint, load_model
from kitsattn.errors import KitsattnError
from kitsattn.files import atomic_path
from kitsattn.kernels.dispatch import VARIABLE
from kitsattn.models import model_entry

Network = Callable[[Tensor], Tensor]
Write = Callable[[ExportedProgram, str, Path], None]
Load = Callable[[Path], Network]

METADATA_KEY = "kitsattn"
"""Key of the metadata in an ONNX file."""

METADATA_FILE = "kitsattn.json"
"""Name of the extra file with the metadata in a .pt2 file."""

TOLERANCE = 0.01
"""Greatest difference to the original, as a share of its largest logit.

Single precision alone moves the logits of a ResNet-101 network with random weights by 0.0014 of the largest.
"""

_ONNX_PACKAGES = ("onnxruntime", "onnxscript")
_TRACED_SIZE = (2, 33, 47)
"""Batch, height and width while the network is traced; all three stay open."""
_CHECKED_SIZES = ((1, 48, 80), (3, 67, 50))
_LEAST_SIZE = 32
"""Of height and width: plans have no smaller patches."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        target: The file.
        slices: Slices in a slab.
        classes: Channels of the output, background included.
        difference: Greatest difference to the original that was found, as a share of its largest logit.
        synthetic: Whether the network was trained on phantoms.
    """

    target: Path
    slices: int
    classes: int
    difference: float
    synthetic: bool


def export_checkpoint(source: Path, target: Path, metadata: Mapping[str, Any], *, overwrite: bool = False) -> Export:
    """Write the network of a checkpoint to a file that other programs run without kitsattn.

    Input `slabs`: prepared intensities, (batch, slices, height, width), float32. Output `logits`: (batch, classes,
    height, width), float32, of the centre slices. Batch, height and width are open; height and width need no common
    divisor and are 32 or more. The graph has standard operators only, and the file holds the weights.

    The output is logits, not probabilities: the largest logit is the class, so who wants labels needs no softmax; who
    averages windows or networks adds one line; and from probabilities the logits could not be had back, which
    calibration and half precision want.

    Before the file takes its name it is run on two sizes and compared with the network, `TOLERANCE` being allowed.

    Args:
        source: The checkpoint.
        target: The file; its suffix is the format, .onnx or .pt2 (`torch.export`).
        metadata: What the file says of itself, as JSON values.
        overwrite: Whether an existing file may be replaced.

    Raises:
        KitsattnError: If the suffix is another, a package is missing, `source` is not a checkpoint, `target` exists or
            cannot be written, or the exported network differs from the original.
    """
    write, load = _format(target)
    checkpoint = load_checkpoint(source)
    header = checkpoint.header
    model = load_model(checkpoint, str(source))
    slices = model_entry(header.model).read_config(header.config, f"{source}: model settings").slices
    with atomic_path(target, overwrite=overwrite) as temporary, _reference_kernels(), _quiet():
        write(_trace(model, slices), json.dumps(metadata), temporary)
        difference = _difference(model, load(temporary), slices)
        if not difference <= TOLERANCE:
            msg = (
                f"{target} was not written: it would differ from {source} by {difference:.2g} of the largest logit, "
                f"and {TOLERANCE:g} is allowed; try the other format, or the releases that constraints.txt names"
            )
            raise KitsattnError(msg)
    return Export(target, slices, len(header.labels), difference, header.provenance.synthetic)


def _format(target: Path) -> tuple[Write, Load]:
    """Return how a file of a suffix is written and loaded."""
    if target.suffix == ".pt2":
        return _write_pt2, _load_pt2
    if target.suffix != ".onnx":
        msg = f"{target} has no suffix that can be exported to: name a file that ends in .onnx or .pt2"
        raise KitsattnError(msg)
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"ONNX needs the package {missing[0]}: pip install 'kitsattn[export]'"
        raise KitsattnError(msg)
    return _write_onnx, _load_onnx


@torch.no_grad()
def _trace(model: nn.Module, slices: int) -> ExportedProgram:
    """Return the graph of a network for every batch, height and width."""
    batch, height, width = _TRACED_SIZE
    sizes = {0: Dim("batch"), 2: Dim("height", min=_LEAST_SIZE), 3: Dim("width", min=_LEAST_SIZE)}
    program = torch.export.export(
        model,
        (torch.zeros(batch, slices, height, width),),
        dynamic_shapes=(sizes,),
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    graph = program.graph
    for node in list(graph.nodes):
        node.meta.pop("stack_trace", None)  # paths of this machine
        # What the tracer assumed of sizes, as assertions. They are always true, or concern the layout of the traced
        # tensors in memory, which no operator in the graph depends on: odd heights and a batch of 1 would be refused.
        if node.target is torch.ops.aten._assert_scalar.default:  # noqa: SLF001 - an operator's name
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _write_pt2(program: ExportedProgram, metadata: str, path: Path) -> None:
    buffer = io.BytesIO()  # PyTorch's own writer tells of a full disk in words of its own
    torch.export.save(program, buffer, extra_files={METADATA_FILE: metadata})
    path.write_bytes(buffer.getbuffer())


def _load_pt2(path: Path) -> Network:
    return torch.export.load(path).module()


def _write_onnx(program: ExportedProgram, metadata: str, path: Path) -> None:
    exported = torch.onnx.export(program, input_names=["slabs"], output_names=["logits"], dynamo=True, verbose=False)
    assert exported is not None
    graph = exported.model.graph
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None
        value.shape = type(value.shape)(["batch", value.shape[1], "height", "width"])
    exported.model.metadata_props[METADATA_KEY] = metadata
    exported.save(path, external_data=False)


def _load_onnx(path: Path) -> Network:
    import onnxruntime  # noqa: PLC0415 - the package may be missing

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda slabs: torch.from_numpy(session.run(["logits"], {"slabs": slabs.numpy()})[0])


@torch.inference_mode()
def _difference(model: Network, exported: Network, slices: int) -> float:
    """Return the greatest difference of two networks' logits, as a share of the largest of the first."""
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, height, width in _CHECKED_SIZES:
        slabs = torch.randn(batch, slices, height, width, generator=generator)
        expected, found = model(slabs), exported(slabs)
        differences.append(float((found - expected).abs().max() / expected.abs().max()))
    return float(torch.tensor(differences).max())  # unlike Python's max, NaN if one of them is


@contextmanager
def _reference_kernels() -> Iterator[None]:
    """Let every block take its reference meanwhile, whatever the user's environment says."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' warnings, which are about themselves, from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
