"""What each choice of the recipe `modern` is worth: Dice after the same number of batches on the same phantoms.

    python tests/benchmarks/recipes.py [LABELS] [--seeds 0 1] [--batches 400] [--only NAME ...] [--json FILE]

A seed's cohort is that of `tests/benchmarks/learning.py`: 15 phantoms to learn from and 5 held out, 256 x 256, painted
around label maps of KiTS19. Every row begins with the same weights, sees the same patches, and changes one thing. The
Dice is that of whole scans, of the last weights and of their moving average; the same seeds give the same figures.
With --json a row that is finished is not trained again.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from learning import HELD_OUT_CASES, TRAINING_CASES, Cohort, make_cohort

from kitsattn.datasets.find import find_dataset
from kitsattn.jobs import HERE
from kitsattn.models import model_entry
from kitsattn.models.registry import ModelConfig
from kitsattn.precision import choose_precision
from kitsattn.predict.cases import PredictionCase
from kitsattn.predict.infer import load_ensemble
from kitsattn.predict.run import predict_cases
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.preprocess.store import PreparedDataset, open_dataset
from kitsattn.train.fold import train_fold
from kitsattn.train.folds import Split
from kitsattn.train.job import FoldJob
from kitsattn.train.names import EMA, LAST
from kitsattn.train.recipe import Recipe

MODEL = "attention-deeplab-r18"
BASE = Recipe(batch_size=8, schedule="polynomial", learning_rate=1e-3, ema_decay=0.99)
ROWS = {
    "paper's Adam 3e-4, polynomial": replace(BASE, learning_rate=3e-4),
    "Adam 1e-3": BASE,
    "Adam 3e-3": replace(BASE, learning_rate=3e-3),
    "AdamW 1e-3, decay 0.05": replace(BASE, optimizer="adamw", weight_decay=0.05),
    "AdamW 3e-3, decay 0.05": replace(BASE, optimizer="adamw", weight_decay=0.05, learning_rate=3e-3),
    "SGD 1e-2, momentum 0.99": replace(BASE, optimizer="sgd", learning_rate=1e-2),
    "SGD 5e-2, momentum 0.9": replace(BASE, optimizer="sgd", learning_rate=5e-2, momentum=0.9),
    "AdamW 1e-3, warm-up over a fifth": replace(BASE, optimizer="adamw", weight_decay=0.05, warmup_share=0.2),
    "AdamW 1e-3, Dice over regions": replace(BASE, optimizer="adamw", weight_decay=0.05, dice_over="regions"),
    "AdamW 1e-3, two thirds on foreground": replace(BASE, optimizer="adamw", weight_decay=0.05, foreground_share=2 / 3),
    "AdamW 1e-3, average 0.95": replace(BASE, optimizer="adamw", weight_decay=0.05, ema_decay=0.95),
}


def prepare(cohort: Cohort) -> PreparedDataset:
    """Return the prepared cases of a cohort."""
    folder = cohort.folder / "prepared"
    if (folder / "dataset.json").exists():
        return open_dataset(folder)
    return preprocess_dataset(find_dataset(cohort.raw), folder, workers=HERE).dataset


def train(
    cohort: Cohort, dataset: PreparedDataset, recipe: Recipe, model: str = MODEL, config: ModelConfig | None = None
) -> dict[str, dict[str, float]]:
    """Train a recipe; return the Dice by region of the last weights and of their average."""
    folder = cohort.folder / "row"
    device = torch.device("cpu")
    job = FoldJob(
        dataset=dataset,
        split=Split(cohort.train, cohort.held_out),
        fold=0,
        folds=1,
        model=model,
        config=config or model_entry(model).config,
        recipe_name="row",
        recipe=recipe,
        seed=0,
        device=device,
        precision=choose_precision("auto", device),
        workers=0,
        folder=folder,
    )
    train_fold(job, resume=False)
    dice = {}
    for name, file in (("last", LAST), ("average", EMA)):
        ensemble = load_ensemble([folder / file], device, job.precision)
        predictions = folder / name
        cases = [
            PredictionCase(name=case, source=dataset.sources[case].image, target=predictions / f"{case}.nii.gz")
            for case in cohort.held_out
        ]
        predict_cases(ensemble, cases, overwrite=True)
        dice[name] = cohort.score(predictions)["dice"]
    shutil.rmtree(folder)
    return dice


def main() -> None:
    """Print a row for each recipe: means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("labels", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    labels = arguments.labels or Path(os.environ["KITSATTN_TEST_DATA"]) / "kits19-labels"
    files = sorted(labels.glob("*.nii.gz"))
    done = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.only:
            for seed in arguments.seeds:
                key = f"{name}, seed {seed}, {arguments.batches} batches"
                if key not in done:
                    folder = (arguments.folder or Path(temporary)) / f"seed-{seed}"
                    cohort = make_cohort(files, folder, seed=seed, train=TRAINING_CASES, held_out=HELD_OUT_CASES)
                    recipe = replace(ROWS[name], epochs=1, batches_per_epoch=arguments.batches, validation_batches=1)
                    started = time.perf_counter()
                    done[key] = train(cohort, prepare(cohort), recipe)
                    print(f"{key}: {done[key]}, {time.perf_counter() - started:.0f} s", flush=True)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(done, indent=2) + "\n")
    print(f"| mean Dice of seeds {arguments.seeds} after {arguments.batches} batches | last | | average | |")
    for name in arguments.only:
        rows = [done[f"{name}, seed {seed}, {arguments.batches} batches"] for seed in arguments.seeds]
        values = [
            statistics.fmean(row[which][region] for row in rows)
            for which in ("last", "average")
            for region in ("kidney_and_tumour", "tumour")
        ]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
