"""Time of one forward pass of each network, one slice at a time, on this machine; medians.

python tests/benchmarks/forward.py [--size 512] [--repeats 5] [--device auto]
"""

import argparse
import statistics
import time

import torch

from kitsattn.models import build_model, model_entry, model_names
from kitsattn.precision import Precision, choose_device, choose_precision, mixed_precision, to_device


@torch.inference_mode()
def milliseconds(name: str, size: int, device: torch.device, precision: Precision, repeats: int) -> float:
    """Return the median time of a forward pass."""
    model = to_device(build_model(name).eval(), device)
    x = torch.randn(1, model_entry(name).config.slices, size, size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with mixed_precision(device, precision):
            model(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])


def main() -> None:
    """Print one row a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    native = choose_precision("auto", device)
    print(f"{arguments.size} x {arguments.size}, {device}, median of {arguments.repeats}, ms a slice")
    print(f"{'network':<26}{'fp32':>8}{native:>8}")
    for name in model_names():
        times = [milliseconds(name, arguments.size, device, form, arguments.repeats) for form in ("fp32", native)]
        print(f"{name:<26}{times[0]:>8.0f}{times[1]:>8.0f}")


if __name__ == "__main__":
    main()
