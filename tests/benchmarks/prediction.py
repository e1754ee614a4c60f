"""`kitsattn predict` against nnU-Net's 2d prediction of the same scan in the same run, end to end on a CPU; Linux only.

    python tests/benchmarks/prediction.py [LABELS] [--peer-python VENV/bin/python] [--json FILE] [--quick]

The scan is the phantom of preprocessing.py, 270 slices of 512 x 512 voxels, 0.855 mm apart, painted around LABELS, a
label map of KiTS19, without it around case_00003 of the folder kits19-labels in $KITSATTN_TEST_DATA. The networks have
random weights and say that all is background; the plan is KiTS19's, 0.78125 mm, patches of 512 x 512.

The peer, nnU-Net 2.8.1, lives in an environment of its own, which preprocessing.py says how to make; without
--peer-python only kitsattn is measured.

What is compared:

- whole command: `kitsattn predict in.nii.gz out.nii.gz` with the precision that suits the machine, start-up included.
  nnU-Net's is put together: start-up (`nnUNetv2_predict -h`), reading and preparing, the median tile of --peer-tiles
  times the number of tiles (no mirror images), export. It plans for KiTS19's median slice, 512 x 512 at 0.78 mm, so
  that both sides have patches of that size; its tiles overlap by half, as it has them unasked.
- without the network: the steps of one case in one process with a network that costs nothing, start-up excluded. It
  finds what is brighter than 175 HU, so that post-processing and writing have more to do than on two kidneys.
- the starter: the same command with the network that comes with the package, whose plan has pixels of 1.5 mm; on the
  whole scan and on its lowest 151 slices.
- the floor of the network: its operations in one slice, counted by PyTorch, over the rate at which this machine
  multiplies large matrices in the same number format.
- largest shape: 1059 x 512 x 512, for its memory; the scan mirrored along z again and again.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measure import Cost, cost_of_call, cost_of_command, machine, median_cost
from preprocessing import LARGEST_SLICES, SPACING_MM, Peer, apart, enlarge, make_parser, paint, run

MODELS = ("attention-deeplab-r50", "attention-deeplab-r18")
STARTER = "starter"
SHORT_SLICES = 151
PATCH = (512, 512)

_DATASET = 501
_AIMS = {"attention-deeplab-r50": 15, "attention-deeplab-r18": 25}
_MATRIX = 2048


def write_checkpoint(path: Path, name: str) -> None:
    """Write a network that nobody trained, and whose answer is background."""
    import torch

    from kitsattn.checkpoint.file import Checkpoint, save_checkpoint
    from kitsattn.models import build_model

    torch.manual_seed(0)
    model = build_model(name)
    with torch.no_grad():
        model.get_parameter("decoder.classify.bias").copy_(torch.tensor([100.0, 0.0, 0.0]))
    save_checkpoint(path, Checkpoint(make_header(name), model.state_dict(), {}))


def make_header(name: str) -> Any:
    """Return a header with KiTS19's plan."""
    from kitsattn.checkpoint.header import Header, Provenance
    from kitsattn.config import to_json
    from kitsattn.labels import KITS19_LABELS
    from kitsattn.models import model_entry
    from kitsattn.preprocess.plan import Plan

    made = Provenance(
        kitsattn="", torch="", dataset="none", synthetic=False, licence="", citation="", recipe="none",
        precision="fp32", fold=0, folds=5, seed=0, epoch=0, created="",
    )  # fmt: skip
    plan = Plan(spacing_mm=(SPACING_MM, SPACING_MM), mean_hu=100.0, std_hu=75.0, patch_size=PATCH)
    config = to_json(model_entry(name).config)
    return Header(model=name, config=config, plan=to_json(plan), labels=KITS19_LABELS, provenance=made)


def without_network(image: Path, target: Path, repeats: int) -> list[Cost]:
    """Read, prepare, restore, post-process and write a case with a network that costs nothing."""
    import torch

    from kitsattn.config import from_json
    from kitsattn.machine import keep_freed_memory
    from kitsattn.predict.case import DEFAULT_RULES, predict_scan, read_case, write_case
    from kitsattn.predict.cases import PredictionCase
    from kitsattn.predict.infer import Ensemble, Inference, Member
    from kitsattn.preprocess.plan import Plan

    class Threshold(torch.nn.Module):
        def forward(self, slabs: torch.Tensor) -> torch.Tensor:
            value = slabs[:, slabs.shape[1] // 2]
            return torch.stack([torch.zeros_like(value), value - 1, value - 3], dim=1)

    keep_freed_memory()
    header = make_header(MODELS[0])
    plan = from_json(Plan, header.plan, "plan")
    members = (Member(Threshold(), 5, None),)
    ensemble = Ensemble((Path("none"),), (header,), members, plan, torch.device("cpu"), "fp32")
    case = PredictionCase(name="case", source=image, target=target)

    def work() -> None:
        scan = read_case(case, overwrite=True)
        predicted = predict_scan(ensemble, case, scan, Inference(overlap=0.0))
        write_case(ensemble, case, scan, predicted, rules=DEFAULT_RULES, overwrite=True)

    return [cost_of_call(work)[1] for _ in range(repeats)]


def floors() -> dict[str, dict[str, float]]:
    """Return, of each network, operations in a slice and the seconds that they take at the rate of large matrices."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from kitsattn.models import build_model
    from kitsattn.precision import choose_precision, dtype_of

    dtype = dtype_of(choose_precision("auto", torch.device("cpu")))
    one, other = (torch.randn(_MATRIX, _MATRIX, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - started)
    rate = 2 * _MATRIX**3 / min(seconds)
    found = {}
    for name in MODELS:
        model = build_model(name).eval()
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 5, *PATCH))
        operations = float(counter.get_total_flops())
        found[name] = {"operations": operations, "matrix_rate": rate, "floor_s": operations / rate}
    return found


def cut(image: Path, target: Path, slices: int) -> None:
    """Write the lowest slices of a scan."""
    from kitsattn.volume.nifti import read_scan, write_nifti
    from kitsattn.volume.volume import Volume

    scan = read_scan(image)
    lowest = scan.array[:slices]
    _, height, width = lowest.shape
    geometry = replace(scan.geometry, shape=(len(lowest), height, width))
    write_nifti(target, Volume(lowest, geometry), axes="IPL")


def predict(image: Path, target: Path, checkpoint: Path | str, log: Path) -> Cost:
    """Run the command."""
    command = [sys.executable, "-m", "kitsattn", "predict", str(image), str(target), "--overwrite", "--device", "cpu"]
    return cost_of_command([*command, "--model", str(checkpoint)], log)


def ask_peer(peer: Peer, image: Path, scratch: Path, tiles: int) -> dict[str, Any]:
    """Return nnU-Net's steps, its start-up, and the seconds of a whole prediction put together from them."""
    peer.plan(PATCH)
    driver, out = Path(__file__).with_name("peer_nnunet_prediction.py"), scratch / "peer.json"
    command = [str(peer.python), str(driver), str(_DATASET), str(image), str(len(os.sched_getaffinity(0))), str(tiles)]
    cost = cost_of_command([*command, str(out)], scratch / "peer.log", peer.environment)
    answer: dict[str, Any] = json.loads(out.read_text())
    program = peer.python.with_name("nnUNetv2_predict")
    answer["start_s"] = cost_of_command([str(program), "-h"], scratch / "start.log", peer.environment).wall_s
    answer["peak_mib"] = cost.peak_mib
    answer["network_s"] = answer["tile_s"] * answer["tiles"]
    steps = answer["prepare"]["wall_s"] + answer["network_s"] + answer["export"]["wall_s"]
    answer["whole_s"] = answer["start_s"] + steps
    return answer


def show(
    own: Mapping[str, Cost], found: Mapping[str, Mapping[str, float]], slices: int, peer: Mapping[str, Any]
) -> None:
    """Print a row a measurement."""
    print(f"\n{'kitsattn':<34}{'wall s':>9}{'CPU s':>8}{'others':>8}{'peak MB':>9}{'nnU-Net / kitsattn':>20}{'aim':>6}")
    for name, cost in own.items():
        peak = f"{cost.peak_mib * 2**20 / 1e6:>9.0f}" if cost.peak_mib else " " * 9
        ratio = f"{peer['whole_s'] / cost.wall_s:>20.1f}{_AIMS[name]:>6}" if peer and name in _AIMS else ""
        print(f"{name:<34}{cost.wall_s:>9.2f}{cost.cpu_s:>8.2f}{cost.others:>8.1f}{peak}{ratio}")
    print(f"\n{'floor':<34}{'Gop/slice':>10}{'Top/s':>7}{'s':>8}{'network s':>11}{'floor / network':>17}")
    for name, floor in found.items():
        network = own[name].wall_s - own["without the network"].wall_s
        least = floor["floor_s"] * slices
        rate = f"{floor['operations'] / 1e9:>10.1f}{floor['matrix_rate'] / 1e12:>7.2f}"
        print(f"{name:<34}{rate}{least:>8.1f}{network:>11.1f}{least / network:>17.2f}")
    if peer:
        print(f"\nnnU-Net: start {peer['start_s']:.1f} s, prepare {peer['prepare']['wall_s']:.1f} s", end=", ")
        print(
            f"network {peer['tile_s']:.3f} s x {peer['tiles']} tiles of {peer['tile']} = {peer['network_s']:.0f} s",
            end=", ",
        )
        print(f"export {peer['export']['wall_s']:.1f} s: {peer['whole_s']:.0f} s; peak {peer['peak_mib']:.0f} MiB")


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Make scan and networks, measure both sides, print and return all of it."""
    raw = scratch / "raw"
    case = apart(paint, arguments.labels, raw, scratch / "image.npy", 16 if arguments.quick else None)
    image = raw / case["case"] / "imaging.nii.gz"
    print(f"{case['case']}: {case['shape']} of {case['spacing_mm']} mm, {case['raw_bytes'] / 1e6:.1f} MB")
    checkpoints = {name: scratch / f"{name}.safetensors" for name in MODELS}
    for name, path in checkpoints.items():
        apart(write_checkpoint, path, name)
    short = scratch / "short.nii.gz"
    apart(cut, image, short, SHORT_SLICES)
    commands: dict[str, tuple[Path, Path | str]] = {name: (image, path) for name, path in checkpoints.items()}
    commands |= {STARTER: (image, STARTER), f"{STARTER}, {SHORT_SLICES} slices": (short, STARTER)}
    runs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(arguments.repeats):
        for name, (scan, named) in commands.items():
            runs[name].append(predict(scan, scratch / "out.nii.gz", named, scratch / "kitsattn.log"))
    runs["without the network"] = apart(without_network, image, scratch / "out.nii.gz", arguments.repeats)
    found = apart(floors)
    apart(enlarge, raw, case["case"], scratch / "largest", 32 if arguments.quick else LARGEST_SLICES)
    largest = scratch / "largest" / case["case"] / "imaging.nii.gz"
    runs[f"largest shape, {MODELS[1]}"] = [
        predict(largest, scratch / "largest.nii.gz", checkpoints[MODELS[1]], scratch / "kitsattn.log")
    ]
    peer: dict[str, Any] = {}
    if arguments.peer_python:
        peer = ask_peer(Peer(arguments.peer_python, scratch, raw / case["case"]), image, scratch, arguments.peer_tiles)
    own = {name: median_cost(costs) for name, costs in runs.items()}
    show(own, found, case["shape"][0], peer)
    for name, value in machine().items():
        print(f"{name}: {value}")
    return {
        "case": case,
        "quick": arguments.quick,
        "machine": machine(),
        "kitsattn": {name: asdict(cost) for name, cost in own.items()},
        "runs": {name: [asdict(cost) for cost in costs] for name, costs in runs.items()},
        "floors": found,
        "nnunet": peer,
    }


def main() -> None:
    """Measure both sides."""
    parser = make_parser("kitsattn's prediction against nnU-Net's.")
    parser.add_argument("--peer-tiles", type=int, default=24)
    run(parser, measure)


if __name__ == "__main__":
    main()
