"""What each ingredient of the starter's training is worth: real scans, after the same number of samples.

    python tests/benchmarks/starter_ingredients.py --data DATA --workspace FOLDER --json FILE
        [--samples 12000] [--seeds 0] [--only NAME ...] [--threads N] [--workers N]

Every row is one training with `kitsattn train --recipe starter --data DATA` from chance in which one thing is changed,
scored by `tests/benchmarks/starter.py` on scans that are not trained on. Learning rates fall to zero within the
samples. The workspace keeps the prepared material and the trainings: a row that was stopped goes on, a row that is
in FILE is not trained again. The table has the means over the seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from starter import DICE_REGIONS, Score, score_slices, score_volumes

from kitsattn.config import to_json
from kitsattn.files import write_json
from kitsattn.precision import choose_precision
from kitsattn.predict.infer import load_ensemble
from kitsattn.synthesis.data import find_starter_data
from kitsattn.train.recipe import RECIPES, Recipe

_EPOCHS = 4
_VALIDATION_BATCHES = 2
_BASE = RECIPES["starter"]
assert _BASE.shares is not None
_PAINTED, _BODIES, _SLICES, _ = _BASE.shares

ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "recipe starter": ({}, {}),
    "without painted phantoms": ({"shares": (0, _BODIES, _SLICES, 0)}, {}),
    "without bodies": ({"shares": (_PAINTED, 0, _SLICES, 0)}, {}),
    "without real slices": ({"shares": (_PAINTED, _BODIES, 0, 0)}, {}),
    "batches of half the size": ({"batch_size": _BASE.batch_size // 2}, {}),
    "batches of twice the size": ({"batch_size": _BASE.batch_size * 2}, {}),
    "all classes weigh alike": ({"class_weights": None}, {}),
    "Dice over labels": ({"dice_over": "labels"}, {}),
    "half the learning rate": ({"learning_rate": _BASE.learning_rate / 2}, {}),
    "no moving average": ({"ema_decay": None}, {}),
    "without attention": ({}, {"attention": "none"}),
    "three quarters of the width": ({}, {"encoder_width": 24}),
}
"""What is changed in the recipe, and in the network's settings."""


def main() -> None:
    """Train what is missing, score it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    torch.set_num_threads(options.threads)
    for name in options.only:
        for seed in options.seeds:
            key = f"{name}, seed {seed}, {options.samples} samples"
            if key in results:
                continue
            weights = train(name, seed, options)
            results[key] = {f"{one.data}, {one.region}": one.value for one in score(weights, options.data)}
            write_json(options.json, results)
    print_table(results, options)


def train(name: str, seed: int, options: argparse.Namespace) -> Path:
    """Train one row, or go on with it, and return its weights."""
    changes, settings = ROWS[name]
    recipe: Recipe = replace(_BASE, **changes)
    batches = max(1, options.samples // recipe.batch_size // _EPOCHS)
    recipe = replace(recipe, epochs=_EPOCHS, batches_per_epoch=batches, validation_batches=_VALIDATION_BATCHES)
    run = f"{name.replace(' ', '-')}-{seed}-{options.samples}"
    files = options.workspace / "rows"
    files.mkdir(parents=True, exist_ok=True)
    write_json(files / f"{run}.recipe.json", to_json(recipe))
    write_json(files / f"{run}.network.json", settings)
    command = [sys.executable, "-m", "kitsattn", "train", "--data", options.data, "--workspace", options.workspace]
    command += ["--recipe", files / f"{run}.recipe.json", "--model-settings", files / f"{run}.network.json"]
    command += ["--model", "attention-deeplab-r18-half", "--run-name", run, "--seed", seed]
    command += ["--workers", options.workers, "--json"]
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
    return Path(json.loads(done.stdout)["weights"])


def score(weights: Path, data: Path) -> list[Score]:
    """Return the figures of one network."""
    device = torch.device("cpu")
    ensemble = load_ensemble([weights], device, choose_precision("auto", device))
    scores = [one for one in score_volumes(ensemble, data) if one.region != "seconds"]
    for name in ("CURVAS", "KiTS19"):
        own = [one for one in find_starter_data(data).held_out_slices if one.name.startswith(name)]
        scores += score_slices(ensemble, own, f"{name} slices")
    return scores


def print_table(results: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """Print the means over the seeds in Markdown, one row a training."""
    first = next(iter(results.values()))
    columns = [column for column in first if column.endswith((*DICE_REGIONS, "false kidney, ml", "false tumour, ml"))]
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in ROWS:
        keys = [f"{name}, seed {seed}, {options.samples} samples" for seed in options.seeds]
        found = [results[key] for key in keys if key in results]
        if found:
            means = [statistics.mean(one[column] for one in found) for column in columns]
            cells = [
                f"{mean:.0f}" if column.endswith("ml") else f"{mean:.3f}"
                for column, mean in zip(columns, means, strict=True)
            ]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
