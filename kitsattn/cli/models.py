"""`kitsattn models`: the registered networks, what a checkpoint says of itself, and its network for other programs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kitsattn.cli.console import print_json, print_result, warn
from kitsattn.cli.options import JsonOption, OverwriteOption
from kitsattn.notices import SYNTHETIC_MODEL_NOTICE

app = typer.Typer(help="List the networks, describe or export a checkpoint.", no_args_is_help=True)


@app.command("list")
def list_models(*, json: JsonOption = False) -> None:
    """List the registered networks with their parameters.

    Example: kitsattn models list
    """
    from rich.table import Table

    from kitsattn.models import model_names

    rows = [_network(name) for name in model_names()]
    if json:
        print_json([{key: row[key] for key in ("name", "parameters")} for row in rows])
        return
    table = Table("name", "parameters", "slices")
    for row in rows:
        table.add_row(row["name"], f"{row['parameters'] / 1e6:.1f} M", str(row["config"]["slices"]))
    print_result(table)


@app.command("describe")
def describe(
    *,
    what: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A network's name, or a checkpoint.")],
    json: JsonOption = False,
) -> None:
    """Describe a network by its settings, or a checkpoint by its header: model, plan, labels, provenance.

    Example: kitsattn models describe kitsattn-workspace/runs/demo/fold_0/best.safetensors
    """
    is_file = what.endswith(".safetensors") or Path(what).is_file()
    content = _checkpoint(Path(what)) if is_file else _network(what)
    if json:
        print_json(content)
    else:
        print_result("\n".join(_lines(content)))


@app.command("export")
def export(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint.")],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The suffix is the format: .onnx (extra `export`) or .pt2 (torch.export)."),
    ],
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Write a checkpoint's network for other programs: prepared slabs in, logits out, no kitsattn needed.

    The file holds the weights and, as JSON, what `kitsattn models describe` says: how scans are prepared, the labels,
    the provenance. It is compared with the original before it takes its name.

    Example: kitsattn models export kitsattn-workspace/runs/demo/fold_0/best.safetensors demo.onnx
    """
    metadata = {**_checkpoint(file), "file": file.name}  # no folders of this machine in a file that travels

    from kitsattn.checkpoint.export import export_checkpoint

    result = export_checkpoint(file, output, metadata, overwrite=overwrite)
    if result.synthetic:
        warn(SYNTHETIC_MODEL_NOTICE)
    if json:
        print_json(
            {
                "input": str(file),
                "output": str(output),
                "slices": result.slices,
                "classes": result.classes,
                "difference": result.difference,
                "synthetic": result.synthetic,
            }
        )
    else:
        shapes = f"(batch, {result.slices}, height, width) to {result.classes} logits a pixel"
        print_result(f"{output}: {shapes}; differs from {file} by {result.difference:.1g} of the largest logit")


def _network(name: str) -> dict[str, Any]:
    import torch

    from kitsattn.config import to_json
    from kitsattn.models import build_model, model_entry

    config = model_entry(name).config
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(name).parameters())
    return {"name": name, "parameters": parameters, "config": to_json(config)}


def _checkpoint(path: Path) -> dict[str, Any]:
    from kitsattn.checkpoint.header import FORMAT, MODEL_PREFIX, read_header
    from kitsattn.config import to_json

    header, tensors = read_header(path)
    values = sum(_size(info.shape) for name, info in tensors.items() if name.startswith(MODEL_PREFIX))
    content = to_json(header)
    resumable = content.pop("training") is not None
    return {"file": str(path), "format": FORMAT, **content, "values": values, "resumable": resumable}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _lines(content: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines
