"""How good a starter network is on real scans that it was not trained on, and how fast.

    python tests/benchmarks/starter.py --model FILE --data DATA [--json FILE] [--pictures FOLDER] [--ship FOLDER]

`DATA` holds the validation data: TotalSegmentator's s0009 (CT and label map), its example CT with labels of 30 slices,
slices of held-out patients of CURVAS and KiTS19, and the upper slices of KiTS-00072, above the kidneys.
Dice of slices is pooled over the slices of a patient, then averaged over patients; intervals are bootstrapped over
patients. Whole scans are predicted as `kitsattn predict` does, post-processing included. `--ship kitsattn/weights`
writes the network there with these scores in its header, and updates scores, sources and checksum in its card.
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from kitsattn.checkpoint.file import load_checkpoint
from kitsattn.checkpoint.header import TTA, TestScore
from kitsattn.evaluate.spread import measure_spread
from kitsattn.files import sha256, write_bytes
from kitsattn.machine import keep_freed_memory
from kitsattn.precision import choose_precision
from kitsattn.predict.case import DEFAULT_RULES, follow_rules
from kitsattn.predict.infer import Ensemble, Inference, load_ensemble
from kitsattn.predict.scan import predict_volume
from kitsattn.synthesis.data import find_starter_data
from kitsattn.synthesis.slices import RealSlice
from kitsattn.train.starter import save_small
from kitsattn.volume.formats import read_labels, read_scan
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.hu import check_hu
from kitsattn.volume.volume import Volume
from kitsattn.words import plural

_KIDNEYS = (2, 3, 23, 24)
"""TotalSegmentator's kidneys and their cysts."""
DICE_REGIONS = ("kidney", "kidney with tumour", "tumour")
_LABELLED = slice(82, 112)
"""Slices of the example CT that have labels; the lower poles of both kidneys lie below them."""


@dataclass(frozen=True)
class Score:
    """One figure.

    Attributes:
        data: What it was measured on.
        region: Kidney, with tumour, or tumour; or what is counted.
        value: Dice, or ml.
        low: Lower end of the 95 % interval by patient; None for one patient.
        high: Upper end.
        patients: How many.
    """

    data: str
    region: str
    value: float
    low: float | None = None
    high: float | None = None
    patients: int = 1


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks; two empty ones agree."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def segment(ensemble: Ensemble, scan: Volume, inference: Inference | None = None) -> NDArray[np.uint8]:
    """Return the label map of a scan, post-processed."""
    labels, _ = predict_volume(ensemble, scan, inference)
    labels, _ = follow_rules(ensemble, labels, DEFAULT_RULES)
    array: NDArray[np.uint8] = labels.array
    return array


def away_from(found: NDArray[np.uint8], true: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what lies outside the labelled slices of the example CT and is not of a kidney that reaches into them."""
    objects, _ = ndimage.label(found > 0, np.ones((3, 3, 3)))
    kidneys = np.unique(objects[_LABELLED][true])
    outside: NDArray[np.bool_] = ~np.isin(objects, (0, *kidneys))
    outside[_LABELLED] = False
    return outside


def score_slices(
    ensemble: Ensemble, slices: Sequence[RealSlice], data: str, inference: Inference | None = None
) -> list[Score]:
    """Return Dice of kidney with tumour, and of tumour where it is labelled, over patients."""
    patients: dict[str, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = {}
    for one in slices:
        pixel_mm = one.pixel_mm or 0.8
        shape = (1, *one.image.shape)
        scan = Volume(one.image[None].astype(np.int16), Geometry.axial(shape, (5.0, pixel_mm, pixel_mm)))
        found, _ = predict_volume(ensemble, scan, inference)
        patients.setdefault(one.name.rsplit(" ", 1)[0], []).append((found.array[0], one.labels))
    regions: dict[str, tuple[int, ...]] = {"kidney": (1, 2)}
    if any(one.tumours_labelled for one in slices):
        regions = {"kidney with tumour": (1, 2), "tumour": (2,)}
    scores = []
    for region, values in regions.items():
        each = []
        for pairs in patients.values():
            found_mask = np.stack([np.isin(found, values) for found, _ in pairs])
            true_mask = np.stack([np.isin(true, values) for _, true in pairs])
            each.append(dice(found_mask, true_mask))
        spread = measure_spread(each)
        scores.append(Score(data, region, spread.mean, spread.low, spread.high, spread.cases))
    return scores


def score_volumes(
    ensemble: Ensemble, data: Path, inference: Inference | None = None, pictures: Path | None = None
) -> list[Score]:
    """Return the figures on whole scans."""
    scores = []

    def predict(path: Path) -> tuple[Volume, NDArray[np.uint8], float]:
        started = time.perf_counter()
        scan = check_hu(read_scan(path))
        found = segment(ensemble, scan, inference)
        return scan, found, time.perf_counter() - started

    folder = data / "starter" / "totalsegmentator"
    scan, found, seconds = predict(folder / "s0009_ct.nii.gz")
    true = np.isin(read_labels(folder / "s0009_seg.nii.gz").array, _KIDNEYS)
    scores += [
        Score("TotalSegmentator s0009", "kidney", dice(found > 0, true)),
        Score("TotalSegmentator s0009", "false tumour, ml", float((found == 2).sum()) * scan.geometry.voxel_ml),
        Score("TotalSegmentator s0009", "seconds", seconds),
    ]
    _draw(pictures, "s0009", scan, found, true)
    path = data / "totalsegmentator-example-ct.nii.gz"
    scan, found, _ = predict(path)
    true = np.isin(read_labels(data / "totalsegmentator-example-seg-30slices.nii.gz").array, _KIDNEYS)
    outside = away_from(found, true)
    scores += [
        Score("example CT, 30 slices", "kidney", dice(found[_LABELLED] > 0, true)),
        Score("example CT, elsewhere", "false kidney, ml", float(outside.sum()) * scan.geometry.voxel_ml),
        Score("example CT", "false tumour, ml", float((found == 2).sum()) * scan.geometry.voxel_ml),
    ]
    whole = np.zeros(found.shape, bool)
    whole[_LABELLED] = true
    _draw(pictures, "example", scan, found, whole)
    scan, found, _ = predict(data / "dicom" / "c4kc-kits-00072-top18.zip")
    scores.append(
        Score(
            "C4KC-KiTS 00072, above the kidneys", "false kidney, ml", float((found > 0).sum()) * scan.geometry.voxel_ml
        )
    )
    _draw(pictures, "c4kc", scan, found, None)
    scan, found, _ = predict(data / "dicom" / "cptac-c3l-00189.zip")
    for value, name in ((1, "kidney, ml (no reference)"), (2, "tumour, ml (no reference)")):
        scores.append(Score("CPTAC C3L-00189", name, float((found == value).sum()) * scan.geometry.voxel_ml))
    _draw(pictures, "cptac", scan, found, None)
    return scores


def _draw(
    folder: Path | None, name: str, scan: Volume, found: NDArray[np.uint8], true: NDArray[np.bool_] | None
) -> None:
    if folder is None:
        return
    from kitsattn.figures.overlay import overlay_sheet

    folder.mkdir(parents=True, exist_ok=True)
    reference = None if true is None else true.astype(np.uint8)
    sheet = overlay_sheet(scan, found, reference, title=name, note="", parts=True)
    write_bytes(folder / f"{name}.png", sheet)


def ship(model: Path, scores: Sequence[Score], folder: Path) -> None:
    """Write a network with its scores to the folder of shipped weights, and update its card."""
    checkpoint = load_checkpoint(model)
    tests = tuple(
        TestScore(
            data=score.data,
            region=score.region.removesuffix(" with tumour"),
            dice=round(score.value, 4),
            low=None if score.low is None else round(score.low, 4),
            high=None if score.high is None else round(score.high, 4),
            patients=score.patients,
        )
        for score in scores
        if score.region in DICE_REGIONS
    )
    made = replace(checkpoint.header.provenance, tests=tests)
    target = folder / "starter.safetensors"
    save_small(target, replace(checkpoint.header, provenance=made), checkpoint.model)
    sources = ["| data | used | licence | citation |", "|---|---|---|---|"]
    sources += [
        f"| {one.name} | {plural(one.count, one.unit.removesuffix('s'))} | {one.licence} | {one.citation} |"
        for one in made.sources
    ]
    table = ["| data | what | value | 95 % interval | patients |", "|---|---|---|---|---|"]
    for score in scores:
        between = "" if score.low is None else f"{score.low:.3f} to {score.high:.3f}"
        value = f"{score.value:.3f}" if score.region in DICE_REGIONS else f"{score.value:.1f}"
        what = f"Dice of {score.region}" if score.region in DICE_REGIONS else score.region
        table.append(f"| {score.data} | {what} | {value} | {between} | {score.patients} |")
    card = folder / "starter.md"
    text = card.read_text("utf-8")
    for name, lines in (("sources", sources), ("scores", table)):
        before, rest = text.split(f"<!-- {name} -->")
        _, after = rest.split(f"<!-- end of {name} -->")
        text = "\n".join((f"{before}<!-- {name} -->", "", *lines, "", f"<!-- end of {name} -->{after}"))
    text = re.sub(r"^SHA-256: .*$", f"SHA-256: `{sha256(target)}`", text, flags=re.MULTILINE)
    card.write_text(text, "utf-8")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--ship", type=Path)
    parser.add_argument("--tta", choices=get_args(TTA), help="(default: the network's own)")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    ensemble = load_ensemble([options.model], device, choose_precision("auto", device))
    inference = replace(Inference(), tta=options.tta)
    held_out = find_starter_data(options.data).held_out_slices
    scores = score_volumes(ensemble, options.data, inference, options.pictures)
    for data in ("CURVAS", "KiTS19"):
        own = [one for one in held_out if one.name.startswith(data)]
        scores += score_slices(ensemble, own, f"{data} slices", inference)
    for score in scores:
        between = f" [{score.low:.3f}, {score.high:.3f}]" if score.low is not None else ""
        print(f"{score.data:38} {score.region:28} {score.value:8.3f}{between}  n = {score.patients}")
    if options.json:
        options.json.write_text(json.dumps([asdict(score) for score in scores], indent=1))
    if options.ship:
        ship(options.model, [score for score in scores if score.region != "seconds"], options.ship)


if __name__ == "__main__":
    main()
