"""What each kind of attention costs and gives: time and memory of the block, Dice after the same training.

    python tests/benchmarks/attentions.py [LABELS] [--seeds 0 1 2] [--batches 100] [--only KIND ...] [--json FILE]

The block has 256 channels, as in `attention-deeplab-r50`, on maps of 32 x 32 and 64 x 64, which are slices of 512 x 512
and 1024 x 1024. Its time is the median of several passes without gradients, in turns with the others; its memory is
what the backward pass keeps of it, computed. The Dice is that of `attention-deeplab-tiny` with the recipe `modern`, on
the cohorts of `tests/benchmarks/recipes.py`: every kind has the same seeds, patches and number of batches. With --json
a training that is finished is not done again; --batches 0 measures the blocks alone.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from learning import HELD_OUT_CASES, TRAINING_CASES, make_cohort
from recipes import prepare, train
from torch import Tensor, nn

from kitsattn.blocks.attention import AttentionKind, build_attention
from kitsattn.models import model_entry
from kitsattn.train.recipe import RECIPES

MODEL = "attention-deeplab-tiny"
CHANNELS, KEY_CHANNELS = 256, 64
SIDES = (32, 64)
REPEATS = 9
KINDS = get_args(AttentionKind)


def kept_bytes(block: nn.Module, x: Tensor) -> int:
    """Return what a block keeps for its backward pass: each storage once, parameters and input left out."""
    seen = {one.untyped_storage().data_ptr() for one in (*block.parameters(), x)}
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = block(x)
    del output
    return total


def measure_blocks(kinds: list[AttentionKind]) -> dict[str, list[tuple[float, float]]]:
    """Return milliseconds and kept MB of each kind at each size."""
    rows: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for side in SIDES:
        x = torch.randn(1, CHANNELS, side, side)
        blocks: dict[str, nn.Module] = {kind: build_attention(kind, CHANNELS, KEY_CHANNELS) for kind in kinds}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(REPEATS + 1):  # the first pass is not counted
            for kind, block in blocks.items():
                times[kind].append(_milliseconds(block.eval(), x))
        for kind, block in blocks.items():
            kept = kept_bytes(block.train(), torch.randn(2, CHANNELS, side, side, requires_grad=True)) / 2
            rows[kind].append((statistics.median(times[kind][1:]), kept / 1e6))
    return rows


@torch.inference_mode()
def _milliseconds(block: Callable[[Tensor], Tensor], x: Tensor) -> float:
    started = time.perf_counter()
    block(x)
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Print a row for each kind: cost of the block, and means of the Dice over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("labels", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    costs = measure_blocks(arguments.only)
    done = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    recipe = replace(RECIPES["modern"], epochs=1, batches_per_epoch=max(1, arguments.batches), validation_batches=1)
    if arguments.batches:
        labels = arguments.labels or Path(os.environ["KITSATTN_TEST_DATA"]) / "kits19-labels"
        files = sorted(labels.glob("*.nii.gz"))
        with tempfile.TemporaryDirectory() as temporary:
            for seed in arguments.seeds:
                cohort = make_cohort(
                    files, Path(temporary) / f"seed-{seed}", seed=seed, train=TRAINING_CASES, held_out=HELD_OUT_CASES
                )
                for kind in arguments.only:
                    key = f"{kind}, seed {seed}, {arguments.batches} batches"
                    if key in done:
                        continue
                    config = replace(model_entry(MODEL).config, attention=kind)  # type: ignore[type-var]
                    started = time.perf_counter()
                    done[key] = train(cohort, prepare(cohort), recipe, MODEL, config)
                    print(f"{key}: {done[key]}, {time.perf_counter() - started:.0f} s", flush=True)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(done, indent=2) + "\n")
    sizes = " | ".join(f"{side} x {side}: ms | kept, MB" for side in SIDES)
    print(f"| attention | {sizes} | Dice kidney with tumour | tumour |")
    for kind in arguments.only:
        cells = [f"{value:.1f}" for pair in costs[kind] for value in pair]
        for region in ("kidney_and_tumour", "tumour"):
            keys = [f"{kind}, seed {seed}, {arguments.batches} batches" for seed in arguments.seeds]
            values = [done[key]["average"][region] for key in keys if key in done]
            cells.append(f"{statistics.fmean(values):.3f}" if values else "-")
        print(f"| `{kind}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
