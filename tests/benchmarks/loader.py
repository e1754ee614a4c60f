"""Processor time to draw an augmented training sample from the store, on one thread; medians.

python tests/benchmarks/loader.py [--size 512] [--slices 5] [--batches 10]

The scans are phantoms, painted for the purpose.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from kitsattn.batches.loader import BatchSettings, SlabBatches
from kitsattn.datasets.find import find_dataset
from kitsattn.datasets.phantom.paint import write_cohort
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.preprocess.store import PreparedDataset

_BATCH = 4
_FIELD_MM = 400.0
_DEPTH = 24


def prepare(folder: Path, size: int) -> PreparedDataset:
    """Paint and prepare two scans whose slices have so many pixels."""
    spacing = _FIELD_MM / size
    write_cohort(folder / "raw", cases=2, shape=(_DEPTH, size, size), spacing_mm=(8.0, spacing, spacing), seed=0)
    return preprocess_dataset(find_dataset(folder / "raw"), folder / "prepared", workers=1).dataset


def milliseconds(batches: SlabBatches, count: int) -> float:
    """Return the median processor time of a sample: what others do on the machine counts little."""
    times = []
    for index in range(count + 1):
        start = time.process_time()
        batches[0, 0, index]
        times.append((time.process_time() - start) / batches.settings.batch_size)
    return 1000 * statistics.median(times[1:])


def main() -> None:
    """Print the time of a sample as it is stored, and augmented."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=5)
    parser.add_argument("--batches", type=int, default=10)
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
        print(f"{arguments.slices} x {arguments.size} x {arguments.size}, one thread, ms a sample")
        for name, augment in (("read and cut", False), ("and augmented", True)):
            drawn = SlabBatches(cases, replace(settings, augment=augment))
            print(f"{name:<16}{milliseconds(drawn, arguments.batches):>8.1f}")


if __name__ == "__main__":
    main()
