"""Which checkpoints are used where none is named."""

from pathlib import Path

from kitsattn.checkpoint.header import read_header
from kitsattn.errors import KitsattnError
from kitsattn.workspace import Workspace


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
