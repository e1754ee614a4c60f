"""Which scans are predicted and where the results go; outputs are checked before any work is put into them.

Free of torch, so that what is wrong with the paths is known at once.
"""

import os
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

from kitsattn.datasets.kits import scan_name
from kitsattn.errors import KitsattnError
from kitsattn.files import check_suffix, check_target, missing, tidy_folder
from kitsattn.predict.cases import DICOM_SUFFIX, PredictionCase, find_cases, holds_cases
from kitsattn.volume.formats import OUTPUT_SUFFIXES, check_output

_ABANDONED_S = 3600.0
"""A label map that nobody has written to for so long is not being written any more."""


@dataclass(frozen=True)
class Extras:
    """What is written besides the label map. Of many scans each is a folder, but for the report.

    Attributes:
        statistics: Volumes, diameters and attenuation as JSON.
        preview: Slices with contours as PNG.
        probabilities: Of all classes, as 4-D NIfTI.
        report: One HTML page on all scans.
    """

    statistics: Path | None = None
    preview: Path | None = None
    probabilities: Path | None = None
    report: Path | None = None


@dataclass(frozen=True)
class Work:
    """What is predicted.

    Attributes:
        cases: The scans and their outputs.
        many: Whether a folder or a list of scans was named; one that fails does not stop the others then.
        report: Where the page on all scans goes.
    """

    cases: tuple[PredictionCase, ...]
    many: bool
    report: Path | None = None

    @property
    def place(self) -> Path:
        """The label map, or the folder of many."""
        return self.cases[0].target.parent if self.many else self.cases[0].target

    def find_finished(self, *, overwrite: bool) -> list[PredictionCase]:
        """Return which of many cases were predicted earlier, and check the outputs of the others.

        What a killed run left half-written in the folder of many cases is removed.

        Args:
            overwrite: Whether existing outputs may be replaced; then none counts as predicted earlier.

        Raises:
            KitsattnError: If an output cannot be written, exists and may not be replaced, is one of the scans, or is
                named twice.
        """
        if self.many:
            tidy_folder(self.cases[0].target.parent, older_s=_ABANDONED_S)
        finished = [case for case in self.cases if _is_finished(case)] if self.many and not overwrite else []
        inputs = {_identity(case.source) for case in self.cases if case.source.exists()}
        for case in self.cases:
            if case not in finished:
                self._check_outputs(case, inputs, overwrite=overwrite)
        return finished

    def _check_outputs(self, case: PredictionCase, inputs: Container[tuple[int, int]], *, overwrite: bool) -> None:
        """Refuse outputs of a case that cannot be written, or that are one file.

        Of many scans, what is beside a label map that is not there is from a run that was stopped, and is replaced.
        """
        if case.target.suffix.lower() != DICOM_SUFFIX:
            check_output(case.target)
        named = [path for path in (case.target, case.statistics, case.preview, case.probabilities, self.report) if path]
        twice = [path for number, path in enumerate(named) if path.absolute() in map(Path.absolute, named[:number])]
        if twice:
            msg = f"{twice[0]} would be written twice: name another file or folder for each output"
            raise KitsattnError(msg)
        for path, suffixes in (
            (case.target, ()),
            (case.statistics, (".json",)),
            (case.preview, (".png",)),
            (case.probabilities, (".nii.gz", ".nii")),
            (self.report, (".html", ".htm")),
        ):
            if path is None:
                continue
            if suffixes:
                check_suffix(path, *suffixes)
            folder = next(folder for folder in path.absolute().parents if folder.exists())
            if not (folder.is_dir() and os.access(folder, os.W_OK)):
                msg = f"{path} cannot be written: {folder} is not a folder that you may write to; name another output"
                raise KitsattnError(msg)
            replaced = overwrite or path == self.report or (self.many and path != case.target)
            check_target(path, case.source, overwrite=replaced)
            if path.exists() and _identity(path) in inputs:
                msg = f"{path} is one of the scans, which would be lost: name another output"
                raise KitsattnError(msg)


def choose_work(
    source: Path,
    output: Path | None,
    folder: Path,
    *,
    suffix: str | None = None,
    series: str | None = None,
    assume_hu: bool = False,
    extras: Extras | None = None,
) -> Work:
    """Choose what is predicted.

    Args:
        source: A scan, or a folder or list of scans.
        output: Where the label map goes, a file or a folder; None chooses a place in `folder`.
        folder: Where label maps go without an output.
        suffix: Format of label maps whose names are not given, such as ".nii.gz", which is the default.
        series: See `PredictionCase`.
        assume_hu: See `PredictionCase`.
        extras: What else is written.

    Raises:
        KitsattnError: If there is no scan, or the output does not fit.
    """
    if not source.exists():
        raise missing(source)
    extras = extras or Extras()
    many, cases = _choose_cases(source, output, folder, suffix)
    return Work(
        tuple(
            replace(
                case,
                series=series,
                statistics=_of_case(extras.statistics, case.name, ".json", many=many),
                preview=_of_case(extras.preview, case.name, ".png", many=many),
                probabilities=_of_case(extras.probabilities, case.name, ".nii.gz", many=many),
                pictured=extras.report is not None,
                assume_hu=assume_hu,
            )
            for case in cases
        ),
        many,
        extras.report,
    )


def _choose_cases(
    source: Path, output: Path | None, folder: Path, suffix: str | None
) -> tuple[bool, list[PredictionCase]]:
    """Return whether many scans were named, and what is predicted."""
    is_file = output is not None and output.name.lower().endswith((*OUTPUT_SUFFIXES, DICOM_SUFFIX))
    name, ending = scan_name(source), suffix or ".nii.gz"
    if holds_cases(source) or (source.is_dir() and output is not None and not is_file):
        if is_file:
            msg = f"{source} holds several scans, and {output} is one file: name a folder for their label maps"
            raise KitsattnError(msg)
        target = output or folder / name
        if target.exists() and source.is_dir() and target.samefile(source):
            msg = f"{target} holds the scans themselves: name another folder for their label maps"
            raise KitsattnError(msg)
        return True, find_cases(source, target, ending)
    if output is None:
        output = folder / f"{name}{ending}"
    elif output.is_dir():
        output /= f"{name}{ending}"
    elif suffix and not output.name.lower().endswith(suffix):
        msg = f"{output} does not end in {suffix}, as the format that you chose does: rename it, or leave --format out"
        raise KitsattnError(msg)
    return False, [PredictionCase(name=name, source=source, target=output)]


def _of_case(path: Path | None, name: str, suffix: str, *, many: bool) -> Path | None:
    """Return the file of one case: the one that was named, or one in the folder that was named for many."""
    return path / f"{name}{suffix}" if many and path is not None else path


def _is_finished(case: PredictionCase) -> bool:
    """Tell whether all that is asked for is there; the label map is written last."""
    wanted = (case.target, case.statistics, case.preview, case.probabilities)
    return all(path.exists() for path in wanted if path is not None)


def _identity(path: Path) -> tuple[int, int]:
    """Return what two names of one file have in common."""
    status = path.stat()
    return status.st_dev, status.st_ino
