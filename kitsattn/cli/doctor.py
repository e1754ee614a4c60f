"""`kitsattn doctor`: what this machine is, which path each block takes here and why, whether the kernels are right."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kitsattn.cli.console import say, warn
from kitsattn.cli.options import DeviceOption, JsonOption, PrecisionOption
from kitsattn.cli.output import Output
from kitsattn.cli.progress import progress_bars
from kitsattn.errors import KitsattnError

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from kitsattn.kernels.dispatch import Shape
    from kitsattn.precision import Precision as PrecisionName

_LIBRARIES = ("torch", "triton", "numpy", "nibabel", "SimpleITK", "blosc2", "batchgenerators")
_GIGABYTE = 1e9


def doctor(
    *,
    model: Annotated[str, typer.Option(metavar="NAME", help="Network to look at.")] = "attention-deeplab-r50",
    size: Annotated[int, typer.Option(min=32, help="Height and width of its input.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Slabs per batch.")] = 8,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Time the kernels and PyTorch's own operations on this GPU (takes minutes); the faster of the two is "
            "used from then on.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show this machine's hardware and which kernel each block of a network uses, and test the kernels.

    The kernels need an NVIDIA GPU of compute capability 8.0 or more and Triton; everything works without them.

    Example: kitsattn doctor --model attention-deeplab-r18
    """
    from kitsattn.precision import choose_device, choose_precision

    chosen = choose_device(device)
    format_ = choose_precision(precision, chosen)
    if measure:
        _measure(chosen)
    content: dict[str, Any] = {
        "machine": _machine(),
        "device": _device(chosen, format_),
        "versions": _versions(),
        "blocks": _blocks(model, size, batch_size, chosen, format_),
        "self_test": _self_test(chosen),
    }
    Output(json).show(content, _lines(content, f"{model}, {batch_size} x {size} x {size}, {format_}"))
    wrong = [test["name"] for test in content["self_test"]["results"] if not test["right"]]
    if wrong:
        msg = (
            f"the kernels are wrong on this machine ({', '.join(wrong)}): set KITSATTN_KERNELS=reference and report it"
        )
        raise KitsattnError(msg)


def _machine() -> dict[str, Any]:
    import platform

    from kitsattn.machine import available_cores, available_memory

    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": available_cores(),
        "free_memory_gb": round(available_memory() / _GIGABYTE, 1),
    }


def _device(device: "torch.device", precision: str) -> dict[str, Any]:
    import torch

    if device.type != "cuda":
        return {"type": device.type, "precision": precision}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "precision": precision,
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / _GIGABYTE, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _versions() -> dict[str, str | None]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {"kitsattn": version("kitsattn"), "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = None
    return versions


def _blocks(
    name: str, size: int, batch_size: int, device: "torch.device", precision: "PrecisionName"
) -> list[dict[str, Any]]:
    """Return the path of each block in inference and training, by running the network without computing it."""
    import torch

    from kitsattn.kernels.dispatch import choose, watched_shapes
    from kitsattn.models import build_model, model_entry
    from kitsattn.precision import dtype_of

    with torch.device("meta"), torch.no_grad(), watched_shapes() as shapes:
        network = build_model(name).eval()
        network(torch.empty(batch_size, model_entry(name).config.slices, size, size))
    rows = []
    for shape in shapes:
        paths = {}
        for training in (False, True):
            try:
                choice = choose(shape, device, dtype_of(precision), training=training)
                path = {"path": "kernel" if choice.fused else "reference", "why": choice.reason}
            except KitsattnError as error:
                path = {"path": "none", "why": str(error)}
            paths["training" if training else "inference"] = path
        rows.append({"block": shape.operation, "shape": asdict(shape), "text": _describe(shape), **paths})
    return rows


def _describe(shape: "Shape") -> str:
    from kitsattn.kernels.shapes import AttentionShape

    if isinstance(shape, AttentionShape):
        return f"{shape.batch} x {shape.queries} queries of {shape.dim}, {shape.keys} keys, values of {shape.value_dim}"
    rates = ", ".join(map(str, shape.rates[1:]))
    return f"{shape.batch} x {shape.height} x {shape.width}, {shape.in_channels} to {shape.channels}, rates {rates}"


def _self_test(device: "torch.device") -> dict[str, Any]:
    """Return the errors of each kernel against the reference, or why there is none."""
    from kitsattn.kernels.measure import require_kernels, self_test

    try:
        require_kernels(device)
    except KitsattnError as error:
        return {"results": [], "why_not": str(error)}
    results = [
        {"name": name, "error": error, "tolerance": tolerance, "right": error <= tolerance}
        for name, error, tolerance in self_test(device)
    ]
    return {"results": results, "why_not": None}


def _measure(device: "torch.device") -> None:
    from kitsattn.kernels.dispatch import read_table, user_table, write_table
    from kitsattn.kernels.measure import measure_kernels

    if device.type != "cuda":
        msg = f"there is no NVIDIA GPU to measure: on {device.type} the reference is used anyway, leave --measure out"
        raise KitsattnError(msg)
    path = user_table()
    try:
        before = read_table(path)
    except KitsattnError as error:
        warn(f"{error}: it is replaced")
        before = []
    with progress_bars() as progress:
        rows = measure_kernels(device, progress=progress)
    measured = {row.gpu for row in rows}
    write_table(path, [*(row for row in before if row.gpu not in measured), *rows])
    faster = sum(row.fused_ms < row.reference_ms for row in rows)
    say(f"measured: {len(rows)} shapes and passes, the kernel was faster at {faster}; kept in {path}")


def _lines(content: dict[str, Any], network: str) -> "Iterator[str | Table]":
    from rich.table import Table

    machine, device = content["machine"], content["device"]
    yield f"machine:  {machine['system']}; {machine['cores']} cores, {machine['free_memory_gb']} GB of memory free"
    if device["type"] == "cuda":
        yield (
            f"GPU:      {device['name']}, compute capability {device['capability']}, {device['memory_gb']} GB; "
            f"CUDA {device['cuda']}, cuDNN {device['cudnn']}; networks run in {device['precision']}"
        )
    else:
        yield f"GPU:      none that is used; networks run on {device['type']} in {device['precision']}"
    versions = (f"{name} {version or '(not installed)'}" for name, version in content["versions"].items())
    yield f"versions: {', '.join(versions)}"
    table = Table("block", "shape", "pass", "path", "why", title=network)
    for row in content["blocks"]:
        for number, pass_ in enumerate(("inference", "training")):
            first = ("", "") if number else (row["block"], row["text"])
            table.add_row(*first, pass_, row[pass_]["path"], row[pass_]["why"])
    yield table
    test = content["self_test"]
    if test["why_not"]:
        yield f"self-test of the kernels: none, {test['why_not']}"
    for result in test["results"]:
        verdict = "right" if result["right"] else "WRONG"
        yield f"self-test of {result['name']}: {verdict}, error {result['error']:.1e} of {result['tolerance']:.1e}"
