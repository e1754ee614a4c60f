"""Time of one training step on the CPU, and nnU-Net's on the same machine in the same run, taking turns.

    python tests/benchmarks/train_step.py [--peer-python VENV/bin/python] [--model NAME ...] [--precision bf16 fp32]
        [--size 512] [--batch-size 8] [--peer-batch-size N] [--repeats 5] [--json FILE]

A step is forward pass, loss, backward pass, clipping of the gradient and the optimizer's step. Seconds are per sample,
because the batches differ: 8 in the recipe `paper`, 12 in nnU-Net's default 2d plan for slices of 512 x 512 pixels.
Batches are random and ready in memory: drawing them is no part of it, on either side.

The peer, nnU-Net 2.8.1, lives in an environment of its own; without --peer-python only kitsattn is measured. With
torch==2.13.0+cpu as the only line of FILE, so that no CUDA package is fetched (ask pip with --dry-run first):

    python -m venv VENV && VENV/bin/pip install -c FILE torch && VENV/bin/pip install -c FILE nnunetv2==2.8.1

Its step is `nnUNetTrainer.train_step`, whose network and batch are what it plans for a phantom of the given size in a
data set of 210 scans, as many as KiTS19 has. It computes in fp32, because it uses autocast on CUDA only.

Figures are medians of --repeats turns, after a step that is left out; a ratio is the median of the ratios turn by turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from measure import cost_of_command, machine
from torch import nn
from torch.optim import Adam

from kitsattn.models import build_model, model_entry, model_names
from kitsattn.phantom.paint import paint
from kitsattn.phantom.patient import draw_patient
from kitsattn.precision import Precision, mixed_precision, to_device
from kitsattn.train.losses import segmentation_loss
from kitsattn.train.recipe import find_recipe
from kitsattn.volume.nifti import write_nifti

_CPU = torch.device("cpu")
_DATASET = 503
_CASES_OF_KITS19 = 210
_DEPTH = 24
_SLICE_MM = 3.0
_FIELD_MM = 400.0
_SEED = 0


def build_step(name: str, precision: Precision, size: int, batch_size: int) -> Callable[[], float]:
    """Return a training step of a network with the recipe `paper`, which returns how long it took in seconds."""
    torch.manual_seed(_SEED)
    _, recipe = find_recipe("paper")
    config = model_entry(name).config
    model = to_device(build_model(name), _CPU).train()
    optimizer = Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    images = torch.randn(batch_size, config.slices, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, config.classes, (batch_size, size, size))

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with mixed_precision(_CPU, precision):
            logits = model(images)
        segmentation_loss(logits, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        optimizer.step()
        return time.perf_counter() - started

    return step


class Peer:
    """nnU-Net's trainer in a process of its own, which takes a step when it is asked to.

    Args:
        python: Interpreter of its environment.
        scratch: Where its folders and logs are made.
        size: Height and width of slices.
        batch_size: Samples a batch; None takes the planned number.
        threads: Of its process.

    Attributes:
        about: What it says of itself.
    """

    def __init__(self, python: Path, scratch: Path, size: int, batch_size: int | None, threads: int) -> None:
        """Paint a scan, let it plan, and wait until the trainer has taken a first step."""
        places = {name: scratch / f"nnunet-{name}" for name in ("raw", "preprocessed", "results")}
        environment = {f"nnUNet_{name}": str(place) for name, place in places.items()}
        dataset = places["raw"] / f"Dataset{_DATASET}_Phantom"
        spacing = _FIELD_MM / size
        scan, labels = paint(draw_patient(_SEED), (_DEPTH, size, size), (_SLICE_MM, spacing, spacing))
        write_nifti(dataset / "imagesTr" / "case_00000_0000.nii.gz", scan, axes="IPL")
        write_nifti(dataset / "labelsTr" / "case_00000.nii.gz", labels, axes="IPL")
        description = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "kidney": 1, "tumour": 2},
            "numTraining": _CASES_OF_KITS19,
            "file_ending": ".nii.gz",
        }
        (dataset / "dataset.json").write_text(json.dumps(description))
        program = str(python.with_name("nnUNetv2_plan_and_preprocess"))
        command = [program, "-d", str(_DATASET), "-c", "2d", "-np", "1", "-npfp", "1"]
        cost_of_command(command, scratch / "plan.log", environment)
        driver, self._log = Path(__file__).with_name("peer_nnunet_step.py"), scratch / "step.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(driver), str(_DATASET), str(batch_size or 0), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **environment},
            )
        self.about = self._answer()
        patch = self.about["patch_size"]
        if patch != [size, size]:
            msg = f"nnU-Net planned patches of {patch} for slices of {size} x {size}: the steps cannot be compared"
            raise SystemExit(msg)

    def step(self) -> float:
        """Return how long a step takes, in seconds."""
        stream = self._stream(self._process.stdin)
        stream.write("step\n")
        stream.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the process."""
        self._stream(self._process.stdin).close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._stream(self._process.stdout).readline()
        if not line:
            msg = (
                f"nnU-Net's trainer ended with {self._process.wait()}:\n{self._log.read_text(errors='replace')[-3000:]}"
            )
            raise SystemExit(msg)
        answer: dict[str, Any] = json.loads(line)
        return answer

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


def compare(
    step: Callable[[], float], batch_size: int, peer: Peer | None, repeats: int
) -> tuple[list[float], list[float]]:
    """Return seconds a sample of both sides, turn by turn."""
    step()
    own, other = [], []
    for _ in range(repeats):
        own.append(step() / batch_size)
        if peer:
            other.append(peer.step() / peer.about["batch_size"])
    return own, other


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Print one row a network and precision, and return all measurements."""
    torch.set_num_threads(arguments.threads)
    peer = None
    if arguments.peer_python:
        peer = Peer(arguments.peer_python, scratch, arguments.size, arguments.peer_batch_size, arguments.threads)
    print(f"{arguments.size} x {arguments.size}, seconds of a training step a sample, median of {arguments.repeats}")
    print(f"{'network':<26}{'format':>8}{'batch':>7}{'kitsattn':>10}{'nnU-Net':>10}{'kitsattn / nnU-Net':>20}")
    rows = []
    for name in arguments.model:
        for precision in arguments.precision:
            step = build_step(name, precision, arguments.size, arguments.batch_size)
            own, other = compare(step, arguments.batch_size, peer, arguments.repeats)
            row: dict[str, Any] = {"model": name, "precision": precision, "kitsattn_s": own, "nnunet_s": other}
            cells = f"{statistics.median(own):>10.3f}"
            if other:
                row["ratio"] = statistics.median(mine / theirs for mine, theirs in zip(own, other, strict=True))
                cells += f"{statistics.median(other):>10.3f}{row['ratio']:>20.3f}"
            print(f"{name:<26}{precision:>8}{arguments.batch_size:>7}{cells}", flush=True)
            rows.append(row)
    about = {**machine(), "threads": arguments.threads, "torch": torch.__version__}
    if peer:
        peer.close()
        about["nnunet"] = {"precision": "fp32", **peer.about}
    for key, value in about.items():
        print(f"{key}: {value}")
    if not peer:
        print("nnU-Net was not measured: give its interpreter with --peer-python")
    return {"size": arguments.size, "batch_size": arguments.batch_size, **about, "rows": rows}


def main() -> None:
    """Measure in a scratch folder and write the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = ["attention-deeplab-r50", "attention-deeplab-r18"]
    parser.add_argument("--peer-python", type=Path, help="interpreter of the environment that has nnU-Net")
    parser.add_argument("--model", action="append", choices=model_names(), help=f"repeatable; else {default}")
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=find_recipe("paper")[1].batch_size)
    parser.add_argument("--peer-batch-size", type=int, help="of nnU-Net, instead of the one that it plans")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    arguments = parser.parse_args()
    arguments.model = arguments.model or default
    with tempfile.TemporaryDirectory(prefix="kitsattn-benchmark-") as scratch:
        report = measure(arguments, Path(scratch).resolve())
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
