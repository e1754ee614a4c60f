"""`kitsattn preprocess` against nnU-Net's 2d preprocessing, on the same scan in the same run; Linux only.

    python tests/benchmarks/preprocessing.py [LABELS] [--peer-python VENV/bin/python] [--json FILE] [--quick]

The scan is a phantom painted around LABELS, a label map of KiTS19; without it around case_00003 of the folder
kits19-labels in $KITSATTN_TEST_DATA, whose 270 slices of 512 x 512 voxels, 0.855 mm apart, become 561 x 561 at
0.78125 mm. The largest shape of KiTS19, case_00151's 1059 x 512 x 512, is that scan mirrored along z again and again.

The peer, nnU-Net 2.8.1, lives in an environment of its own; without --peer-python only kitsattn is measured. With
torch==2.13.0+cpu as the only line of FILE, so that no CUDA package is fetched (ask pip with --dry-run first):

    python -m venv VENV && VENV/bin/pip install -c FILE torch && VENV/bin/pip install -c FILE nnunetv2==2.8.1

What is compared:

- one case: `kitsattn preprocess`, checksums, fingerprint and plan included, against `nnUNetv2_preprocess -c 2d`, which
  needs the two commands that are measured before it. kitsattn crops to the body, which nnU-Net does not.
- resample image, resample labels: the library's functions alone on whole slices, without any crop: the same float32
  array of one file for both, kitsattn in blocks of slices as it prepares a case.

Each side uses the threads that it takes unasked; figures are medians, of --repeats and --peer-repeats runs in turn.
The machine need not be quiet: "others" is how many cores were in use elsewhere, and CPU seconds hardly depend on it.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from measure import Cost, blas, cost_of_call, cost_of_command, machine, median_cost, summed_cost

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

SPACING_MM = 0.78125
LARGEST_SLICES = 1059
LARGEST_SPACING_MM = (0.5, 0.810547, 0.810547)

_BLOCK = 8
_DATASET = 501
_SEED = 0
_BODY_HU = -300


def apart(work: Callable[Parameters, Result], *arguments: Parameters.args, **settings: Parameters.kwargs) -> Result:
    """Call a function in a fresh process: this one must stay small (see `cost_of_command`)."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(partial(work, *arguments, **settings)).result()


def paint(labels: Path, folder: Path, image_file: Path, slices: int | None) -> dict[str, Any]:
    """Paint the scan in KiTS19's layout, save it as float32 too, and describe it.

    Args:
        labels: The label map.
        folder: Where the data set is made.
        image_file: Where the scan goes as (z, y, x), clipped as the plan does.
        slices: Keep so many around the slice with most foreground; None keeps all.
    """
    import numpy as np

    from kitsattn.phantom.paint import write_painted
    from kitsattn.preprocess.crop import body_box
    from kitsattn.preprocess.intensity import clip_hu
    from kitsattn.preprocess.plan import PAPER_WINDOW_HU
    from kitsattn.volume.geometry import Geometry
    from kitsattn.volume.nifti import read_labels, read_scan, write_nifti
    from kitsattn.volume.volume import Volume

    if slices is not None:
        whole = read_labels(labels)
        fullest = int(np.count_nonzero(whole.array, axis=(1, 2)).argmax())
        first = max(0, min(fullest - slices // 2, len(whole.array) - slices))
        part = whole.array[first : first + slices]
        labels = folder.with_name("labels") / labels.name
        shape = (len(part), *whole.geometry.shape[1:])
        write_nifti(labels, Volume(part, Geometry.axial(shape, whole.geometry.spacing_mm)), axes="IPL")
    (case,) = write_painted(folder, [labels], seed=_SEED, licence="that of the label map")
    scan = read_scan(folder / case / "imaging.nii.gz")
    np.save(image_file, clip_hu(scan.array, PAPER_WINDOW_HU))
    body = np.count_nonzero(scan.array > _BODY_HU, axis=(1, 2)) / scan.array[0].size
    y0, y1, x0, x1 = body_box(scan)
    return {
        "case": case,
        "shape": scan.geometry.shape,
        "spacing_mm": scan.geometry.spacing_mm,
        "raw_bytes": (folder / case / "imaging.nii.gz").stat().st_size,
        "body_share_mean": float(body.mean()),
        "body_share_max": float(body.max()),
        "body_box_share": (y1 - y0) * (x1 - x0) / scan.array[0].size,
    }


def enlarge(source: Path, case: str, target: Path, slices: int) -> None:
    """Write the case again with the largest shape's spacing and so many slices, mirrored along z."""
    import numpy as np

    from kitsattn.volume.geometry import Geometry
    from kitsattn.volume.nifti import read_labels, read_scan, write_nifti
    from kitsattn.volume.volume import Volume

    target.mkdir()
    shutil.copy(source / "kitsattn-dataset.json", target)
    for name, read in (("imaging.nii.gz", read_scan), ("segmentation.nii.gz", read_labels)):
        volume = read(source / case / name)
        array = np.pad(volume.array, ((0, slices - len(volume.array)), (0, 0), (0, 0)), mode="symmetric")
        geometry = Geometry.axial((slices, *volume.geometry.shape[1:]), LARGEST_SPACING_MM)
        write_nifti(target / case / name, Volume(array, geometry), axes="IPL")


def resample(image_file: Path, raw: Path, resampled_file: Path) -> tuple[Cost, Cost, list[str]]:
    """Resample scan and labels, whole slices in blocks, and save the scan; return both costs and the BLAS in use."""
    import numpy as np

    from kitsattn.preprocess.resample import resample_labels, resample_scan, resampled_shape
    from kitsattn.volume.nifti import read_labels

    image = np.load(image_file)
    labels = read_labels(raw / "segmentation.nii.gz")
    _, row_mm, column_mm = labels.geometry.spacing_mm
    height, width = resampled_shape(image.shape[1:], (row_mm, column_mm), (SPACING_MM, SPACING_MM))

    def in_blocks(work: Callable[..., Any], volume: Any) -> Any:
        resampled = np.empty((len(volume), height, width), volume.dtype)
        for start in range(0, len(volume), _BLOCK):
            resampled[start : start + _BLOCK] = work(volume[start : start + _BLOCK], (height, width))
        return resampled

    resampled, image_cost = cost_of_call(lambda: in_blocks(resample_scan, image))
    _, labels_cost = cost_of_call(lambda: in_blocks(resample_labels, labels.array))
    np.save(resampled_file, resampled)
    return image_cost, labels_cost, blas()


def preprocess(raw: Path, scratch: Path) -> Cost:
    """Run `kitsattn preprocess` into a fresh workspace."""
    workspace = scratch / "workspace"
    shutil.rmtree(workspace, ignore_errors=True)
    command = [sys.executable, "-m", "kitsattn", "preprocess", str(raw), "--spacing", str(SPACING_MM)]
    command += ["--workers", "1", "--workspace", str(workspace)]
    return cost_of_command(command, scratch / "kitsattn.log")


class Peer:
    """nnU-Net with a data set of one case.

    Attributes:
        python: Interpreter of its environment.
        scratch: Where its folders and logs are made.
    """

    def __init__(self, python: Path, scratch: Path, case: Path) -> None:
        self.python, self.scratch = python, scratch
        self.environment = {
            f"nnUNet_{name}": str(scratch / f"nnunet-{name}") for name in ("raw", "preprocessed", "results")
        }
        dataset = scratch / "nnunet-raw" / f"Dataset{_DATASET}_Phantom"
        for folder, name, source in (
            ("imagesTr", f"{case.name}_0000.nii.gz", "imaging.nii.gz"),
            ("labelsTr", f"{case.name}.nii.gz", "segmentation.nii.gz"),
        ):
            (dataset / folder).mkdir(parents=True)
            (dataset / folder / name).symlink_to(case / source)
        description = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "kidney": 1, "tumour": 2},
            "numTraining": 1,
            "file_ending": ".nii.gz",
        }
        (dataset / "dataset.json").write_text(json.dumps(description))

    def command(self, name: str, *arguments: str) -> Cost:
        """Run one of its commands on the data set."""
        program = self.python.with_name(f"nnUNetv2_{name}")
        command = [str(program), "-d", str(_DATASET), *arguments]
        return cost_of_command(command, self.scratch / f"{name}.log", self.environment)

    def plan(self, size: tuple[int, int] | None = None) -> dict[str, Cost]:
        """Take the fingerprint and plan; slices lie along the axis whose spacing is the larger, by a hair.

        Args:
            size: In-plane size of the slices that are planned for, at the spacing planned for; None for this case's.
        """
        fine, coarse = str(SPACING_MM), str(SPACING_MM + 1e-5)
        fingerprint = self.command("extract_fingerprint", "-np", "1", "--clean")
        if size is not None:
            path = next((self.scratch / "nnunet-preprocessed").glob("*/dataset_fingerprint.json"))
            content = json.loads(path.read_text())
            # KiTS19's files have the slices along their first axis, which is nnU-Net's last.
            content["shapes_after_crop"] = [[*size, shape[2]] for shape in content["shapes_after_crop"]]
            content["spacings"] = [[SPACING_MM, SPACING_MM, spacing[2]] for spacing in content["spacings"]]
            path.write_text(json.dumps(content))
        plan = self.command("plan_experiment", "-overwrite_target_spacing", fine, fine, coarse)
        return {"fingerprint": fingerprint, "plan": plan}

    def steps(self, image_file: Path, resampled_file: Path) -> dict[str, Any]:
        """Time its steps inside one process, and compare its resampled scan with kitsattn's."""
        driver, out = Path(__file__).with_name("peer_nnunet.py"), self.scratch / "steps.json"
        command = [str(self.python), str(driver), str(_DATASET), str(image_file), str(resampled_file), str(out)]
        cost_of_command(command, self.scratch / "steps.log", self.environment)
        answer: dict[str, Any] = json.loads(out.read_text())
        return answer

    def bytes_written(self) -> int:
        """Return the size of the prepared case."""
        return folder_bytes(self.scratch / "nnunet-preprocessed", "nnUNetPlans_2d/*")


def folder_bytes(folder: Path, pattern: str) -> int:
    """Return the size of all files below a folder whose path ends in a pattern."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def show(own: Mapping[str, Cost], peer: Mapping[str, Cost]) -> None:
    """Print one row a measurement: both sides, and nnU-Net's over kitsattn's."""
    side = f"{'wall s':>9}{'CPU s':>8}{'others':>8}{'peak MiB':>10}{'process':>9}"
    print(f"\n{'':<27}{'kitsattn':>44} |{'nnU-Net':>44} |{'nnU-Net / kitsattn':>24}")
    print(f"{'':<27}{side} |{side} |{'wall':>8}{'CPU':>8}{'peak':>8}")
    for name in [*own, *(name for name in peer if name not in own)]:
        cells = " |".join(_cells(costs.get(name)) for costs in (own, peer))
        ratios = _ratios(own[name], peer[name]) if name in own and name in peer else ""
        print(f"{name:<27}{cells} |{ratios}".rstrip(" |"))


def _cells(cost: Cost | None) -> str:
    if cost is None:
        return " " * 44
    memory = f"{cost.peak_pss_mib:>10.0f}{cost.peak_rss_mib:>9.0f}" if cost.peak_pss_mib else " " * 19
    return f"{cost.wall_s:>9.2f}{cost.cpu_s:>8.2f}{cost.others:>8.1f}{memory}"


def _ratios(own: Cost, peer: Cost) -> str:
    memory = f"{peer.peak_mib / own.peak_mib:>8.1f}" if own.peak_mib and peer.peak_mib else ""
    return f"{peer.wall_s / own.wall_s:>8.1f}{peer.cpu_s / own.cpu_s:>8.1f}{memory}"


def show_goals(own: Mapping[str, Cost], peer: Mapping[str, Cost], bytes_share: float) -> None:
    """Print what kitsattn is to reach, and what it reached here."""
    print("\ngoal, at most                                  here")
    for name, part in (("one case", 15), ("resample image", 25)):
        if name in peer:
            print(f"{f'{name}, wall: 1/{part} of nnU-Net':<44}{f'1/{peer[name].wall_s / own[name].wall_s:.1f}':>8}")
    for name, most in (("one case", 900), ("largest shape", 2000)):
        print(f"{f'{name}, peak: {most} MB':<44}{(own[name].peak_mib or 0) * 2**20 / 1e6:>8.0f}")
    print(f"{'bytes on disk: 0.9 of imaging.nii.gz':<44}{bytes_share:>8.2f}")


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Make the scans, measure both sides in turn, print the table and return all of it."""
    raw, image_file, resampled_file = scratch / "raw", scratch / "image.npy", scratch / "resampled.npy"
    case = apart(paint, arguments.labels, raw, image_file, 16 if arguments.quick else None)
    print(
        f"{case['case']}: {case['shape']} of {case['spacing_mm']} mm, {case['raw_bytes'] / 1e6:.1f} MB; the body fills"
    )
    print(f"{case['body_share_mean']:.0%} (fullest slice {case['body_share_max']:.0%}), its box", end=" ")
    print(f"{case['body_box_share']:.0%} of the field of view")
    peer = Peer(arguments.peer_python, scratch, raw / case["case"]) if arguments.peer_python else None
    runs: dict[str, list[Cost]] = {}
    peer_runs: dict[str, list[Cost]] = {}
    peer_answer: dict[str, Any] = {}
    kernels: list[str] = []
    if peer:
        peer_runs |= {step: [cost] for step, cost in peer.plan().items()}
    for turn in range(max(arguments.repeats, arguments.peer_repeats if peer else 0)):
        if turn < arguments.repeats:
            runs.setdefault("one case", []).append(preprocess(raw, scratch))
            image_cost, labels_cost, kernels = apart(resample, image_file, raw / case["case"], resampled_file)
            runs.setdefault("resample image", []).append(image_cost)
            runs.setdefault("resample labels", []).append(labels_cost)
        if peer and turn < arguments.peer_repeats:
            peer_runs.setdefault("one case", []).append(peer.command("preprocess", "-c", "2d", "-np", "1"))
            peer_answer = peer.steps(image_file, resampled_file)
            for step, cost in peer_answer["steps"].items():
                peer_runs.setdefault(step, []).append(Cost(**cost))
    own_share = folder_bytes(scratch / "workspace", "cases/*/*") / case["raw_bytes"]
    apart(enlarge, raw, case["case"], scratch / "largest", 32 if arguments.quick else LARGEST_SLICES)
    runs["largest shape"] = [preprocess(scratch / "largest", scratch)]

    own = {name: median_cost(costs) for name, costs in runs.items()}
    other = {name: median_cost(costs) for name, costs in peer_runs.items()}
    if peer:
        own["with fingerprint and plan"] = own["one case"]
        other["with fingerprint and plan"] = summed_cost([other[step] for step in ("fingerprint", "plan", "one case")])
    show(own, other)
    show_goals(own, other, own_share)
    context: dict[str, Any] = {"machine": machine(), "blas": kernels, "peer_blas": peer_answer.get("blas", [])}
    if peer:
        context["peer_bytes_share"] = peer.bytes_written() / case["raw_bytes"]
        context |= {key: peer_answer[key] for key in ("resampled_shape", "difference_hu_max", "difference_hu_mean")}
    turns = f"{arguments.repeats} runs" + (f", of nnU-Net {arguments.peer_repeats}" if peer else "")
    print(f"\nmedian of {turns}; others: cores in use elsewhere")
    print("peak: of all processes, shared pages once (PSS), sampled; process: ru_maxrss of the largest of them")
    for name, value in context.items():
        print(f"{name}: {value}")
    if not peer:
        print("nnU-Net was not measured: give its interpreter with --peer-python")
    return {
        "case": case,
        "quick": arguments.quick,
        "bytes_share": own_share,
        **context,
        "kitsattn": {name: asdict(cost) for name, cost in own.items()},
        "nnunet": {name: asdict(cost) for name, cost in other.items()},
        "runs": {name: [asdict(cost) for cost in costs] for name, costs in runs.items()},
        "nnunet_runs": {name: [asdict(cost) for cost in costs] for name, costs in peer_runs.items()},
    }


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return the options that benchmarks against nnU-Net on this scan share."""
    parser = argparse.ArgumentParser(description=description)
    data = os.environ.get("KITSATTN_TEST_DATA")
    default = Path(data) / "kits19-labels" / "case_00003.nii.gz" if data else None
    parser.add_argument("labels", type=Path, nargs="?", default=default, help="label map the scan is painted around")
    parser.add_argument("--peer-python", type=Path, help="interpreter of the environment that has nnU-Net")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a try on 16 slices; its figures mean nothing")
    parser.add_argument("--scratch", type=Path, help="where the scratch folder is made: 3 GB")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    return parser


def run(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace, Path], Mapping[str, Any]]) -> None:
    """Measure in a scratch folder and write the JSON that is asked for."""
    arguments = parser.parse_args()
    if arguments.labels is None or not arguments.labels.is_file():
        parser.error("give a label map of KiTS19, or set KITSATTN_TEST_DATA to a folder with kits19-labels/")
    with tempfile.TemporaryDirectory(prefix="kitsattn-benchmark-", dir=arguments.scratch) as scratch:
        report = measure(arguments, Path(scratch).resolve())
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    """Measure both sides."""
    parser = make_parser("kitsattn's preprocessing against nnU-Net's.")
    parser.add_argument("--peer-repeats", type=int, default=1, help="each takes minutes")
    run(parser, measure)


if __name__ == "__main__":
    main()
