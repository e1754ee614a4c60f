"""Which checkpoints are used where none is named."""

from pathlib import Path

from kitsattn.checkpoint.header import read_header
from kitsattn.errors import KitsattnError
from kitsattn.workspace import Workspace


def newest_models(workspace: Workspace) -> list[Path]:
    """Return the best checkpoints of all folds of the newest run.

    Raises:
        KitsattnError: If there is none, or if it was trained on synthetic phantoms: such weights are never chosen
            silently for a real scan.
    """
    paths = workspace.best_checkpoints()
    synthetic = [path for path in paths if read_header(path)[0].provenance.synthetic]
    if synthetic:
        msg = (
            f"the newest run was trained on synthetic phantoms and is not used unasked: name it with "
            f"--model {synthetic[0]}, or train on real scans"
        )
        raise KitsattnError(msg)
    return paths
