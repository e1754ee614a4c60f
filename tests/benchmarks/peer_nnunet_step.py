"""nnU-Net's training step of its 2d configuration, one at a time on demand; run by the peer's interpreter, not by hand.

python peer_nnunet_step.py DATASET_ID BATCH_SIZE THREADS

The dataset must be prepared; a batch size of 0 takes the planned one. It says on its standard output, one JSON line
each, what it is, and after every line on its standard input how long a step of the trainer took. Batches are random.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed  # type: ignore[import-not-found]
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # type: ignore[import-not-found]
from nnunetv2.utilities.dataset_name_id_conversion import (  # type: ignore[import-not-found]
    maybe_convert_to_dataset_name,
)


def build_trainer(dataset: int) -> Any:
    """Return the initialised trainer, as `nnUNetv2_train DATASET 2d 0 -device cpu` builds it."""
    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(dataset)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "2d", 0, json.loads((folder / "dataset.json").read_text()), torch.device("cpu"))
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.train()
    return trainer


def random_batch(trainer: Any, batch_size: int, patch_size: tuple[int, ...]) -> dict[str, Any]:
    """Return a batch as its loader makes them: one target for each output of the deep supervision."""
    target = torch.randint(0, trainer.label_manager.num_segmentation_heads, (batch_size, 1, *patch_size)).float()
    targets = [
        torch.nn.functional.interpolate(target, [round(size * s) for size, s in zip(patch_size, scale, strict=True)])
        for scale in trainer._get_deep_supervision_scales()
    ]
    return {"data": torch.randn(batch_size, trainer.num_input_channels, *patch_size), "target": targets}


def main() -> None:
    """Warm up, then take a step for every line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # it prints much
    dataset, batch_size, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    trainer = build_trainer(dataset)
    patch_size = tuple(int(size) for size in trainer.configuration_manager.patch_size)
    planned = int(trainer.configuration_manager.batch_size)
    batch = random_batch(trainer, batch_size or planned, patch_size)
    trainer.train_step(batch)
    said: dict[str, Any] = {
        "batch_size": batch_size or planned,
        "planned_batch_size": planned,
        "patch_size": patch_size,
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "optimizer": type(trainer.optimizer).__name__,
    }
    print(json.dumps(said), file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        trainer.train_step(batch)
        print(json.dumps({"seconds": time.perf_counter() - started}), file=answers, flush=True)


if __name__ == "__main__":
    main()
