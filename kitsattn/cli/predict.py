"""`kitsattn predict`: one scan in, one label map out; or a folder of them."""

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from kitsattn.cli.console import configure_logging, print_json, print_result, progress_bars, say, warn
from kitsattn.cli.options import (
    AUTO,
    AssumeHuOption,
    Device,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    Precision,
    PrecisionOption,
    WorkspaceOption,
    batch_size_check,
    check_suffix,
)
from kitsattn.errors import KitsattnError
from kitsattn.files import check_target, missing, tidy_folder
from kitsattn.jobs import keep_freed_memory
from kitsattn.notices import SYNTHETIC_MODEL_NOTICE
from kitsattn.words import plural
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from kitsattn.predict.case import Prediction
    from kitsattn.predict.cases import PredictionCase
    from kitsattn.predict.credits import Credits
    from kitsattn.predict.infer import Ensemble
    from kitsattn.predict.postprocess import Postprocessing

Result = TypeVar("Result")

_PATIENCE = timedelta(days=7)
"""How long a process that has done its share waits for the others, which may have more to do."""
_ABANDONED_S = 3600.0
"""A label map that nobody has written to for so long is not being written any more."""


class Format(StrEnum):
    """Choices of --format."""

    nifti = "nii.gz"
    unpacked_nifti = "nii"
    nrrd = "nrrd"
    mha = "mha"
    dicom = "dicom-seg"


class Augmentation(StrEnum):
    """Choices of --tta."""

    none = "none"
    sides = "sides"
    flips = "flips"


def predict(
    *,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="CT scan in HU: NIfTI, NRRD, MHA, MHD; a folder or .zip of DICOM files. "
            "Or many: a KiTS folder, a folder of scans, a .txt with one path a line.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help="Label map, on the scan's own grid; the suffix is the format. For many scans a folder. "
            "(default: predictions/CASE.nii.gz)",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Checkpoint, or a model that comes with kitsattn, such as starter; repeat to average several. "
            "(default: $KITSATTN_MODEL, else all folds of the newest run on real scans, else starter)",
            show_default=False,
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|UID[:SCAN]",
            help="DICOM series to read. If it contains several scans, SCAN names one of them, for example "
            "7:acquisition=2; an error message lists the names. (default: the axial CT series with the most slices)",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Output format when OUT is a folder or omitted. dicom-seg, or an OUT that ends in .dcm, writes a "
            "DICOM Segmentation of a DICOM scan. (default: nii.gz)",
            show_default=False,
        ),
    ] = None,
    tta: Annotated[
        Augmentation | None,
        typer.Option(
            help="Test-time augmentation: sides averages the prediction with that of the left-right mirror image, "
            "flips averages four mirror images; slower and smoother. (default: what the model asks for)",
            show_default=False,
        ),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Look at slices 10 mm apart first, then only around what was found.")
    ] = False,
    locate: Annotated[
        bool,
        typer.Option(
            "--locate/--no-locate",
            help="Let the starter network find the kidneys first; the model predicts only the slices around them.",
        ),
    ] = False,
    post_process: Annotated[
        bool,
        typer.Option(
            "--postprocess/--no-postprocess",
            help="Remove objects that cannot be a kidney or a kidney mass; for models with the classes of KiTS.",
        ),
    ] = True,
    min_volume: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=20.0,
            metavar="ML",
            help="Remove objects smaller than this volume in ml. (default: 0.2)",
            show_default=False,
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write volumes, diameters, attenuation and sides of kidneys and masses as JSON; for many scans a "
            "folder.",
            show_default=False,
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="Draw slices with contours; for many scans a folder of pictures.", show_default=False
        ),
    ] = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the probabilities of all classes as 4-D NIfTI; for many scans a folder.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="HTML",
            help="Write one page with volumes and pictures of all scans, in place of an older one.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            callback=batch_size_check(1),
            help="Slices per forward pass; auto uses 2 on a CPU, 16 on a GPU, fewer if memory is short.",
        ),
    ] = AUTO,
    overlap: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.9, help="Fraction by which neighbouring windows overlap, in slices larger than one window."
        ),
    ] = 0.5,
    overwrite: OverwriteOption = False,
    assume_hu: AssumeHuOption = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Segment kidneys (1) and tumours (2) in a CT scan; the output has the scan's shape, affine and units.

    If IN holds many scans, finished ones are skipped, and one that fails does not stop the others. Processes
    started by torchrun share the work.

    Research use only, not a medical device. The command shows which model it uses, its accuracy and its licence.
    A model trained on synthetic phantoms is used only if you name it with --model.

    Example: kitsattn predict in.nii.gz out.nii.gz
    """
    from kitsattn.predict.cases import read_ahead

    places = Workspace.choose(workspace)
    many, cases = _choose_cases(source, output, places, format_)
    cases = [
        replace(
            case,
            series=series,
            statistics=_beside(statistics, case.name, ".json", many=many),
            preview=_beside(preview, case.name, ".png", many=many),
            probabilities=_beside(probabilities, case.name, ".nii.gz", many=many),
            pictured=report is not None,
            assume_hu=assume_hu,
        )
        for case in cases
    ]
    _check_options(min_volume, post_process=post_process, locate=locate, fast=fast)
    finished = _find_finished(cases, report, overwrite=overwrite, many=many)
    first_scan = None if many else read_ahead(cases[0])  # of many scans, each process has others

    # Only now: loading torch takes seconds, and what is wrong with the paths is known without it.
    import torch

    from kitsattn.kernels.precision import choose_device, choose_precision
    from kitsattn.predict.case import recall_case
    from kitsattn.predict.credits import credits_of
    from kitsattn.predict.infer import Inference, load_ensemble
    from kitsattn.predict.run import attempt, predict_cases
    from kitsattn.ranks import join_ranks
    from kitsattn.threads import threads_beside_others

    chosen = choose_device(device.value)
    if chosen.type == "cpu":
        keep_freed_memory()
    with join_ranks(chosen, _PATIENCE) as ranks:
        if ranks.size > 1:
            torch.set_num_threads(ranks.cores)
        if not ranks.leads:
            configure_logging(verbose=False, quiet=True)
        finished = ranks.gather(finished)[0]  # by now another process may have finished one that this one lacked
        left = [case for case in cases if case not in finished]
        if output is None:
            say(f"output: {cases[0].target.parent if many else cases[0].target}")
        if finished:
            say(f"{len(finished)} of {plural(len(cases), 'case')} finished earlier (--overwrite does them again)")
        models = _choose_models(model or (), places)
        ensemble = load_ensemble(models, ranks.device, choose_precision(precision.value, ranks.device))
        made = credits_of(ensemble)
        say("\n".join(f"quality: {quality}" for quality in made.qualities))
        inference = Inference(
            batch_size=None if batch_size == AUTO else int(batch_size),
            tta=None if tta is None else tta.value,
            overlap=overlap,
            fast=fast,
        )
        threads = torch.get_num_threads()
        with (
            progress_bars() as bars,
            threads_beside_others(bars, threads, watch=chosen.type == "cpu") as progress,
        ):
            own = predict_cases(
                ensemble,
                ranks.share(left),
                inference,
                locator=_load_locator(ensemble) if locate else None,
                rules=_choose_rules(min_volume) if post_process else None,
                overwrite=overwrite,
                first_scan=first_scan,
                progress=progress,
            )
        shown = finished if report is not None else []
        recalled = [attempt(case, partial(recall_case, ensemble, case)) for case in ranks.share(shown)]
        results, earlier = _join(left, ranks.gather(own)), _join(shown, ranks.gather(recalled))
        if not ranks.leads:
            return
    if ensemble.synthetic:
        warn(SYNTHETIC_MODEL_NOTICE)
    if report is not None:
        from kitsattn.predict.report import write_report

        every = {**earlier, **results}
        write_report(report, ensemble, {case.name: every[case.name] for case in cases})
        say(f"report: {report}")
    _tell(results, made, many=many, json=json)


def _check_options(min_volume_ml: float | None, *, post_process: bool, locate: bool, fast: bool) -> None:
    """Refuse options that contradict each other."""
    if min_volume_ml is not None and not post_process:
        msg = "--min-volume is a rule of post-processing: leave it or --no-postprocess out"
        raise KitsattnError(msg)
    if locate and fast:
        msg = "--locate and --fast both choose the slices to predict: leave out one of them"
        raise KitsattnError(msg)


def _load_locator(ensemble: "Ensemble") -> "Ensemble | None":
    """Load the starter to find kidneys for other networks, where they run; None if they are the starter itself."""
    from kitsattn.checkpoint.shipped import DEFAULT, find_weights
    from kitsattn.predict.infer import load_ensemble

    path = find_weights(DEFAULT)
    if ensemble.paths == (path,):
        say("--locate changes nothing: the model is the starter itself; --fast does the same with one network")
        return None
    return load_ensemble([path], ensemble.device, ensemble.precision)


def _choose_rules(min_volume_ml: float | None) -> "Postprocessing":
    from kitsattn.predict.case import DEFAULT_RULES

    return DEFAULT_RULES if min_volume_ml is None else replace(DEFAULT_RULES, min_volume_ml=min_volume_ml)


def _find_finished(
    cases: "Sequence[PredictionCase]", report: Path | None, *, overwrite: bool, many: bool
) -> "list[PredictionCase]":
    """Return those of many cases that were predicted earlier; refuse the others' outputs if they cannot be written.

    What a killed run left half-written in the folder of many cases is removed.
    """
    if many:
        tidy_folder(cases[0].target.parent, older_s=_ABANDONED_S)
    finished = [case for case in cases if _is_finished(case)] if many and not overwrite else []
    inputs = {_identity(case.source) for case in cases if case.source.exists()}
    for case in cases:
        if case not in finished:
            _check_outputs(case, report, inputs, overwrite=overwrite, many=many)
    return finished


def _identity(path: Path) -> tuple[int, int]:
    """Return what two names of one file have in common."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_finished(case: "PredictionCase") -> bool:
    """Tell whether all that is asked for is there; the label map is written last."""
    wanted = (case.target, case.statistics, case.preview, case.probabilities)
    return all(path.exists() for path in wanted if path is not None)


def _join(cases: "Sequence[PredictionCase]", shares: Sequence[Sequence[Result]]) -> dict[str, Result]:
    """Return the results by name of the case, from the shares of all processes."""
    return {case.name: shares[number % len(shares)][number // len(shares)] for number, case in enumerate(cases)}


def _choose_cases(
    source: Path, output: Path | None, places: Workspace, chosen: Format | None
) -> "tuple[bool, list[PredictionCase]]":
    """Return whether many scans were named, and what is predicted."""
    from kitsattn.datasets.kits import scan_name
    from kitsattn.predict.cases import DICOM_SUFFIX, PredictionCase, find_cases, holds_cases
    from kitsattn.volume.formats import OUTPUT_SUFFIXES

    if not source.exists():
        raise missing(source)
    suffix = DICOM_SUFFIX if chosen is Format.dicom else f".{chosen or Format.nifti}"
    is_file = output is not None and output.name.lower().endswith((*OUTPUT_SUFFIXES, DICOM_SUFFIX))
    name = scan_name(source)
    if holds_cases(source) or (source.is_dir() and output is not None and not is_file):
        if is_file:
            msg = f"{source} holds several scans, and {output} is one file: name a folder for their label maps"
            raise KitsattnError(msg)
        folder = output or places.predictions / name
        if folder.exists() and source.is_dir() and folder.samefile(source):
            msg = f"{folder} holds the scans themselves: name another folder for their label maps"
            raise KitsattnError(msg)
        return True, find_cases(source, folder, suffix)
    if output is None:
        output = places.predictions / f"{name}{suffix}"
    elif output.is_dir():
        output /= f"{name}{suffix}"
    elif chosen and not output.name.lower().endswith(suffix):
        msg = f"{output} is not named as --format {chosen} is: name it {suffix}, or leave --format out"
        raise KitsattnError(msg)
    return False, [PredictionCase(name=name, source=source, target=output)]


def _beside(path: Path | None, name: str, suffix: str, *, many: bool) -> Path | None:
    """Return the file of one case: the one that was named, or one in the folder that was named for many."""
    return path / f"{name}{suffix}" if many and path is not None else path


def _check_outputs(
    case: "PredictionCase", report: Path | None, inputs: Container[tuple[int, int]], *, overwrite: bool, many: bool
) -> None:
    """Refuse outputs that cannot be written, or that are one file, before any work is put into them.

    Of many scans, what lies beside a label map that is not there is from a run that was stopped, and is replaced.
    """
    from kitsattn.predict.cases import DICOM_SUFFIX
    from kitsattn.volume.formats import check_output

    if case.target.suffix.lower() != DICOM_SUFFIX:
        check_output(case.target)
    named = [path for path in (case.target, case.statistics, case.preview, case.probabilities, report) if path]
    twice = [path for number, path in enumerate(named) if path.absolute() in map(Path.absolute, named[:number])]
    if twice:
        msg = f"{twice[0]} would be written twice: name another file or folder for each output"
        raise KitsattnError(msg)
    for path, suffixes in (
        (case.target, ()),
        (case.statistics, (".json",)),
        (case.preview, (".png",)),
        (case.probabilities, (".nii.gz", ".nii")),
        (report, (".html", ".htm")),
    ):
        if path is None:
            continue
        if suffixes:
            check_suffix(path, *suffixes)
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            msg = f"{path} cannot be written: {folder} is not a folder that you may write to; name another output"
            raise KitsattnError(msg)
        replaced = overwrite or path == report or (many and path != case.target)
        check_target(path, case.source, overwrite=replaced)
        if path.exists() and _identity(path) in inputs:
            msg = f"{path} is one of the scans, which would be lost: name another output"
            raise KitsattnError(msg)


def _choose_models(named: Sequence[str], places: Workspace) -> tuple[Path, ...]:
    """Return the checkpoints to use, and print which."""
    from kitsattn.checkpoint.shipped import NAMES, weights_path
    from kitsattn.predict.select import choose_models

    choice = choose_models(named, places)
    if choice.passed_over is not None:
        run = choice.passed_over.parents[1].name
        say(f"run {run} is not used, it was trained on synthetic phantoms; to use it: --model {choice.passed_over}")
    shipped = {weights_path(name): f"{name} (comes with kitsattn)" for name in NAMES}
    say(f"model: {', '.join(shipped.get(path, str(path)) for path in choice.paths)}")
    return choice.paths


def _tell(results: "Mapping[str, Prediction | KitsattnError]", made: "Credits", *, many: bool, json: bool) -> None:
    """Print what was predicted; raise the error of a single scan, or count those of many."""
    errors = {name: result for name, result in results.items() if isinstance(result, KitsattnError)}
    if not many:
        for error in errors.values():
            raise error
    predictions = [result for result in results.values() if not isinstance(result, KitsattnError)]
    if json:
        contents = [{**_to_json(result), "model": made.to_json()} for result in predictions]
        contents += [{"case": name, "error": str(error)} for name, error in errors.items()]
        print_json(contents if many else contents[0])
    else:
        from kitsattn.predict.case import describe_volumes

        for result in predictions:
            print_result(f"{result.case.target}: {describe_volumes(result.volumes_ml)}")
    for error in errors.values():
        warn(str(error))
    if errors:
        of_all = f"{len(errors)} of {plural(len(results), 'case')}"
        msg = f"{of_all} could not be predicted: fix or remove them, and run the command again"
        raise KitsattnError(msg)


def _to_json(result: "Prediction") -> dict[str, object]:
    return {
        "case": result.case.name,
        "input": str(result.case.source),
        "output": str(result.case.target),
        "volumes_ml": result.volumes_ml,
        "postprocessing": None if result.postprocessing is None else result.postprocessing.to_json()["steps"],
        "notes": list(result.notes),
        "synthetic": result.synthetic,
    }
