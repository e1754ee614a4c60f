"""nnU-Net's 2d trainer with a schedule of a given length, on the CPU; run by the peer's interpreter, not by hand.

python peer_nnunet_learning.py calibrate DATASET_ID SEED THREADS ITERATIONS OUT.json
python peer_nnunet_learning.py train DATASET_ID SEED THREADS EPOCHS ITERATIONS OUT.json

The dataset must be prepared for the configuration 2d, with a splits_final.json whose first fold is the one trained.
`calibrate` times iterations, its loader's waiting included, and forgets them. `train` trains a fresh network with the
trainer's own loop: its schedule ends with the last epoch. The held-out cases are then predicted by its own validation.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed  # type: ignore[import-not-found]
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # type: ignore[import-not-found]
from nnunetv2.utilities.dataset_name_id_conversion import (  # type: ignore[import-not-found]
    maybe_convert_to_dataset_name,
)


class TimedTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer, which also adds up how long its training iterations take.

    Attributes:
        training_s: Seconds in training iterations so far, waiting for batches included.
    """

    training_s = 0.0
    _started = 0.0

    def on_train_epoch_start(self) -> None:
        """Note when the iterations of an epoch begin."""
        super().on_train_epoch_start()
        self._started = time.perf_counter()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Add the time since then."""
        self.training_s += time.perf_counter() - self._started
        super().on_train_epoch_end(train_outputs)


def build_trainer(dataset: int) -> TimedTrainer:
    """Return the trainer of the first fold, as `nnUNetv2_train DATASET 2d 0 -device cpu` builds it."""
    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(dataset)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    description = json.loads((folder / "dataset.json").read_text())
    return TimedTrainer(plans, "2d", 0, description, torch.device("cpu"))


def calibrate(trainer: TimedTrainer, iterations: int) -> dict[str, Any]:
    """Return how long an iteration takes; the first, while which the loader fills its queue, is left out."""
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    started = time.perf_counter()
    for _ in range(iterations):
        trainer.train_step(next(trainer.dataloader_train))
    seconds = (time.perf_counter() - started) / iterations
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        loader._finish()
    return {"seconds_per_batch": seconds}


def train(trainer: TimedTrainer, epochs: int, iterations: int) -> dict[str, Any]:
    """Train from chance to the end of the schedule, and predict the held-out cases."""
    trainer.num_epochs = epochs
    trainer.num_iterations_per_epoch = iterations
    trainer.num_val_iterations_per_epoch = 1  # for its log alone: it predicts with the last weights
    trainer.run_training()
    started = time.perf_counter()
    trainer.perform_actual_validation()
    predicted_s = time.perf_counter() - started
    return {
        "training_s": trainer.training_s,
        "predicting_s": predicted_s,
        "learning_rate_last": float(trainer.optimizer.param_groups[0]["lr"]),
        "predictions": str(Path(trainer.output_folder) / "validation"),
    }


def main() -> None:
    """Do what is asked for and write the answer."""
    task, (dataset, seed, threads, *counts), out = sys.argv[1], map(int, sys.argv[2:-1]), Path(sys.argv[-1])
    torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - it is what its loader draws from
    torch.manual_seed(seed)
    trainer = build_trainer(dataset)
    answer = calibrate(trainer, *counts) if task == "calibrate" else train(trainer, *counts)
    out.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
