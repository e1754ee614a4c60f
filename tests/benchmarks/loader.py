"""Processor time to draw an augmented training sample from the store, on one thread, and each transform's share.

python tests/benchmarks/loader.py [--size 512] [--slices 5] [--batches 40]

The scans are phantoms, painted for the purpose.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.transforms.abstract_transforms import AbstractTransform

from kitsattn.batches.loader import BatchSettings, SlabBatches
from kitsattn.datasets.find import find_dataset
from kitsattn.jobs import HERE
from kitsattn.phantom.paint import write_cohort
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.preprocess.store import PreparedDataset

_BATCH = 4
_FIELD_MM = 400.0
_DEPTH = 24


def prepare(folder: Path, size: int) -> PreparedDataset:
    """Paint and prepare two scans whose slices have so many pixels."""
    spacing = _FIELD_MM / size
    write_cohort(folder / "raw", cases=2, shape=(_DEPTH, size, size), spacing_mm=(8.0, spacing, spacing), seed=0)
    return preprocess_dataset(find_dataset(folder / "raw"), folder / "prepared", workers=HERE).dataset


def milliseconds(batches: SlabBatches, count: int) -> tuple[float, float]:
    """Return median and 90th percentile over batches of the processor time of a sample."""
    times = []
    for index in range(count + 1):
        start = time.process_time()
        batches[0, 0, index]
        times.append((time.process_time() - start) / batches.settings.batch_size)
    return 1000 * statistics.median(times[1:]), 1000 * float(np.quantile(times[1:], 0.9))


def shares(batches: SlabBatches, count: int) -> dict[str, float]:
    """Return the processor time of each transform: means over all samples, most of which it leaves as they are."""
    spent: dict[str, float] = {}

    def timed(transform: AbstractTransform) -> Callable[..., Any]:
        def run(**batch: Any) -> Any:
            start = time.process_time()
            augmented = transform(**batch)
            name = type(transform).__name__
            spent[name] = spent.get(name, 0.0) + time.process_time() - start
            return augmented

        return run

    batches.transform.transforms = [timed(transform) for transform in batches.transform.transforms]
    for index in range(count):
        batches[0, 0, index]
    return {name: 1000 * seconds / count / batches.settings.batch_size for name, seconds in spent.items()}


def main() -> None:
    """Print the time of a sample as it is stored and augmented, and where it goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = BatchSettings(
        batch_size=_BATCH,
        patch_size=(arguments.size, arguments.size),
        slices=arguments.slices,
        slab_step_mm=None,
        air=-5.0,
        seed=0,
        augment=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), arguments.size)
        cases = [prepared.open_case(case) for case in prepared.cases]
        print(f"{arguments.slices} x {arguments.size} x {arguments.size}, one thread, ms a sample: median, 90th %")
        for name, augment in (("read and cut", False), ("and augmented", True)):
            drawn = SlabBatches(cases, replace(settings, augment=augment))
            median, high = milliseconds(drawn, arguments.batches)
            print(f"{name:<40}{median:>6.1f}{high:>6.1f}")
        print("of which, on average")
        for name, spent in shares(drawn, arguments.batches).items():
            print(f"    {name:<36}{spent:>6.1f}")


if __name__ == "__main__":
    main()
