"""What this project and nnU-Net learn in equal training time on the same phantoms: held-out Dice; Linux only.

    python tests/benchmarks/learning.py [LABELS] [--peer-python VENV/bin/python] [--seeds 10 11 12] [--minutes 10]
        [--recipe NAME|FILE] [--json FILE] [--folder FOLDER] [--quick]

A seed draws 20 label maps of KiTS19 from LABELS, without it from the folder kits19-labels in $KITSATTN_TEST_DATA, and
decides what is painted around them: 15 cases to learn from, 5 held out. The maps are first thinned to 256 x 256 pixels
and to slices 5 mm apart, nearest voxels, from 20 mm below the kidneys to 20 mm above them, less where that would be
more than 60 slices; a map whose tumour is lost by that is passed over.

The peer, nnU-Net 2.8.1, lives in an environment of its own; without --peer-python only kitsattn is trained. With
torch==2.13.0+cpu as the only line of FILE, so that no CUDA package is fetched (ask pip with --dry-run first):

    python -m venv VENV && VENV/bin/pip install -c FILE torch && VENV/bin/pip install -c FILE nnunetv2==2.8.1

What is compared:

- Both get the same files, the same split, and --cores cores. Each prepares, trains and predicts in its own way:
  `kitsattn preprocess` and `train`; `nnUNetv2_plan_and_preprocess -c 2d`, its 2d trainer and that trainer's validation,
  with the batch that it plans and the fp32 that it takes on a CPU.
- Equal is the wall time of the training batches, waiting for them included. Preparing, the validation between epochs,
  checkpoints and the prediction of the held-out cases are not counted on either side.
- Before a training some batches of the same kind are timed; from that follows how many batches there are, so that a
  schedule with an end has it after --minutes. They are divided into at most --epochs epochs. The plateau schedule of
  the recipe `paper` has no end of its own. "trained s" is what the training took in the end: it is off where others
  used the machine meanwhile. Then give --sample-s and --peer-sample-s, the seconds of a sample on the quiet machine.
- Both predict with the weights after the last batch, kitsattn with their moving average where its recipe has one.
  "best" is kitsattn with the checkpoint that it chooses by the held-out cases, as nnU-Net v1 did. The Dice of all is
  kitsattn's, of KiTS19's regions.
- kitsattn's training is the same for the same seed; nnU-Net's batches are not.

With --json a seed's side that is finished is not done again. "others" is how many cores were in use elsewhere.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import Cost, cost_of_command, machine

from kitsattn.config import to_json
from kitsattn.evaluate.match import CasePair, MatchedCases
from kitsattn.evaluate.run import evaluate_cases
from kitsattn.evaluate.scoring import Scoring
from kitsattn.jobs import Workers
from kitsattn.phantom.paint import write_painted
from kitsattn.preprocess.plan import read_plan
from kitsattn.synthesis.painted import thin_labels
from kitsattn.train.folds import SPLITS_FILE
from kitsattn.train.recipe import Recipe, find_recipe
from kitsattn.volume.nifti import read_labels, write_nifti

MARGIN_MM = 20.0
MOST_SLICES = 60
TRAINING_CASES, HELD_OUT_CASES = 15, 5

_TUMOUR = 2
_DATASET = 502
_NAME = "phantoms"
_SIDES = ("kitsattn", "nnunet")
_VALIDATION_BATCHES = 10
_CALIBRATION_BATCHES = 12
_PEER_CALIBRATION_BATCHES = 2
_SAME_SPACING = 0.02


@dataclass(frozen=True)
class Cohort:
    """The phantoms of one seed.

    Attributes:
        folder: Holds everything of the seed.
        train: Ids of the cases to learn from.
        held_out: Ids of the others.
        slices: Slices of all cases together.
    """

    folder: Path
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    slices: int

    @property
    def raw(self) -> Path:
        """The data set in KiTS19's layout."""
        return self.folder / _NAME

    def write_splits(self, folder: Path) -> None:
        """Write the split where a prepared data set has it; both sides read the same file."""
        content = [{"train": self.train, "val": self.held_out}]
        (folder / SPLITS_FILE).write_text(json.dumps(content, indent=2) + "\n")

    def score(self, predictions: Path) -> dict[str, Any]:
        """Return the Dice of predicted held-out cases: the mean by region, and of each case."""
        pairs = tuple(
            CasePair(case, predictions / f"{case}.nii.gz", self.raw / case / "segmentation.nii.gz")
            for case in self.held_out
        )
        for pair in pairs:
            if pair.prediction is None or not pair.prediction.is_file():
                msg = f"{pair.prediction} was not written"
                raise SystemExit(msg)
        scores = evaluate_cases(MatchedCases(pairs), Scoring())
        cases = {case.case: {key: values["dice"] for key, values in case.regions.items()} for case in scores.cases}
        return {"dice": {key: values["dice"] for key, values in scores.mean.items()}, "cases": cases}


def make_cohort(label_files: Sequence[Path], folder: Path, *, seed: int, train: int, held_out: int) -> Cohort:
    """Draw, thin and paint the cases of a seed, or find those of an earlier run."""
    note = folder / "cohort.json"
    if note.is_file():
        found = json.loads(note.read_text())
        return Cohort(folder, tuple(found["train"]), tuple(found["held_out"]), found["slices"])
    shutil.rmtree(folder, ignore_errors=True)
    chosen: list[Path] = []
    slices = 0
    for index in np.random.default_rng(seed).permutation(len(label_files)):
        labels = thin_labels(read_labels(label_files[index]), margin_mm=MARGIN_MM, most_slices=MOST_SLICES)
        if not np.any(labels.array == _TUMOUR):
            print(f"{label_files[index].name} has no tumour left and is passed over")
            continue
        chosen.append(folder / "labels" / label_files[index].name)
        write_nifti(chosen[-1], labels, axes="IPL")
        slices += len(labels.array)
        if len(chosen) == train + held_out:
            break
    else:
        msg = f"{len(label_files)} label maps gave {len(chosen)} cases of {train + held_out}: give more of them"
        raise SystemExit(msg)
    names = write_painted(
        folder / _NAME,
        chosen,
        seed=seed,
        licence="that of the label maps",
        workers=Workers(len(os.sched_getaffinity(0))),
    )
    cohort = Cohort(folder, tuple(sorted(names[:train])), tuple(sorted(names[train:])), slices)
    note.write_text(json.dumps({"train": cohort.train, "held_out": cohort.held_out, "slices": slices}))
    return cohort


def divide(minutes: float, seconds_per_batch: float, most_epochs: int) -> tuple[int, int]:
    """Return how many epochs of how many batches fill a time; one batch at least."""
    batches = max(1, round(60 * minutes / seconds_per_batch))
    per_epoch = max(1, round(batches / most_epochs))
    return max(1, round(batches / per_epoch)), per_epoch


def report(cost: Cost, prepared: Cost) -> dict[str, Any]:
    """Return what the commands of a side cost; that which trains also predicts the held-out cases."""
    return {
        "preparing_s": prepared.wall_s,
        "command_s": cost.wall_s,
        "others": cost.others,
        "peak_mib": cost.peak_mib,
    }


def learn(cohort: Cohort, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare, calibrate, train, predict and score this project's side."""
    workspace, log = cohort.folder / "workspace", cohort.folder / "kitsattn.log"
    shutil.rmtree(workspace, ignore_errors=True)
    program = [sys.executable, "-m", "kitsattn"]
    prepared = cost_of_command([*program, "preprocess", str(cohort.raw), "--workspace", str(workspace)], log)
    folder = workspace / "preprocessed" / _NAME
    cohort.write_splits(folder)
    _, recipe = find_recipe(arguments.recipe)
    recipe = replace(
        recipe,
        batch_size=arguments.batch_size or recipe.batch_size,
        patch_size=tuple(arguments.patch_size) if arguments.patch_size else recipe.patch_size,
        validation_batches=min(_VALIDATION_BATCHES, recipe.validation_batches),
    )

    def train(name: str, settings: Recipe) -> tuple[list[dict[str, Any]], Path, Cost]:
        recipe_file, run = cohort.folder / f"{name}.json", workspace / "runs" / name
        recipe_file.write_text(json.dumps(to_json(settings), indent=2) + "\n")
        command = [*program, "train", "--fold", "0", "--dataset", _NAME, "--model", arguments.model, "--json"]
        command += ["--recipe", str(recipe_file), "--seed", str(seed), "--device", "cpu"]
        command += ["--precision", arguments.precision, "--run-name", name, "--workspace", str(workspace)]
        cost = cost_of_command(command, log.with_name(f"kitsattn-{name}.log"))
        journal = (run / "fold_0" / "journal.jsonl").read_text().splitlines()
        return [json.loads(line) for line in journal], run / "fold_0", cost

    tried = replace(recipe, epochs=2, batches_per_epoch=_CALIBRATION_BATCHES, validation_batches=1)
    sample_s = arguments.sample_s or 1 / train("calibration", tried)[0][-1]["images_per_second"]
    epochs, per_epoch = divide(arguments.minutes, sample_s * recipe.batch_size, arguments.epochs)
    recipe = replace(recipe, epochs=epochs, batches_per_epoch=per_epoch)
    records, run, cost = train("learning", recipe)
    training_s = sum(per_epoch * recipe.batch_size / record["images_per_second"] for record in records)
    final = run / "ema.safetensors" if (run / "ema.safetensors").exists() else run / "last.safetensors"
    predictions = cohort.folder / "final"
    shutil.rmtree(predictions, ignore_errors=True)
    predicting_s = 0.0
    for case in cohort.held_out:
        command = [*program, "predict", str(cohort.raw / case / "imaging.nii.gz"), str(predictions / f"{case}.nii.gz")]
        command += ["--model", str(final), "--device", "cpu", "--precision", arguments.precision]
        predicting_s += cost_of_command(command, log.with_name("kitsattn-predict.log")).wall_s
    return {
        **report(cost, prepared),
        "batch_size": recipe.batch_size,
        "patch_size": list(recipe.patch_size or read_plan(folder / "plan.json").patch_size),
        "sample_s": sample_s,
        "epochs": epochs,
        "batches_per_epoch": per_epoch,
        "training_s": training_s,
        "predicting_s": predicting_s,
        "waiting_share": statistics.fmean(record["waiting_share"] for record in records),
        "epochs_done": len(records),
        "recipe": to_json(recipe),
        **cohort.score(predictions),
        "best": cohort.score(run / "validation"),
    }


def check_axial(planned_mm: Sequence[float], cohort: Cohort) -> None:
    """Refuse a plan of nnU-Net whose planes are not the axial ones: it takes those across the widest spacing."""
    pixels_mm = statistics.median(
        read_labels(path).geometry.spacing_mm[1] for path in sorted(cohort.raw.glob("case_*/segmentation.nii.gz"))
    )
    if any(abs(spacing / pixels_mm - 1) > _SAME_SPACING for spacing in planned_mm):
        msg = f"nnU-Net planned planes of {planned_mm} mm, not axial ones of {pixels_mm:.3f} mm"
        raise SystemExit(msg)


def learn_peer(cohort: Cohort, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare, calibrate, train, predict and score nnU-Net's side."""
    places = {name: cohort.folder / f"nnunet-{name}" for name in ("raw", "preprocessed", "results")}
    for place in places.values():
        shutil.rmtree(place, ignore_errors=True)
    environment = {f"nnUNet_{name}": str(place) for name, place in places.items()}
    environment |= {"nnUNet_n_proc_DA": str(arguments.cores), "nnUNet_def_n_proc": str(arguments.cores)}
    name = f"Dataset{_DATASET}_Phantoms"
    for folder, suffix, source in (("imagesTr", "_0000", "imaging.nii.gz"), ("labelsTr", "", "segmentation.nii.gz")):
        (places["raw"] / name / folder).mkdir(parents=True)
        for case in (*cohort.train, *cohort.held_out):
            (places["raw"] / name / folder / f"{case}{suffix}.nii.gz").symlink_to(
                (cohort.raw / case / source).resolve()
            )
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": 1, "tumour": 2},
        "numTraining": len(cohort.train) + len(cohort.held_out),
        "file_ending": ".nii.gz",
    }
    (places["raw"] / name / "dataset.json").write_text(json.dumps(description))
    program = arguments.peer_python.with_name("nnUNetv2_plan_and_preprocess")
    command = [
        str(program),
        "-d",
        str(_DATASET),
        "-c",
        "2d",
        "-np",
        str(arguments.cores),
        "-npfp",
        str(arguments.cores),
    ]
    prepared = cost_of_command(command, cohort.folder / "nnunet-prepare.log", environment)
    cohort.write_splits(places["preprocessed"] / name)
    plans_file = places["preprocessed"] / name / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plan = plans["configurations"]["2d"]
    check_axial(plan["spacing"], cohort)
    if arguments.peer_batch_size:
        plan["batch_size"] = arguments.peer_batch_size
        plans_file.write_text(json.dumps(plans, indent=4))

    def drive(task: str, *numbers: int) -> tuple[dict[str, Any], Cost]:
        driver, out = Path(__file__).with_name("peer_nnunet_learning.py"), cohort.folder / f"nnunet-{task}.json"
        settings = [str(number) for number in (_DATASET, seed, arguments.cores, *numbers)]
        command = [str(arguments.peer_python), str(driver), task, *settings, str(out)]
        cost = cost_of_command(command, cohort.folder / f"nnunet-{task}.log", environment)
        return json.loads(out.read_text()), cost

    batch_s = (
        arguments.peer_sample_s * plan["batch_size"]
        if arguments.peer_sample_s
        else drive("calibrate", _PEER_CALIBRATION_BATCHES)[0]["seconds_per_batch"]
    )
    epochs, per_epoch = divide(arguments.minutes, batch_s, arguments.epochs)
    answer, cost = drive("train", epochs, per_epoch)
    return {
        **report(cost, prepared),
        "batch_size": plan["batch_size"],
        "patch_size": plan["patch_size"],
        "sample_s": batch_s / plan["batch_size"],
        "epochs": epochs,
        "batches_per_epoch": per_epoch,
        "training_s": answer["training_s"],
        "predicting_s": answer["predicting_s"],
        "learning_rate_last": answer["learning_rate_last"],
        **cohort.score(Path(answer["predictions"])),
    }


LEARN: Mapping[str, Callable[[Cohort, int, argparse.Namespace], dict[str, Any]]] = {
    "kitsattn": learn,
    "nnunet": learn_peer,
}


def show_seed(seed: int, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a row a side."""
    print(f"\nseed {seed}{'batch x patch':>20}{'s/batch':>9}{'batches':>16}{'trained s':>11}{'kidney':>9}", end="")
    print(f"{'tumour':>8}{'best':>9}{'':>8}{'prepare s':>11}{'all s':>7}{'others':>8}")
    for side, found in results.items():
        patch = f"{found['batch_size']} x {found['patch_size'][0]} x {found['patch_size'][1]}"
        batches = found.get("epochs_done", found["epochs"]) * found["batches_per_epoch"]
        drawn = f"{found['epochs']} x {found['batches_per_epoch']}"
        row = f"{side:<9}{patch:>18}{found['training_s'] / batches:>9.2f}{drawn:>16}{found['training_s']:>11.1f}"
        row += "".join(f"{dice:>{width}.4f}" for dice, width in zip(found["dice"].values(), (9, 8), strict=True))
        best = found["best"]["dice"].values() if "best" in found else ()
        row += "".join(f"{dice:>{width}.4f}" for dice, width in zip(best, (9, 8), strict=True)) if best else " " * 17
        print(f"{row}{found['preparing_s']:>11.1f}{found['command_s']:>7.0f}{found['others']:>8.1f}", flush=True)


def show_summary(results: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> None:
    """Print the mean of each side and, where both were run, of their difference seed by seed."""
    rows = {side: [found[side]["dice"] for found in results.values() if side in found] for side in _SIDES}
    rows["best"] = [found["kitsattn"]["best"]["dice"] for found in results.values() if "kitsattn" in found]
    rows["difference"] = [
        {key: found["kitsattn"]["dice"][key] - found["nnunet"]["dice"][key] for key in found["nnunet"]["dice"]}
        for found in results.values()
        if len(found) == len(_SIDES)
    ]
    print(
        f"\n{'mean over seeds':<16}{'seeds':>6}{'kidney':>20}{'tumour':>20}    ± is the standard deviation over seeds"
    )
    for name, scores in rows.items():
        cells = ""
        for key in scores[0] if scores else ():
            values = [score[key] for score in scores]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells += f"{f'{statistics.fmean(values):.4f}{spread}':>20}"
        if scores:
            print(f"{name:<16}{len(scores):>6}{cells}")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what must be equal for results to stand in one file."""
    names = ("minutes", "model", "recipe", "precision", "batch_size", "patch_size", "epochs", "cores", "quick")
    return {name: getattr(arguments, name) for name in (*names, "peer_batch_size", "sample_s", "peer_sample_s")}


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Do what is not done yet, seed by seed, and print it."""
    settings = settings_of(arguments)
    content: dict[str, Any] = {"settings": settings, "machine": machine(), "seeds": {}}
    if arguments.json and arguments.json.is_file():
        content = json.loads(arguments.json.read_text())
        if content["settings"] != settings:
            msg = f"{arguments.json} holds results of other settings, {content['settings']}: name another file"
            raise SystemExit(msg)
    cases = (6, 2) if arguments.quick else (TRAINING_CASES, HELD_OUT_CASES)
    label_files = sorted(arguments.labels.glob("*.nii.gz"))
    results: dict[int, dict[str, Any]] = {}
    for seed in arguments.seeds:
        stored = content["seeds"].setdefault(str(seed), {})
        for side in arguments.sides:
            if side in stored:
                continue
            cohort = make_cohort(label_files, folder / f"seed_{seed}", seed=seed, train=cases[0], held_out=cases[1])
            stored[side] = {"slices": cohort.slices, **LEARN[side](cohort, seed, arguments)}
            if arguments.json:
                arguments.json.write_text(json.dumps(content, indent=2) + "\n")
        results[seed] = {side: stored[side] for side in arguments.sides if side in stored}
        show_seed(seed, results[seed])
    show_summary(results)
    for name, value in {**settings, **content["machine"]}.items():
        print(f"{name}: {value}")
    if not arguments.peer_python:
        print("nnU-Net was not trained here: give its interpreter with --peer-python")


def main() -> None:
    """Read the options, keep to the cores, and run in a scratch folder or the one that is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    data = os.environ.get("KITSATTN_TEST_DATA")
    default = Path(data) / "kits19-labels" if data else None
    parser.add_argument("labels", type=Path, nargs="?", default=default, help="folder of label maps of KiTS19")
    parser.add_argument("--peer-python", type=Path, help="interpreter of the environment that has nnU-Net")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each side")
    parser.add_argument("--sides", nargs="+", choices=_SIDES, default=list(_SIDES))
    parser.add_argument("--model", default="attention-deeplab-r18")
    parser.add_argument("--recipe", default="paper", help="name or file; epochs and batches are set by the time")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of kitsattn")
    parser.add_argument("--batch-size", type=int, help="of kitsattn, instead of the recipe's")
    parser.add_argument("--patch-size", type=int, nargs=2, help="of kitsattn, instead of the recipe's")
    parser.add_argument("--peer-batch-size", type=int, help="of nnU-Net, instead of the one that it plans")
    parser.add_argument("--sample-s", type=float, help="seconds of training a sample of kitsattn, instead of timing it")
    parser.add_argument("--peer-sample-s", type=float, help="the same of nnU-Net")
    parser.add_argument("--epochs", type=int, default=20, help="epochs that the batches are divided into, at most")
    parser.add_argument("--cores", type=int, default=2, help="cores that each side may use")
    parser.add_argument("--folder", type=Path, help="keep the work here, and use cohorts that are here already")
    parser.add_argument("--json", type=Path, help="write the results here after each side; finished ones are kept")
    parser.add_argument("--quick", action="store_true", help="a try with 6 and 2 cases; its figures mean nothing")
    arguments = parser.parse_args()
    if arguments.labels is None or not arguments.labels.is_dir():
        parser.error("give a folder of label maps of KiTS19, or set KITSATTN_TEST_DATA to one with kits19-labels/")
    if "nnunet" in arguments.sides and not arguments.peer_python:
        arguments.sides = ["kitsattn"]
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= arguments.cores <= len(cores):
        parser.error(f"--cores must be from 1 to {len(cores)}, the cores that are here")
    os.sched_setaffinity(0, cores[: arguments.cores])
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        run(arguments, arguments.folder.resolve())
        return
    with tempfile.TemporaryDirectory(prefix="kitsattn-learning-") as scratch:
        run(arguments, Path(scratch).resolve())


if __name__ == "__main__":
    main()
