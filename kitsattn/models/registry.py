"""Networks by name: a name is a settings class, its values, and the function that builds the network from them."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from torch import nn

from kitsattn.config import from_json
from kitsattn.errors import KitsattnError
from kitsattn.words import suggest


class ModelConfig(Protocol):
    """What every network's settings have, because batches and labels depend on it."""

    @property
    def slices(self) -> int:
        """Slices in a slab; the centre one is predicted."""

    @property
    def slab_step_mm(self) -> float | None:
        """Distance between the slices of a slab in mm; None takes adjacent slices."""

    @property
    def classes(self) -> int:
        """Channels of the output, background included."""


@dataclass(frozen=True)
class ModelEntry:
    """One registered network.

    Attributes:
        name: What people type and checkpoints store; it survives renames of the code.
        config: The settings behind the name; an instance of the network's settings class.
        build: Makes the network from settings of that class.
    """

    name: str
    config: ModelConfig
    build: Callable[[Any], nn.Module]

    def read_config(self, content: object, where: str) -> ModelConfig:
        """Read settings from parsed JSON.

        Raises:
            KitsattnError: If a key is unknown or a value is refused.
        """
        return from_json(type(self.config), content, where)


PLUGINS = "kitsattn.models"
"""Entry points of this group are modules of other packages that register networks when they are imported."""

_ENTRIES: dict[str, ModelEntry] = {}
_log = logging.getLogger(__name__)


def register_model(name: str, config: ModelConfig, build: Callable[[Any], nn.Module]) -> None:
    """Register a network.

    Raises:
        ValueError: If the name is taken.
    """
    if name in _ENTRIES:
        msg = f"a model named {name!r} is registered already"
        raise ValueError(msg)
    _ENTRIES[name] = ModelEntry(name, config, build)


@functools.cache
def load_plugins() -> None:
    """Import the modules of other packages that register networks; one that fails is named and left out."""
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other networks work
            owner = plugin.dist.name if plugin.dist else plugin.value
            _log.warning("the networks of %s cannot be used: %s: %s", owner, type(error).__name__, error)


def model_names() -> list[str]:
    """Return the names of all networks, in the order of registration."""
    load_plugins()
    return list(_ENTRIES)


def model_entry(name: str) -> ModelEntry:
    """Return the network of a name.

    Raises:
        KitsattnError: If there is none.
    """
    load_plugins()
    if name not in _ENTRIES:
        msg = f"there is no model named {name!r}{suggest(name, _ENTRIES)}: choose one of {', '.join(_ENTRIES)}"
        raise KitsattnError(msg)
    return _ENTRIES[name]


def build_model(name: str, config: ModelConfig | None = None) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        name: A registered name.
        config: Its settings; None takes those behind the name.

    Raises:
        KitsattnError: If the name is unknown.
    """
    entry = model_entry(name)
    return entry.build(config or entry.config)
