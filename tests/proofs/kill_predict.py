"""`kitsattn predict` killed at random moments: what has a final name is whole, and the next run goes on.

    python tests/proofs/kill_predict.py [--kills 30] [--seed 0] [--scans 6]

A folder of small scans is predicted by a tiny checkpoint, with statistics, previews and probabilities, in a process
that SIGKILL ends: at a random time from its first second to its end or, every second time, while a file is being
written, the first one or a later one. Then every file with a final name must be read by another library and have the
shape and the checksum that a run without interruption gave it; a case with a label map must have all its other files;
and whatever else lies there must have a temporary name. The same command goes on in the same folder, and must leave
finished label maps alone. Once it ends by itself all files must be those of the run without interruption, and an empty
folder follows. The exit code is 1 if anything is wrong.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from kitsattn.files import sha256
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume

CHECKPOINT = Path(__file__).parents[1] / "checkpoint" / "golden.safetensors"
LABELS = "labels"
BESIDE = {"statistics": ".json", "previews": ".png", "probabilities": ".nii.gz"}
"""The folders of what is written beside label maps, and the suffix there."""

_TEMPORARY = ".*.part.*"
_LOOK_EVERY_S = 0.0005


@dataclass
class Killed:
    """What a killed run left.

    Attributes:
        seconds: How long it ran.
        code: Its exit code, negative where a signal ended it.
        finished: How many cases have a label map.
        files: How many files have a final name.
        temporary: How many have a temporary one.
        faults: What is wrong, a line each.
    """

    seconds: float
    code: int
    finished: int = 0
    files: int = 0
    temporary: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Whole:
    """A file of the run without interruption: its shape, as its reader gives it, and its checksum."""

    shape: tuple[int, ...]
    checksum: str


def make_scans(folder: Path, count: int, shape: tuple[int, int, int] = (24, 96, 112)) -> None:
    """Write scans of a body of fat and muscle with noise, each another."""
    for number in range(count):
        array = np.full(shape, -1000, np.int16)
        array[:, 4:-4, 4:-4] = -95
        inner = array[:, 8:-8, 8:-8]
        inner[:] = np.random.default_rng(number).normal(60, 80, inner.shape)
        write_nifti(folder / f"scan{number}.nii.gz", Volume(array, Geometry.axial(shape, (5.0, 1.5, 1.5))))


def start(work: Path, scans: Path) -> subprocess.Popen[str]:
    """Start the prediction of a folder into folders within `work`."""
    command = [sys.executable, "-m", "kitsattn", "-q", "predict", os.path.relpath(scans, work), LABELS]
    command += ["--model", str(CHECKPOINT), "--device", "cpu", "--precision", "fp32", "--no-postprocess"]
    command += ["--statistics", "statistics", "--preview", "previews", "--probabilities", "probabilities"]
    work.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=work, env=environment, stdout=pipe, stderr=pipe, text=True)


def run_whole(work: Path, scans: Path) -> float:
    """Let a run end by itself, and return its seconds."""
    begin = time.monotonic()
    process = start(work, scans)
    output = process.communicate()
    if process.returncode != 0:
        msg = f"the run ended with code {process.returncode}: {output}"
        raise RuntimeError(msg)
    return time.monotonic() - begin


def kill(work: Path, scans: Path, seconds: float, files: float) -> Killed:
    """Start a run and kill it after a time, or as soon as it has begun to write a number of files."""
    begin = time.monotonic()
    process = start(work, scans)
    old, seen = set(work.rglob(_TEMPORARY)), set[Path]()
    while process.poll() is None:
        seen |= set(work.rglob(_TEMPORARY)) - old
        if time.monotonic() - begin >= seconds or len(seen) >= files:
            process.kill()
            break
        time.sleep(_LOOK_EVERY_S)
    process.communicate()
    return Killed(time.monotonic() - begin, process.returncode)


def is_temporary(path: Path) -> bool:
    """Tell whether a file has a temporary name."""
    return path.match(_TEMPORARY)


def files_in(work: Path) -> dict[str, Path]:
    """Return the files in a run's folders by their paths within them."""
    return {str(path.relative_to(work)): path for path in sorted(work.rglob("*")) if path.is_file()}


def read_whole(path: Path) -> Whole:
    """Read a file to its end with a library of others.

    Raises:
        Exception: Of any kind, if it is not whole.
    """
    shape: tuple[int, ...] = ()
    if path.suffix == ".gz":
        shape = np.asarray(nib.load(path).dataobj).shape  # type: ignore[attr-defined]
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
            shape = picture.size
    else:
        json.loads(path.read_text(encoding="utf-8"))
    return Whole(shape, sha256(path))


def find_faults(work: Path, reference: dict[str, Whole]) -> list[str]:
    """Return what is wrong with what a killed run left."""
    faults = []
    files = files_in(work)
    for name, path in files.items():
        if is_temporary(path):
            continue
        if name not in reference:
            faults.append(f"{name} is no file of the run without interruption")
            continue
        try:
            whole = read_whole(path)
        except Exception as error:  # noqa: BLE001 - any says that it is not whole
            faults.append(f"{name} is not whole: {error!r}")
            continue
        if whole != reference[name]:
            faults.append(f"{name} differs: {whole} and not {reference[name]}")
    for label in finished(work):
        missing = [name for name in beside(label) if name not in files]
        if missing:
            faults.append(f"{label} is there without {', '.join(missing)}")
    return faults


def finished(work: Path) -> list[str]:
    """Return the label maps that have their final names."""
    return [name for name, path in files_in(work).items() if path.parent.name == LABELS and not is_temporary(path)]


def beside(label: str) -> list[str]:
    """Return the other files of a label map's case."""
    case = Path(label).name.removesuffix(".nii.gz")
    return [f"{folder}/{case}{suffix}" for folder, suffix in BESIDE.items()]


def prove(
    root: Path, *, kills: int, seed: int, scans: int, first_s: float = 1.0, **options: tuple[int, int, int]
) -> list[Killed]:
    """Kill runs and check what each leaves.

    Args:
        root: An empty folder.
        kills: How many runs are killed.
        seed: Of the times.
        scans: How many there are.
        first_s: The earliest time of a kill, in seconds.
        options: As of `make_scans`.

    Returns:
        What each run left; the last ones are those that end by themselves.
    """
    rng = random.Random(seed)  # noqa: S311 - what is wanted is that it can be repeated
    make_scans(root / "scans", scans, **options)
    whole_s = run_whole(root / "whole", root / "scans")
    reference = {name: read_whole(path) for name, path in files_in(root / "whole").items()}
    work, left, runs = root / "0", kills, []
    while left or work.exists():
        before = {name: (work / name).stat().st_mtime_ns for name in finished(work)}
        seconds = files_begun = math.inf
        if left % 2:
            to_come = reference.keys() - files_in(work).keys()
            files_begun = rng.randint(1, max(1, len(to_come)))
        elif left:
            seconds = rng.uniform(min(first_s, whole_s), whole_s)
        run = kill(work, root / "scans", seconds, files_begun)
        left -= run.code < 0
        files = files_in(work)
        run.faults = find_faults(work, reference)
        run.finished = len(finished(work))
        run.temporary = sum(map(is_temporary, files.values()))
        run.files = len(files) - run.temporary
        kept = {name: files[name].stat().st_mtime_ns for name in before if name in files}
        run.faults += [f"{name} was written again or removed" for name in before if kept.get(name) != before[name]]
        runs.append(run)
        if run.code > 0:
            run.faults.append(f"the run ended with code {run.code}")
        if run.code >= 0:
            missing = reference.keys() - files.keys()
            run.faults += [f"{name} is missing at the end" for name in sorted(missing)]
            work = root / str(len(runs))
    return runs


def print_table(runs: list[Killed], scans: int) -> None:
    """Print what each run left."""
    print("  run  ended by      after  label maps    final  temporary  faults")
    for number, run in enumerate(runs):
        by = "SIGKILL" if run.code < 0 else "itself"
        done, after = f"{run.finished} of {scans}", f"{run.seconds:.2f} s"
        print(f"{number:5}  {by:8}  {after:>9}  {done:>10}  {run.files:7}  {run.temporary:9}  {len(run.faults):6}")
        for fault in run.faults:
            print(f"       {fault}")
    killed = [run for run in runs if run.code < 0]
    print(
        f"{len(killed)} runs killed, {sum(run.temporary > 0 for run in killed)} of which left temporary files; "
        f"{len(runs) - len(killed)} went on to the end; {sum(len(run.faults) for run in runs)} faults"
    )


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="runs that are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    parser.add_argument("--scans", type=int, default=6, help="in the folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = prove(Path(folder), kills=options.kills, seed=options.seed, scans=options.scans)
    print_table(runs, options.scans)
    return int(any(run.faults for run in runs))


if __name__ == "__main__":
    sys.exit(main())
