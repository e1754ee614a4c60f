"""What packed convolutions are worth on a CPU in bf16: forward passes of each network with and without them, in turns.

    python tests/benchmarks/packing.py [--repeats 15] [--json FILE]

Both have their batch normalisations folded, as in prediction; two slices at once, of the size that the network's usual
plan has. Figures are medians; the ratio is the median over the turns.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from kitsattn.blocks.folding import fold_batch_norm
from kitsattn.blocks.packing import pack_convolutions
from kitsattn.models import build_model, model_entry
from kitsattn.precision import mixed_precision, to_device

SIZES = {
    "attention-deeplab-r18-half": (224, 288),  # the starter
    "attention-deeplab-r18": (512, 512),
    "attention-deeplab-r50": (512, 512),
}
SLICES = 2
CPU = torch.device("cpu")


@torch.inference_mode()
def compare(name: str, size: tuple[int, int], repeats: int) -> dict[str, float]:
    """Return ms a slice without and with packing, and their ratio."""
    model = build_model(name).eval()
    fold_batch_norm(model)
    packed = copy.deepcopy(model)
    pack_convolutions(packed)
    sides: list[tuple[str, nn.Module]] = [("plain_ms", to_device(model, CPU)), ("packed_ms", packed)]
    x = torch.randn(SLICES, model_entry(name).config.slices, *size).contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {key: [] for key, _ in sides}
    for turn in range(repeats + 1):
        for key, network in sides if turn % 2 else sides[::-1]:
            start = time.perf_counter()
            with mixed_precision(CPU, "bf16"):
                network(x)
            if turn:
                times[key].append(1000 * (time.perf_counter() - start) / SLICES)
    ratios = [plain / other for plain, other in zip(times["plain_ms"], times["packed_ms"], strict=True)]
    return {**{key: statistics.median(values) for key, values in times.items()}, "ratio": statistics.median(ratios)}


def main() -> None:
    """Print one row a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = {name: compare(name, size, options.repeats) for name, size in SIZES.items()}
    print("| network | plain, ms a slice | packed, ms a slice | ratio |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['plain_ms']:.1f} | {row['packed_ms']:.1f} | {row['ratio']:.2f} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
