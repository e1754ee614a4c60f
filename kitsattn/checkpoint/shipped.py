"""The trained networks that come with the package, by name: where they are, and whether they are intact; no torch."""

import re
from os import PathLike, fspath
from pathlib import Path

import kitsattn.weights
from kitsattn.errors import KitsattnError
from kitsattn.files import expand_path, sha256
from kitsattn.words import suggest

NAMES = ("starter",)
"""Names of the shipped models."""

DEFAULT = "starter"
"""The shipped model that is used if no other model is named or trained."""

FOLDER = Path(kitsattn.weights.__file__).parent
"""Holds NAME.safetensors and NAME.md for each shipped model. Tests set it to a folder of their own."""

_CHECKSUM = re.compile(r"^SHA-256: `([0-9a-f]{64})`$", re.MULTILINE)
"""The line of a card that holds the checksum of the weights file."""
NO_WEIGHTS = 64 * "0"
"""Checksum in the card of a model whose weights are not part of this version."""
_REPAIR = "install kitsattn again, or name another model"


def weights_path(name: str) -> Path:
    """Return the weights file of a shipped model."""
    return FOLDER / f"{name}.safetensors"


def card_path(name: str) -> Path:
    """Return the model card of a shipped model."""
    return FOLDER / f"{name}.md"


def read_card(name: str) -> str:
    """Return the text of a model card, in Markdown.

    Raises:
        KitsattnError: If the card is missing.
    """
    try:
        return card_path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the card of the shipped model {name!r} cannot be read ({card_path(name)}): {_REPAIR}"
        raise KitsattnError(msg) from error


def verify(name: str) -> Path:
    """Compare the weights file of a shipped model with the checksum in its card; return the file.

    Raises:
        KitsattnError: If this version has no weights of this name, or the file or its card is missing or damaged.
    """
    path, checksum = weights_path(name), _CHECKSUM.search(read_card(name))
    if checksum is not None and checksum[1] == NO_WEIGHTS:
        msg = (
            f"this version of kitsattn comes without the weights of {name!r}: train a network with `kitsattn train`, "
            "or name one with --model FILE"
        )
        raise KitsattnError(msg)
    if not path.is_file():
        msg = f"the weights of the shipped model {name!r} are missing ({path}): {_REPAIR}"
        raise KitsattnError(msg)
    if checksum is None or sha256(path) != checksum[1]:
        msg = f"the weights of the shipped model {name!r} are damaged ({path} does not match its card): {_REPAIR}"
        raise KitsattnError(msg)
    return path


def find_weights(named: str | PathLike[str]) -> Path:
    """Return the weights file that a user names: a shipped model by its name, or a file by its path.

    A text that is the name of a shipped model means that model, even if there is a file of this name; `./starter` and
    `Path("starter")` mean the file.

    Raises:
        KitsattnError: If a shipped model is missing or damaged, or if a text without a folder and a suffix is neither
            a shipped model nor a file. Other files are not opened here.
    """
    if isinstance(named, str) and named in NAMES:
        return verify(named)
    path = expand_path(named)
    if fspath(named) == path.name and not path.suffix and not path.exists():
        known = ", ".join(NAMES)
        msg = (
            f"there is no model and no file named {path.name!r}{suggest(path.name, NAMES)}: name a .safetensors file "
            f"that `kitsattn train` wrote, or a model that comes with kitsattn ({known})"
        )
        raise KitsattnError(msg)
    return path


def model_name(path: Path) -> str:
    """Return a short name of a weights file without the folders of this machine.

    A shipped model has its name, the best network of a fold RUN/fold_K, another file its file name.
    """
    for name in NAMES:
        if path == weights_path(name):
            return name
    if path.parent.name.startswith("fold_") and path.parents[1].name:
        return f"{path.parents[1].name}/{path.parent.name}"
    return path.name
