"""Images a second on a CPU, alone and beside a busy process, with all threads and with as many as have a core.

    python tests/benchmarks/neighbour.py [--model attention-deeplab-tiny] [--size 80] [--batch-size 12] [--seconds 8]
        [--repeats 3] [--busy 1] [--json FILE]

The busy process counts in a loop; it is started and ended here. A turn measures all four settings one after the other,
each without its first three seconds, in which the threads settle. "All threads" is what PyTorch does by itself. Figures
are medians over the turns, and so are the ratios, each taken within a turn. Training steps are those of
`tests/benchmarks/train_step.py`; a prediction is the forward pass.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from measure import machine
from train_step import build_step

from kitsattn.jobs import silent
from kitsattn.machine import available_cores, keep_freed_memory
from kitsattn.models import build_model, model_entry, model_names
from kitsattn.precision import choose_precision, mixed_precision, to_device
from kitsattn.threads import threads_beside_others

_CPU = torch.device("cpu")
_SETTLES_S = 3.0


def build_prediction(name: str, size: int, batch_size: int) -> Callable[[], float]:
    """Return a forward pass of a network, which returns how long it took in seconds."""
    model = to_device(build_model(name), _CPU).eval()
    images = torch.randn(batch_size, model_entry(name).config.slices, size, size)
    images = images.contiguous(memory_format=torch.channels_last)
    precision = choose_precision("auto", _CPU)

    def step() -> float:
        started = time.perf_counter()
        with torch.inference_mode(), mixed_precision(_CPU, precision):
            model(images)
        return time.perf_counter() - started

    return step


@contextmanager
def busy_process() -> Iterator[None]:
    """Run a process that needs a core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def images_per_second(step: Callable[[], float], batch_size: int, seconds: float, *, busy: int, watch: bool) -> float:
    """Return how many images steps get through in a second, once the threads have settled."""
    with ExitStack() as others:
        for _ in range(busy):
            others.enter_context(busy_process())
        progress = others.enter_context(threads_beside_others(silent, available_cores(), watch=watch))
        settled = time.perf_counter() + _SETTLES_S
        times: list[float] = []
        while time.perf_counter() < settled + seconds:
            took = step()
            progress("steps", len(times), 0)
            if time.perf_counter() > settled:
                times.append(took)
    return batch_size * len(times) / sum(times)


def main() -> None:
    """Print a row for training and one for prediction, and write the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=model_names(), default="attention-deeplab-tiny")
    parser.add_argument("--size", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--busy", type=int, default=1, help="busy processes")
    parser.add_argument("--only", choices=["training", "prediction"])
    parser.add_argument("--json", type=Path, help="write all measurements here")
    arguments = parser.parse_args()
    keep_freed_memory()
    size, batch_size = arguments.size, arguments.batch_size
    steps = {
        "training": build_step(arguments.model, choose_precision("auto", _CPU), size, batch_size),
        "prediction": build_prediction(arguments.model, size, batch_size),
    }
    rows: dict[str, list[dict[str, float]]] = {}
    print(f"{arguments.model}, {batch_size} x {size} x {size}, images/s: median of {arguments.repeats}")
    print(f"{'':<12}{'alone':>18}{'':>9}{'beside':>18}{'':>9}{'beside / alone':>18}")
    print(f"{'':<12}{'all':>9}{'chosen':>9}{'ratio':>9}{'all':>9}{'chosen':>9}{'ratio':>9}{'chosen / all':>18}")
    for name, step in steps.items():
        if arguments.only not in {None, name}:
            continue
        step()
        rows[name] = [
            {
                f"{where}, {which}": images_per_second(
                    step, batch_size, arguments.seconds, busy=busy, watch=which == "chosen"
                )
                for where, busy in (("alone", 0), ("beside", arguments.busy))
                for which in ("all", "chosen")
            }
            for _ in range(arguments.repeats)
        ]

        def median(top: str, bottom: str | None = None, turns: list[dict[str, float]] = rows[name]) -> float:
            return statistics.median(turn[top] / (turn[bottom] if bottom else 1.0) for turn in turns)

        cells = [
            median(f"{where}, {which}", f"{where}, all" if ratio else None)
            for where in ("alone", "beside")
            for which, ratio in (("all", False), ("chosen", False), ("chosen", True))
        ]
        digits = [1, 1, 2] * 2
        line = "".join(f"{cell:>9.{digit}f}" for cell, digit in zip(cells, digits, strict=True))
        print(f"{name:<12}{line}{median('beside, chosen', 'alone, all'):>18.2f}", flush=True)
    about = {**machine(), "threads": available_cores(), "torch": torch.__version__}
    for key, value in about.items():
        print(f"{key}: {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
