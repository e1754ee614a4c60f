"""The starter: the small trained network that ships with the package."""

from pathlib import Path

from kitsattn.errors import KitsattnError

STARTER = "starter"
"""Its name."""

_FOLDER = Path(__file__).parents[1] / "weights"


def starter_model() -> Path:
    """Return the checkpoint of the starter.

    Raises:
        KitsattnError: If the file is missing.
    """
    path = _FOLDER / f"{STARTER}.safetensors"
    if not path.is_file():
        msg = f"{path} is missing: install kitsattn again, this file is part of the package"
        raise KitsattnError(msg)
    return path
