"""Which networks predict: the named ones, else the newest run on real scans, else the one that comes with kitsattn."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kitsattn.checkpoint.header import read_header
from kitsattn.checkpoint.shipped import DEFAULT, find_weights
from kitsattn.errors import KitsattnError
from kitsattn.workspace import Workspace

MODEL_VARIABLE = "KITSATTN_MODEL"
"""Names one or more networks, with `os.pathsep` between them."""


@dataclass(frozen=True)
class Choice:
    """The networks that predict.

    Attributes:
        paths: Their weights files.
        passed_over: A network of the newest run, if that run was not used because it was trained on phantoms.
    """

    paths: tuple[Path, ...]
    passed_over: Path | None = None


def choose_models(named: Sequence[str], workspace: Workspace) -> Choice:
    """Return the networks that predict; their probabilities are averaged.

    The first that applies: the networks that are named here, the networks that $KITSATTN_MODEL names, all folds of the
    newest run on real scans in the workspace, the shipped model `starter`. A network that was trained on phantoms alone
    is used only if it is named.

    Args:
        named: Files, or names of shipped models; empty if the user named none.
        workspace: Holds the runs.

    Raises:
        KitsattnError: If a named file does not exist, a checkpoint of a run cannot be read, or the shipped model is
            missing or damaged.
    """
    if not named:
        named = [name for name in os.environ.get(MODEL_VARIABLE, "").split(os.pathsep) if name]
    if named:
        return Choice(tuple(find_weights(name) for name in named))
    runs = workspace.find_runs()
    for paths in runs:
        if not any(read_header(path)[0].provenance.synthetic for path in paths):
            return Choice(tuple(paths))
    passed_over = runs[0][0] if runs else None
    try:
        return Choice((find_weights(DEFAULT),), passed_over)
    except KitsattnError as error:
        if passed_over is None:
            raise
        msg = (
            f"run {passed_over.parents[1].name} is not used, it was trained on synthetic phantoms "
            f"(--model {passed_over} uses it), and {error}"
        )
        raise KitsattnError(msg) from error
