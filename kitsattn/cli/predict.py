"""`kitsattn predict`: one scan in, one label map out; or a folder of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kitsattn.cli.console import configure_logging, say, warn
from kitsattn.cli.options import (
    AUTO,
    AssumeHuOption,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    PrecisionOption,
    WorkspaceOption,
    batch_size_check,
)
from kitsattn.cli.output import Output
from kitsattn.cli.progress import progress_bars
from kitsattn.errors import KitsattnError
from kitsattn.machine import keep_freed_memory
from kitsattn.notices import SYNTHETIC_MODEL_NOTICE
from kitsattn.words import plural
from kitsattn.workspace import Workspace

if TYPE_CHECKING:
    from kitsattn.predict.case import Prediction
    from kitsattn.predict.credits import Credits
    from kitsattn.predict.infer import Ensemble
    from kitsattn.predict.postprocess import Postprocessing


_PATIENCE = timedelta(days=7)
"""How long a process that has done its share waits for the others, which may have more to do."""


Format = Literal["nii.gz", "nii", "nrrd", "mha", "dicom-seg"]
Augmentation = Literal["none", "sides", "flips"]
"""`kitsattn.checkpoint.header.TTA`, which takes longer to import."""


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
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
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
    from kitsattn.predict.cases import DICOM_SUFFIX, read_ahead
    from kitsattn.predict.outputs import Extras, choose_work

    places, out = Workspace.choose(workspace), Output(json)
    suffix = DICOM_SUFFIX if format_ == "dicom-seg" else f".{format_}" if format_ else None
    extras = Extras(statistics, preview, probabilities, report)
    work = choose_work(
        source, output, places.predictions, suffix=suffix, series=series, assume_hu=assume_hu, extras=extras
    )
    _check_options(min_volume, post_process=post_process, locate=locate, fast=fast)
    finished = work.find_finished(overwrite=overwrite)
    first_scan = None if work.many else read_ahead(work.cases[0])  # of many scans, each process has others

    # Only now: loading torch takes seconds, and what is wrong with the paths is known without it.
    import torch

    from kitsattn.precision import choose_device, choose_precision
    from kitsattn.predict.credits import credits_of
    from kitsattn.predict.infer import Inference, load_ensemble
    from kitsattn.predict.run import predict_shared, recall_shared
    from kitsattn.ranks import join_ranks
    from kitsattn.threads import threads_beside_others

    chosen = choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    with join_ranks(chosen, _PATIENCE) as ranks:
        if ranks.size > 1:
            torch.set_num_threads(ranks.cores)
        if not ranks.is_main:
            configure_logging(verbose=False, quiet=True)
        finished = ranks.all_gather(finished)[0]  # by now another process may have finished one that this one lacked
        left = [case for case in work.cases if case not in finished]
        if output is None:
            say(f"output: {work.place}")
        if finished:
            say(f"{len(finished)} of {plural(len(work.cases), 'case')} finished earlier (--overwrite does them again)")
        models = _choose_models(model or (), places)
        ensemble = load_ensemble(models, ranks.device, choose_precision(precision, ranks.device))
        made = credits_of(ensemble)
        say("\n".join(f"quality: {quality}" for quality in made.qualities))
        size = None if batch_size == AUTO else int(batch_size)
        inference = Inference(batch_size=size, tta=tta, overlap=overlap, fast=fast)
        threads = torch.get_num_threads()
        with (
            progress_bars() as bars,
            threads_beside_others(bars, threads, watch=chosen.type == "cpu") as progress,
        ):
            results = predict_shared(
                ensemble,
                left,
                inference,
                ranks=ranks,
                locator=_load_locator(ensemble) if locate else None,
                rules=_choose_rules(min_volume) if post_process else None,
                overwrite=overwrite,
                first_scan=first_scan,
                progress=progress,
            )
        earlier = recall_shared(ensemble, finished, ranks) if report is not None else {}
        if not ranks.is_main:
            return
    if ensemble.synthetic:
        warn(SYNTHETIC_MODEL_NOTICE)
    if report is not None:
        from kitsattn.predict.report import write_report

        every = {**earlier, **results}
        write_report(report, ensemble, {case.name: every[case.name] for case in work.cases})
        say(f"report: {report}")
    _show(results, made, out, many=work.many)


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


def _show(results: "Mapping[str, Prediction | KitsattnError]", made: "Credits", output: Output, *, many: bool) -> None:
    """Show what was predicted; raise the error of a single scan, or count those of many."""
    errors = {name: result for name, result in results.items() if isinstance(result, KitsattnError)}
    if not many:
        for error in errors.values():
            raise error
    predictions = [result for result in results.values() if not isinstance(result, KitsattnError)]
    contents = [{**_to_json(result), "model": made.to_json()} for result in predictions]
    contents += [{"case": name, "error": str(error)} for name, error in errors.items()]
    output.show(contents if many else contents[0], _describe(predictions))
    for error in errors.values():
        warn(str(error))
    if errors:
        of_all = f"{len(errors)} of {plural(len(results), 'case')}"
        msg = f"{of_all} could not be predicted: fix or remove them, and run the command again"
        raise KitsattnError(msg)


def _describe(predictions: "Sequence[Prediction]") -> Iterator[str]:
    from kitsattn.predict.case import describe_volumes

    for result in predictions:
        yield f"{result.case.target}: {describe_volumes(result.volumes_ml)}"


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
