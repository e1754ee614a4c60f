import subprocess
import sys

import pytest

from kitsattn.evaluate.metrics import METRICS
from kitsattn.evaluate.metrics.metric import Metric
from kitsattn.labels import KITS19, KITS23


def test_names_are_told_apart() -> None:
    """In JSON, on the command line, in CSV; and each has a place of its own."""
    for name in ("command", "column", "title", "order"):
        values = [getattr(metric, name) for metric in METRICS]
        assert len(set(values)) == len(values)
    keys = [key for metric in METRICS for key in metric.keys]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_said_of_a_metric_is_whole(metric: Metric) -> None:
    """Help and rules are sentences, and a key that ends with a unit has that unit."""
    assert metric.help.endswith(".")
    for sentence in filter(None, (metric.empty, metric.describe(KITS19), metric.describe(KITS23))):
        assert sentence.endswith((".", ")"))
    assert metric.key.endswith({"mm": "_mm", "ml": "_ml", "%": "_percent", "": ""}[metric.unit])


def test_the_help_needs_no_numpy() -> None:
    """The command line reads the metrics for its help, which would take twice as long with NumPy."""
    script = "import sys, kitsattn.evaluate.metrics; print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
