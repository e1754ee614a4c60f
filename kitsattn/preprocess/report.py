"""What preprocessing leaves for people: one HTML page with plan, plots, findings, and a preview of every case."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from kitsattn.errors import KitsattnError
from kitsattn.figures.overlay import COMPACT_SIZE
from kitsattn.figures.page import Gallery, Leaf, Leaves, Link, Page, Picture, Table, write_page
from kitsattn.figures.plots import plot_intensities, plot_sizes, plot_spacing, plot_volumes
from kitsattn.files import write_bytes
from kitsattn.jobs import HERE, Progress, Workers, silent, try_cases
from kitsattn.notices import RESEARCH_NOTICE
from kitsattn.preprocess.fingerprint import Fingerprint
from kitsattn.preprocess.folder import REPORT_FILE
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.preview import draw_preview
from kitsattn.preprocess.run import Prepared
from kitsattn.preprocess.store import PreparedDataset
from kitsattn.preprocess.verify import Finding
from kitsattn.version import __version__
from kitsattn.volume.geometry import voxel_ml
from kitsattn.words import plural

PREVIEWS_FOLDER = "previews"

_SYNTHETIC_NOTICE = "SYNTHETIC: phantoms, not patients."
_CASES = "cases"


def report_dataset(
    result: Prepared,
    *,
    next_step: str = "kitsattn train --fold 0",
    workers: Workers = HERE,
    progress: Progress = silent,
) -> Path:
    """Draw a preview of every case of a prepared data set, and write the page for quality control beside its plan.

    Previews that are newer than their case are kept.

    Args:
        result: What preprocessing returned.
        next_step: What to type to train the first fold on these cases.
        workers: Who draws.
        progress: Called after each preview.

    Returns:
        The page.

    Raises:
        KitsattnError: If a prepared case is damaged, or a file cannot be written.
    """
    dataset = replace(result.dataset, folder=result.dataset.folder.absolute())
    drawn = try_cases(
        partial(_draw_preview, dataset),
        dataset.cases,
        workers=workers,
        label="previews",
        progress=progress,
    )
    previews = {}
    for case_id, preview in zip(dataset.cases, drawn, strict=True):
        if isinstance(preview, KitsattnError):
            raise preview
        previews[case_id] = preview
    path = result.dataset.folder / REPORT_FILE
    write_report(
        path,
        title=f"{dataset.name}: prepared cases",
        plan=dataset.plan,
        fingerprints=result.fingerprints,
        findings=result.findings,
        previews=previews,
        synthetic=dataset.synthetic,
        provenance={
            "data set": dataset.name,
            "licence": dataset.licence,
            "citation": dataset.citation,
            "folder": str(dataset.folder),
            "version": f"kitsattn {__version__}",
        },
        next_steps={next_step: "Train the first of five folds on these cases."},
    )
    return path


def write_report(
    path: Path,
    *,
    title: str,
    plan: Plan,
    fingerprints: Sequence[Fingerprint],
    findings: Sequence[Finding],
    previews: Mapping[str, Path],
    synthetic: bool,
    provenance: Mapping[str, str] | None = None,
    next_steps: Mapping[str, str] | None = None,
) -> None:
    """Write a page for quality control that needs no other file, atomically, replacing an existing one.

    Args:
        path: The HTML file.
        title: The page's headline.
        plan: How the cases were prepared.
        fingerprints: Of the prepared cases, at least one, in the order in which they are shown.
        findings: What is wrong or odd, in the order in which it is shown. A case that has findings but no fingerprint
            is listed as not prepared.
        previews: Prepared case to its picture, as `draw_preview` draws it. A case without one is listed all the same.
        synthetic: Whether the cases are phantoms.
        provenance: What the data come from and were prepared with, by name.
        next_steps: What to type next: command to purpose.

    Raises:
        KitsattnError: If the file cannot be written.
        OSError: If a preview cannot be read.
    """
    # Numbers, not names: a name may hold what an anchor must not.
    shown = [fingerprint.case_id for fingerprint in fingerprints if fingerprint.case_id in previews]
    anchors = {case_id: f"case-{number}" for number, case_id in enumerate(shown, start=1)}
    of_case = defaultdict(list)
    for finding in findings:
        of_case[finding.case_id].append(finding)
    parts: list[Table | Gallery | Leaves] = [
        _summary_table(fingerprints, findings),
        _plan_table(plan),
        Gallery("Plots", _plots(fingerprints, plan), side_by_side=True),
        _findings_table(findings, anchors),
        _case_table(fingerprints, of_case, anchors),
    ]
    leaves = tuple(
        _leaf(fingerprint, anchors[fingerprint.case_id], previews[fingerprint.case_id], of_case[fingerprint.case_id])
        for fingerprint in fingerprints
        if fingerprint.case_id in anchors
    )
    if leaves:
        parts.append(Leaves("Previews", leaves, COMPACT_SIZE, Link("all cases", _CASES)))
    warnings = (_SYNTHETIC_NOTICE, RESEARCH_NOTICE) if synthetic else (RESEARCH_NOTICE,)
    write_page(path, Page(title, warnings, tuple(parts), provenance or {}, next_steps or {}))


def _draw_preview(dataset: PreparedDataset, case_id: str) -> Path:
    case = dataset.open_case(case_id)
    path = dataset.folder / PREVIEWS_FOLDER / f"{case_id}.webp"
    if not path.is_file() or path.stat().st_mtime_ns < case.file.stat().st_mtime_ns:
        with case.opened() as (hu, labels):
            write_bytes(path, draw_preview(hu, labels, spacing_mm=case.spacing_mm, case_id=case_id))
    return path


def _summary_table(fingerprints: Sequence[Fingerprint], findings: Sequence[Finding]) -> Table:
    rows: list[tuple[str, str, str, str]] = [
        ("Slices", *_spread([fingerprint.shape[0] for fingerprint in fingerprints], "{:.0f}")),
        ("Distance of slices, mm", *_spread([fingerprint.spacing_mm[0] for fingerprint in fingerprints], "{:.2f}")),
    ]
    for axis, name in ((1, "rows"), (2, "columns")):
        rows.append((f"Number of {name}", *_spread([case.shape[axis] for case in fingerprints], "{:.0f}")))
        rows.append((f"Distance of {name}, mm", *_spread([case.spacing_mm[axis] for case in fingerprints], "{:.3f}")))
    notes = []
    for name, volumes in _volumes_ml(fingerprints).items():
        present = [volume for volume in volumes.values() if volume > 0]
        if present:
            rows.append((f"{name.capitalize()}, ml", *_spread(present, "{:.1f}")))
        absent = len(volumes) - len(present)
        if absent:
            notes.append(f"{name.capitalize()}: absent from {absent} of {len(volumes)} cases, left out above.")
    counts = Counter(finding.severity for finding in findings)
    found = ", ".join(plural(count, severity) for severity, count in counts.items())
    return Table(
        caption=f"Summary of {plural(len(fingerprints), 'prepared case')}",
        columns=("Quantity", "Lowest", "Median", "Highest"),
        rows=tuple(rows),
        notes=(*notes, f"Found: {found}." if found else "Nothing wrong or odd was found."),
        numbers=frozenset(("Lowest", "Median", "Highest")),
    )


def _plan_table(plan: Plan) -> Table:
    height, width = plan.patch_size
    return Table(
        caption="Plan",
        columns=("Setting", "Value", "What it does"),
        rows=(
            (
                "spacing_mm",
                f"{plan.spacing_mm[0]:g} x {plan.spacing_mm[1]:g} mm",
                "Slices are resampled to this distance of rows and columns; the distance of slices is kept.",
            ),
            ("clip_hu", f"{plan.clip_hu[0]:g} to {plan.clip_hu[1]:g} HU", "Values beyond are set to the nearer end."),
            (
                "mean_hu",
                f"{plan.mean_hu:.2f} HU",
                "Subtracted: the mean of labelled voxels, all cases weighing the same.",
            ),
            ("std_hu", f"{plan.std_hu:.2f} HU", "Divided by: the standard deviation of the same voxels."),
            ("patch_size", f"{height} x {width}", "Rows and columns of training patches and prediction windows."),
        ),
    )


def _plots(fingerprints: Sequence[Fingerprint], plan: Plan) -> tuple[Picture, ...]:
    spacings = {fingerprint.case_id: fingerprint.spacing_mm for fingerprint in fingerprints}
    shapes = {fingerprint.case_id: fingerprint.shape for fingerprint in fingerprints}
    histograms = {
        fingerprint.case_id: (fingerprint.foreground.lowest_hu, fingerprint.foreground.counts)
        for fingerprint in fingerprints
        if fingerprint.foreground is not None
    }
    pictures = [
        Picture(
            plot_spacing(spacings, plan.spacing_mm),
            "Spacing. Each dot is a case. The target is what slices are resampled to.",
            "Scatter plot of in-plane spacing against the distance of slices, with the target in-plane spacing. "
            "The numbers stand in the tables.",
        ),
        Picture(
            plot_sizes(shapes),
            "Size. Left: how many scans have how many slices. Right: how many have which rows and columns.",
            "Histogram of the number of slices, and bars for each number of rows and columns. "
            "The numbers stand in the tables.",
        ),
    ]
    if histograms:
        pictures.append(
            Picture(
                plot_intensities(histograms, clip_hu=plan.clip_hu, mean_hu=plan.mean_hu, std_hu=plan.std_hu),
                "Values of labelled voxels, not clipped. A case far from the others may be no CT in HU, or have "
                "labels of another scan.",
                "Histogram of the values of labelled voxels in HU, a line for each case and one for all, with the "
                f"window of {plan.clip_hu[0]:g} to {plan.clip_hu[1]:g} HU and the mean, {plan.mean_hu:.1f} HU.",
            )
        )
    pictures.append(
        Picture(
            plot_volumes(_volumes_ml(fingerprints)),
            "Labelled volumes. Of more than six cases those are named that are over 1.5 interquartile ranges beyond "
            "the quartiles.",
            "One dot for each case and class at its volume in ml, with the median of each class. "
            "The numbers stand in the tables.",
        )
    )
    return tuple(pictures)


def _findings_table(findings: Sequence[Finding], anchors: Mapping[str, str]) -> Table:
    return Table(
        caption="Findings",
        columns=("Case", "Severity", "What was found"),
        rows=tuple(
            (
                "all" if finding.case_id is None else _linked(finding.case_id, anchors),
                finding.severity,
                finding.text,
            )
            for finding in findings
        ),
        notes=() if findings else ("Nothing wrong or odd was found.",),
    )


def _case_table(
    fingerprints: Sequence[Fingerprint], of_case: Mapping[str | None, Sequence[Finding]], anchors: Mapping[str, str]
) -> Table:
    volumes = _volumes_ml(fingerprints)
    numbers = ("Slices", "Rows x columns", "Spacing, mm", *(f"{name.capitalize()}, ml" for name in volumes))
    rows: list[tuple[str | float | Link, ...]] = []
    for fingerprint in fingerprints:
        depth, height, width = fingerprint.shape
        case_id = fingerprint.case_id
        rows.append(
            (
                _linked(case_id, anchors),
                str(depth),
                f"{height} x {width}",
                " x ".join(f"{step:.3g}" for step in fingerprint.spacing_mm),
                *(f"{of_class[case_id]:.1f}" for of_class in volumes.values()),
                _counted(of_case.get(case_id, ())),
            )
        )
    prepared = {fingerprint.case_id for fingerprint in fingerprints}
    rows += [
        (case_id, *("" for _ in numbers), f"not prepared, {_counted(found)}")
        for case_id, found in of_case.items()
        if case_id is not None and case_id not in prepared
    ]
    return Table(
        caption="Cases",
        columns=("Case", *numbers, "Found"),
        rows=tuple(rows),
        notes=("Spacing: of slices, rows and columns. Sizes and volumes are those of the scan as it was read.",),
        numbers=frozenset(numbers),
        anchor=_CASES,
    )


def _leaf(fingerprint: Fingerprint, anchor: str, preview: Path, findings: Sequence[Finding]) -> Leaf:
    depth, height, width = fingerprint.shape
    spacing = " x ".join(f"{step:.3g}" for step in fingerprint.spacing_mm)
    volumes = ", ".join(
        f"{name} {count * voxel_ml(fingerprint.spacing_mm):.1f} ml"
        for name, count in fingerprint.voxels.items()
        if count
    )
    picture = Picture(
        preview,
        f"{depth} x {height} x {width} voxels of {spacing} mm. Labelled: {volumes or 'nothing'}.",
        f"Prepared slices of {fingerprint.case_id}, axial and coronal, with the outlines of what is labelled.",
    )
    remarks = tuple(f"{finding.severity}: {finding.text}" for finding in findings)
    return Leaf(anchor, fingerprint.case_id, picture, remarks)


def _volumes_ml(fingerprints: Sequence[Fingerprint]) -> dict[str, dict[str, float]]:
    """Return class name to case to volume."""
    return {
        name: {case.case_id: case.voxels.get(name, 0) * voxel_ml(case.spacing_mm) for case in fingerprints}
        for name in fingerprints[0].voxels
    }


def _linked(case_id: str, anchors: Mapping[str, str]) -> str | Link:
    return Link(case_id, anchors[case_id]) if case_id in anchors else case_id


def _counted(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.severity for finding in findings)
    return ", ".join(plural(count, severity) for severity, count in counts.items())


def _spread(values: Sequence[float], form: str) -> tuple[str, str, str]:
    return form.format(min(values)), form.format(median(values)), form.format(max(values))
