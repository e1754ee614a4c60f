"""Which checkpoints are used where none is named."""

from pathlib import Path

from kitsattn.checkpoint.header import read_header
from kitsattn.errors import KitsattnError
from kitsattn.workspace import Workspace

STARTER = "starter"
"""Name of the small network that ships with the package."""

_WEIGHTS = Path(__file__).parents[1] / "weights"


def newest_models(workspace: Workspace) -> list[Path]:
    """Return the best checkpoints of all folds of the newest run on real scans.

    Raises:
        KitsattnError: If there is none. Weights trained on synthetic phantoms are never chosen for a real scan: they
            have to be named.
    """
    runs = workspace.trained_runs()
    for paths in runs:
        if not any(read_header(path)[0].provenance.synthetic for path in paths):
            return paths
    msg = (
        "every run was trained on synthetic phantoms, and such weights are not used unasked: name them with "
        f"--model {runs[0][0]}, or train on real scans"
    )
    raise KitsattnError(msg)


def starter_model() -> Path:
    """Return the checkpoint of the small network that ships with the package.

    Raises:
        KitsattnError: If the file is missing.
    """
    path = _WEIGHTS / f"{STARTER}.safetensors"
    if not path.is_file():
        msg = f"{path} is missing: install kitsattn again, this file is part of the package"
        raise KitsattnError(msg)
    return path
