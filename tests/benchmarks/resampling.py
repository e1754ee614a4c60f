"""In-plane cubic resampling against skimage, both in this process, in turn; medians.

python tests/benchmarks/resampling.py [--slices 16] [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from skimage.transform import resize

from kitsattn.preprocess.resample import resample_scan

SHAPE, TARGET = (512, 512), (561, 561)


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print both medians, their ratio and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    scan = np.random.default_rng(0).normal(0, 100, (arguments.slices, *SHAPE)).astype(np.float32)

    def peer() -> np.ndarray:
        return np.stack([resize(image, TARGET, order=3, mode="edge", anti_aliasing=False) for image in scan])

    difference = float(np.abs(resample_scan(scan, TARGET) - peer()).max())
    pairs = [(seconds(lambda: resample_scan(scan, TARGET)), seconds(peer)) for _ in range(arguments.repeats)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(peer_time / our_time for our_time, peer_time in pairs)
    print(f"{arguments.slices} slices {SHAPE} -> {TARGET}, median of {arguments.repeats}")
    own, other = (1000 * time_taken / arguments.slices for time_taken in (ours, theirs))
    print(f"kitsattn {own:.2f} ms a slice, skimage {other:.2f} ms")
    print(f"ratio {ratio:.1f}, largest difference {difference:.2g} HU")


if __name__ == "__main__":
    main()
