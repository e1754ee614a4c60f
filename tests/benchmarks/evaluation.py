"""Scores of one case against KiTS23's own code, surface-distance, MedPy and nnU-Net, in the same run; Linux only.

    python tests/benchmarks/evaluation.py [LABELS] [--peer-python VENV/bin/python] [--json FILE]

The reference is LABELS, a label map of KiTS19 (without it case_00003 of the folder kits19-labels in
$KITSATTN_TEST_DATA), the prediction is the same moved by a slice and two voxels and eroded by one. Scored are KiTS23's
three regions, reading included.

- KiTS23: `compute_metrics_for_case` of github.com/neheller/kits23, where that package is installed.
- surface-distance 0.1: Dice, surface Dice, HD95 and ASSD.
- MedPy: `hd95` of the first region, where the package is installed.
- nnU-Net: `nnUNetv2_evaluate_simple`, with --peer-python; its environment is that of preprocessing.py.

Each measurement is a process of its own; medians of --repeats.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measure import Cost, cost_of_call, cost_of_command, machine
from preprocessing import apart, make_parser, run

_COPIES = 100


def make_pair(labels: Path, folder: Path, copies: int) -> None:
    """Write reference and prediction, and folders of links to them."""
    import numpy as np
    from scipy import ndimage

    from kitsattn.volume.nifti import read_labels, write_labels

    reference = read_labels(labels)
    moved = np.roll(reference.array, (1, 2, 2), (0, 1, 2))
    predicted = moved * ndimage.binary_erosion(moved > 0)
    for name, volume in (("reference", reference), ("prediction", reference.with_array(predicted))):
        write_labels(folder / f"{name}.nii.gz", volume)
        for count in (1, copies):
            links = folder / f"{name}-{count}"
            links.mkdir()
            for number in range(count):
                (links / f"case_{number:05}.nii.gz").symlink_to(folder / f"{name}.nii.gz")


def score_here(folder: Path, keys: tuple[str, ...], definition: str = "surface-distance") -> tuple[Any, Cost, float]:
    """Return kitsattn's scores by region, what they cost, and the peak of the process in MB."""
    import scipy.spatial  # noqa: F401 - imported late by kitsattn, which must not be in the time: the peers' is not

    from kitsattn.evaluate.case import score_case
    from kitsattn.evaluate.definition import Definition
    from kitsattn.evaluate.metrics import METRICS
    from kitsattn.evaluate.scoring import Scoring
    from kitsattn.labels import KITS23

    metrics = tuple(metric for metric in METRICS if metric.key in keys)
    scoring = Scoring(KITS23, metrics, definition=Definition(definition))
    pair = (folder / "prediction.nii.gz", folder / "reference.nii.gz")
    scores, cost = cost_of_call(lambda: score_case("case", *pair, scoring))
    return {key: dict(values) for key, values in scores.regions.items()}, cost, _peak_mb()


def score_as_kits23(folder: Path) -> tuple[Any, Cost, float]:
    """Return Dice and surface Dice by the challenge's own code."""
    from kits23.evaluation.metrics import compute_metrics_for_case  # type: ignore[import-not-found]

    from kitsattn.labels import KITS23

    pair = (str(folder / "prediction.nii.gz"), str(folder / "reference.nii.gz"))
    values, cost = cost_of_call(lambda: compute_metrics_for_case(*pair))
    found = zip(KITS23.regions, values.tolist(), strict=True)
    return {region.key: {"dice": dice, "surface_dice": surface} for region, (dice, surface) in found}, cost, _peak_mb()


def score_with_surface_distance(folder: Path) -> tuple[Any, Cost, float]:
    """Return all four metrics with surface-distance."""
    import numpy as np
    import SimpleITK
    from surface_distance import metrics

    from kitsattn.labels import KITS23

    def score() -> dict[str, dict[str, float]]:
        images = [SimpleITK.ReadImage(folder / f"{name}.nii.gz") for name in ("prediction", "reference")]
        predicted, true = (SimpleITK.GetArrayFromImage(image) for image in images)
        spacing_mm = images[0].GetSpacing()[::-1]
        scores = {}
        for region in KITS23.regions:
            masks = np.isin(true, region.labels), np.isin(predicted, region.labels)
            distances = metrics.compute_surface_distances(*masks, spacing_mm)
            scores[region.key] = {
                "dice": metrics.compute_dice_coefficient(*masks),
                "surface_dice": metrics.compute_surface_dice_at_tolerance(distances, region.tolerance_mm),
                "hd95_mm": metrics.compute_robust_hausdorff(distances, 95),
                "assd_mm": float(np.mean(metrics.compute_average_surface_distance(distances))),
            }
        return scores

    return *cost_of_call(score), _peak_mb()


def score_with_medpy(folder: Path) -> tuple[Any, Cost, float]:
    """Return MedPy's HD95 of the first region, whose definition is another."""
    import numpy as np
    import SimpleITK
    from medpy.metric.binary import hd95  # type: ignore[import-not-found]

    def score() -> float:
        images = [SimpleITK.ReadImage(folder / f"{name}.nii.gz") for name in ("prediction", "reference")]
        masks = [SimpleITK.GetArrayFromImage(image) > 0 for image in images]
        return float(np.float64(hd95(*masks, voxelspacing=images[0].GetSpacing()[::-1])))

    return *cost_of_call(score), _peak_mb()


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def compare(repeats: int, own: Callable[[], Any], peer: Callable[[], Any]) -> dict[str, Any]:
    """Run both in turns; return medians, the median of the ratios, and the scores of both."""
    pairs = [(own(), peer()) for _ in range(repeats)]
    walls = [[found[1].wall_s for found in side] for side in zip(*pairs, strict=True)]
    ratios = [theirs / ours for ours, theirs in zip(*walls, strict=True)]
    return {
        "kitsattn_s": statistics.median(walls[0]),
        "peer_s": statistics.median(walls[1]),
        "ratio": statistics.median(ratios),
        "kitsattn_mb": max(mine[2] for mine, _ in pairs),
        "peer_mb": max(theirs[2] for _, theirs in pairs),
        "others": max(found[1].others for pair in pairs for found in pair),
        "scores": [found[0] for found in pairs[0]],
    }


def evaluate(scratch: Path, metric: str, copies: int, workers: int) -> tuple[None, Cost, float]:
    """Run `kitsattn evaluate METRIC` on a folder."""
    words = ["evaluate", metric, f"{scratch}/prediction-{copies}", f"{scratch}/reference-{copies}", "--json"]
    command = [sys.executable, "-m", "kitsattn", *words, "--workers", str(workers), "--protocol", "kits23"]
    cost = cost_of_command(command, scratch / "kitsattn.log")
    return None, cost, (cost.peak_mib or 0) * 2**20 / 1e6


def evaluate_as_nnunet(python: Path, scratch: Path) -> tuple[None, Cost, float]:
    """Run nnU-Net's command on a folder of one case."""
    program, folders = python.with_name("nnUNetv2_evaluate_simple"), ["reference-1", "prediction-1"]
    places = {f"nnUNet_{name}": str(scratch) for name in ("raw", "preprocessed", "results")}
    command = [str(program), *(str(scratch / name) for name in folders), "-l", "1", "2", "-np", "1"]
    cost = cost_of_command([*command, "-o", str(scratch / "nnunet.json")], scratch / "nnunet.log", places)
    return None, cost, (cost.peak_mib or 0) * 2**20 / 1e6


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure all sides, print and return it."""
    copies = 4 if arguments.quick else _COPIES
    apart(make_pair, arguments.labels, scratch, copies)
    some, every = ("dice", "surface_dice"), ("dice", "surface_dice", "hd95_mm", "assd_mm")
    rows: dict[str, Any] = {}
    if importlib.util.find_spec("kits23"):
        rows["Dice, surface Dice: KiTS23"] = compare(
            arguments.repeats,
            partial(apart, score_here, scratch, some),
            partial(apart, score_as_kits23, scratch),
        )
    rows["and HD95, ASSD: surface-distance"] = compare(
        arguments.repeats,
        partial(apart, score_here, scratch, every),
        partial(apart, score_with_surface_distance, scratch),
    )
    if importlib.util.find_spec("medpy"):
        rows["HD95: MedPy, of one region"] = compare(
            1,
            partial(apart, score_here, scratch, ("hd95_mm",), "medpy"),
            partial(apart, score_with_medpy, scratch),
        )
    if arguments.peer_python:
        rows["Dice, whole command: nnU-Net"] = compare(
            arguments.repeats,
            lambda: evaluate(scratch, "dice", 1, 1),
            lambda: evaluate_as_nnunet(arguments.peer_python, scratch),
        )
    cores = len(os.sched_getaffinity(0))
    folders = {
        metric: [evaluate(scratch, metric, copies, workers)[1].wall_s for workers in (1, cores)]
        for metric in ("dice", "all")
    }
    print(f"{'':<34}{'kitsattn s':>11}{'peer s':>9}{'ratio':>7}{'MB':>7}{'peer MB':>9}{'others':>8}")
    for name, row in rows.items():
        print(f"{name:<34}{row['kitsattn_s']:>11.2f}{row['peer_s']:>9.2f}{row['ratio']:>7.1f}", end="")
        print(f"{row['kitsattn_mb']:>7.0f}{row['peer_mb']:>9.0f}{row['others']:>8.1f}")
    for metric, (one, several) in folders.items():
        share = one / several / cores
        print(f"{copies} cases, {metric}: 1 worker {one:.1f} s, {cores} workers {several:.1f} s, {share:.0%}")
    for name, row in rows.items():
        print(f"{name}: {json.dumps(row['scores'])}")
    print(machine())
    return {"machine": machine(), "rows": rows, "folders": folders}


def main() -> None:
    """Measure."""
    run(make_parser("kitsattn's evaluation against KiTS23's, surface-distance's, MedPy's and nnU-Net's."), measure)


if __name__ == "__main__":
    main()
