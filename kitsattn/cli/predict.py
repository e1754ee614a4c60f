"""`kitsattn predict`: one scan in, one label map out."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kitsattn.cli.console import print_json, print_result, progress_bars, say, warn
from kitsattn.cli.options import (
    Device,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    Precision,
    PrecisionOption,
    WorkspaceOption,
)
from kitsattn.errors import KitsattnError
from kitsattn.files import check_target
from kitsattn.jobs import keep_freed_memory
from kitsattn.notices import SYNTHETIC_MODEL_NOTICE
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from kitsattn.predict.run import Prediction


def predict(
    *,
    scan: Annotated[
        Path,
        typer.Argument(metavar="IN", help="CT scan in HU: NIfTI, NRRD, MHA, MHD; a folder or .zip of DICOM files."),
    ],
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help="Label map, on the scan's own grid; the suffix is the format. (default: predictions/CASE.nii.gz)",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Checkpoint; name several to average them. (default: all folds of the newest run)",
            show_default=False,
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|UID",
            help="Series of several in DICOM. (default: the CT series with the most slices)",
            show_default=False,
        ),
    ] = None,
    post_process: Annotated[
        bool,
        typer.Option(
            "--postprocess/--no-postprocess",
            help="Remove what cannot be a kidney or a mass of one; only where the classes are KiTS's.",
        ),
    ] = True,
    min_volume: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=20.0, metavar="ML", help="Remove smaller objects, in ml. (default: 0.2)", show_default=False
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write volumes, diameters, attenuation and sides of kidneys and masses as JSON.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="Slices in one forward pass.")] = 4,
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Segment kidneys (1) and tumours (2) in a CT scan; the output has the scan's shape, affine and units.

    Research use only, not a medical device. A model trained on synthetic phantoms is used only when --model names it.

    Example: kitsattn predict in.nii.gz out.nii.gz
    """
    from kitsattn.datasets.kits import scan_name

    places = Workspace.choose(workspace)
    if output is None:
        output = places.predictions / f"{scan_name(scan)}.nii.gz"
        say(f"output: {output}")
    _check_output(scan, output, overwrite=overwrite)
    if statistics is not None:
        check_target(statistics, scan, overwrite=overwrite)

    # Only now: loading torch takes seconds, and what is wrong with the paths is known without it.
    from kitsattn.kernels.precision import choose_device, choose_precision
    from kitsattn.predict.infer import load_ensemble
    from kitsattn.predict.run import DEFAULT_RULES, predict_file
    from kitsattn.predict.select import newest_models

    if not model:
        model = newest_models(places)
        say(f"model: {', '.join(map(str, model))}")
    chosen = choose_device(device.value)
    if chosen.type == "cpu":
        keep_freed_memory()
    ensemble = load_ensemble(model, chosen, choose_precision(precision.value, chosen))
    rules = DEFAULT_RULES if min_volume is None else replace(DEFAULT_RULES, min_volume_ml=min_volume)
    with progress_bars() as progress:
        result = predict_file(
            ensemble,
            scan,
            output,
            series=series,
            rules=rules if post_process else None,
            statistics=statistics,
            batch_size=batch_size,
            overwrite=overwrite,
            progress=progress,
        )
    if result.synthetic:
        warn(SYNTHETIC_MODEL_NOTICE)
    if json:
        print_json(_to_json(result))
    else:
        volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in result.volumes_ml.items())
        print_result(f"{output}: {volumes}")


def _check_output(scan: Path, output: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before any work is put into it."""
    from kitsattn.volume.formats import check_output

    check_output(output)
    folder = next(folder for folder in output.absolute().parents if folder.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        msg = f"{output} cannot be written: {folder} is no folder that you may write to; name another output"
        raise KitsattnError(msg)
    check_target(output, scan, overwrite=overwrite)


def _to_json(result: "Prediction") -> dict[str, object]:
    return {
        "input": str(result.source),
        "output": str(result.target),
        "volumes_ml": result.volumes_ml,
        "postprocessing": None if result.postprocessing is None else result.postprocessing.to_json()["steps"],
        "notes": list(result.notes),
        "synthetic": result.synthetic,
    }
