"""`kitsattn models`: networks, trained models that come with kitsattn, what a checkpoint says of itself, exports."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kitsattn.cli.console import warn
from kitsattn.cli.options import Application, JsonOption, OverwriteOption
from kitsattn.cli.output import Output
from kitsattn.errors import KitsattnError
from kitsattn.files import expand_path
from kitsattn.notices import SYNTHETIC_MODEL_NOTICE
from kitsattn.words import suggest

if TYPE_CHECKING:
    from rich.table import Table

app = Application(help="List, describe and export networks and trained models.", no_args_is_help=True)

_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
"""Ends of the names of stored tensors that are not parameters."""


@app.command("list")
def list_models(*, json: JsonOption = False) -> None:
    """List the trained models that come with kitsattn, and the networks that can be trained, with their parameters.

    Example: kitsattn models list
    """
    from kitsattn.checkpoint.shipped import NAMES
    from kitsattn.models import model_names

    networks = [_network(name) for name in model_names()]
    weights = []
    for name in NAMES:
        try:
            weights.append(_shipped(name))
        except KitsattnError as error:
            warn(str(error))
    rows = [{**{key: row[key] for key in ("name", "parameters")}, "kind": "network"} for row in networks]
    Output(json).show([*rows, *weights], _tables(networks, weights))


def _tables(networks: Sequence[Mapping[str, Any]], weights: Sequence[Mapping[str, Any]]) -> "Iterator[Table]":
    from rich.table import Table

    if weights:
        table = Table("trained model", "parameters", "size", "accuracy on real scans", "licence")
        for row in weights:
            size = f"{row['size_bytes'] / 1e6:.1f} MB"
            table.add_row(row["name"], f"{row['parameters'] / 1e6:.1f} M", size, row["accuracy"], row["licence"])
        yield table
    table = Table("network", "parameters", "slices")
    for row in networks:
        table.add_row(row["name"], f"{row['parameters'] / 1e6:.1f} M", str(row["config"]["slices"]))
    yield table


@app.command("describe")
def describe(
    *,
    what: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A network, a model that comes with kitsattn, or a checkpoint.")
    ],
    json: JsonOption = False,
) -> None:
    """Describe a network by its settings, or a trained model by its header: quality, model, plan, labels, provenance.

    A model that comes with kitsattn is described by its model card, too.

    Example: kitsattn models describe starter
    """
    from kitsattn.checkpoint.shipped import NAMES, find_weights, read_card

    if what in NAMES:
        content = {"name": what, **_checkpoint(find_weights(what))}
        card = read_card(what)
    elif what.endswith(".safetensors") or expand_path(what).is_file():
        content, card = _checkpoint(expand_path(what)), ""
    else:
        content, card = _network(what), ""
    lines = [*_lines(content), *(["", card.rstrip()] if card else [])]
    Output(json).show({**content, "card": card} if card else content, lines)


@app.command("export")
def export(
    *,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE|NAME", help="Checkpoint, or a model that comes with kitsattn, such as starter."),
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The suffix is the format: .onnx (extra `export`) or .pt2 (torch.export)."),
    ],
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Export a checkpoint's network for use without kitsattn: it maps prepared slabs to logits.

    The file holds the weights and, as JSON, what `kitsattn models describe` says: how scans are prepared, the labels,
    the provenance. It is compared with the original before it takes its name.

    Example: kitsattn models export kitsattn-workspace/runs/demo/fold_0/best.safetensors demo.onnx
    """
    from kitsattn.checkpoint.shipped import find_weights

    path = find_weights(file)
    metadata = {**_checkpoint(path), "file": path.name}  # no folders of this machine in a file that travels

    from kitsattn.checkpoint.export import export_checkpoint

    result = export_checkpoint(path, output, metadata, overwrite=overwrite)
    if result.synthetic:
        warn(SYNTHETIC_MODEL_NOTICE)
    shapes = f"(batch, {result.slices}, height, width) to {result.classes} logits a pixel"
    difference = f"differs from {file} by {result.difference:.1g} of the largest logit"
    content = {
        "input": str(path),
        "output": str(output),
        "slices": result.slices,
        "classes": result.classes,
        "difference": result.difference,
        "synthetic": result.synthetic,
    }
    Output(json).show(content, [f"{output}: {shapes}; {difference}"])


def _network(name: str) -> dict[str, Any]:
    import torch

    from kitsattn.checkpoint.shipped import NAMES
    from kitsattn.config import to_json
    from kitsattn.models import build_model, model_entry, model_names

    known = [*model_names(), *NAMES]
    if name not in known:
        msg = (
            f"there is no model named {name!r}{suggest(name, known)}: choose one of {', '.join(known)}, or name a file"
        )
        raise KitsattnError(msg)
    config = model_entry(name).config
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(name).parameters())
    return {"name": name, "parameters": parameters, "config": to_json(config)}


def _checkpoint(path: Path) -> dict[str, Any]:
    from kitsattn.checkpoint.header import FORMAT, MODEL_PREFIX, describe_quality, read_header
    from kitsattn.config import to_json

    header, tensors = read_header(path)
    values = sum(_size(info.shape) for name, info in tensors.items() if name.startswith(MODEL_PREFIX))
    content = to_json(header)
    resumable = content.pop("training") is not None
    quality = describe_quality(header.provenance)
    about = {"file": str(path), "format": FORMAT, "quality": quality}
    return {**about, **content, "values": values, "resumable": resumable}


def _shipped(name: str) -> dict[str, Any]:
    """Return the row of a shipped model."""
    from kitsattn.checkpoint.header import MODEL_PREFIX, describe_accuracy, describe_quality, read_header
    from kitsattn.checkpoint.shipped import find_weights

    path = find_weights(name)
    header, tensors = read_header(path)
    learnt = [key for key in tensors if key.startswith(MODEL_PREFIX) and not key.endswith(_STATISTICS)]
    made = header.provenance
    return {
        "name": name,
        "parameters": sum(_size(tensors[key].shape) for key in learnt),
        "kind": "weights",
        "network": header.model,
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "accuracy": describe_accuracy(made),
        "quality": describe_quality(made),
        "dice": [asdict(score) for score in made.tests],
        "licence": made.licence,
    }


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
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            rows = (", ".join(f"{name} {item}" for name, item in row.items()) for row in value)
            lines += [f"{indent}{key}:", *(f"{indent}  - {row}" for row in rows)]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines
