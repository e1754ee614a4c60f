"""The page of a prediction: volumes of every case, what failed, and a picture of each."""

from collections.abc import Mapping
from pathlib import Path

from kitsattn.errors import KitsattnError
from kitsattn.figures.overlay import COMPACT_SIZE
from kitsattn.figures.page import Leaf, Leaves, Link, Page, Picture, Table, write_page
from kitsattn.labels import BACKGROUND
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_MODEL_NOTICE
from kitsattn.predict.case import Prediction, describe_volumes
from kitsattn.predict.credits import credits_of
from kitsattn.predict.infer import Ensemble
from kitsattn.words import plural

_CASES = "cases"


def write_report(path: Path, ensemble: Ensemble, results: Mapping[str, Prediction | KitsattnError]) -> None:
    """Write a page that needs no other file, atomically, replacing an existing one; it names cases by their files.

    Args:
        path: The HTML file.
        ensemble: The networks.
        results: Name of a case to what was predicted, or the error it failed with.

    Raises:
        KitsattnError: If the file cannot be written.
    """
    predictions = {name: result for name, result in results.items() if isinstance(result, Prediction)}
    errors = tuple((name, str(result)) for name, result in results.items() if isinstance(result, KitsattnError))
    # Numbers, not names: a name may hold what an anchor must not.
    anchors = {name: f"case-{number}" for number, name in enumerate(predictions, start=1)}
    classes = [name for name, value in ensemble.headers[0].labels.items() if value != BACKGROUND]
    notes = ("Volumes are voxels times the volume of a voxel, in ml.",)
    rows: tuple[tuple[str | Link, ...], ...] = tuple(
        (Link(name, anchors[name]), *(f"{result.volumes_ml[kind]:.1f}" for kind in classes), _changed(result))
        for name, result in predictions.items()
    )
    columns = ("Case", *(f"{kind.capitalize()}, ml" for kind in classes), "Post-processing")
    parts: list[Table | Leaves] = [
        Table(
            plural(len(rows), "case"),
            columns,
            rows,
            notes=notes,
            numbers=frozenset(columns[1:-1]),
            anchor=_CASES,
        )
    ]
    if errors:
        parts.append(Table(f"{plural(len(errors), 'case')} could not be predicted", ("Case", "What is wrong"), errors))
    leaves = tuple(
        Leaf(
            anchors[name],
            name,
            Picture(result.picture, describe_volumes(result.volumes_ml), f"Slices of {name} with outlines"),
            result.notes,
        )
        for name, result in predictions.items()
        if result.picture is not None
    )
    if leaves:
        parts.append(Leaves("Pictures", leaves, COMPACT_SIZE, Link("all cases", _CASES)))
    made = credits_of(ensemble)
    provenance = {
        "model": made.name,
        "quality": made.quality,
        "network": ensemble.headers[0].model,
        "checkpoints": ", ".join(str(checkpoint) for checkpoint in ensemble.paths),
        "training data": ensemble.headers[0].provenance.dataset,
        "licence of the training data": made.licence,
    }
    if made.sources:
        provenance["training data"] = "; ".join(
            f"{source.name} ({source.count} {source.unit}, {source.licence}): {source.citation}"
            for source in made.sources
        )
    warnings = (SYNTHETIC_MODEL_NOTICE, RESEARCH_NOTICE) if ensemble.synthetic else (RESEARCH_NOTICE,)
    write_page(path, Page("Predicted kidneys and tumours", warnings, tuple(parts), provenance))


def _changed(result: Prediction) -> str:
    if result.postprocessing is None:
        return "none"
    return plural(result.postprocessing.voxels, "voxel") + " changed"
