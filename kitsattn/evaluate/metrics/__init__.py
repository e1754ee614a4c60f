"""The metrics of a region, one file each. A file that is added to this folder is found without another line."""

from importlib import import_module
from pkgutil import iter_modules

from kitsattn.evaluate.metrics.metric import Metric


def _find_metrics() -> tuple[Metric, ...]:
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    found = {value.key: value for module in modules for value in vars(module).values() if isinstance(value, Metric)}
    return tuple(sorted(found.values(), key=lambda metric: metric.order))


LESIONS = "lesions"
"""Stands for the counts of lesions among the keys of metrics."""
METRICS = _find_metrics()
"""All metrics in the order of tables and files."""
