"""Where things are by default: raw data, prepared data, runs and predictions under one folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from kitsattn.errors import KitsattnError
from kitsattn.files import expand_path, visible_entries

ENVIRONMENT_VARIABLE = "KITSATTN_WORKSPACE"
DEFAULT_FOLDER = "kitsattn-workspace"
RAW_DESCRIPTION = "kitsattn-dataset.json"
PREPARED_DESCRIPTION = "dataset.json"
"""Files that describe a data set; both may say that it is `synthetic`."""
PREPARED_FORMAT = "kitsattn-dataset/"
"""How the `format` of a prepared one begins: nnU-Net's raw data sets have a file of the same name."""


@dataclass(frozen=True)
class Workspace:
    """The folder that commands use where no path is given.

    Attributes:
        root: Holds `raw/<dataset>`, `preprocessed/<dataset>`, `runs/<run>/fold_K` and `predictions`.
    """

    root: Path

    @classmethod
    def choose(cls, folder: Path | None = None) -> "Workspace":
        """Return the workspace at `folder`, else at $KITSATTN_WORKSPACE, else at ./kitsattn-workspace."""
        return cls(expand_path(folder or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FOLDER))

    @property
    def raw(self) -> Path:
        """Folder of raw data sets."""
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        """Folder of prepared data sets."""
        return self.root / "preprocessed"

    @property
    def runs(self) -> Path:
        """Folder of training runs."""
        return self.root / "runs"

    @property
    def predictions(self) -> Path:
        """Folder of predictions that were given no path."""
        return self.root / "predictions"

    def raw_dataset(self) -> Path:
        """Return the only raw data set, or the only one of real scans.

        Raises:
            KitsattnError: If there is none, or more than one.
        """
        return _only(
            self.raw,
            _folders(self.raw),
            description=RAW_DESCRIPTION,
            none="holds no data set: fetch one with `kitsattn download kits19`, name a folder (kitsattn "
            "preprocess FOLDER), or make phantoms with `kitsattn demo --data-only`",
            several="name one: kitsattn preprocess FOLDER",
        )

    def preprocessed_dataset(self, name: str | None = None) -> Path:
        """Return the prepared data set `name`, or the only one, or the only one of real scans.

        Raises:
            KitsattnError: If it is not there, or if there are several and none is named.
        """
        finished = [path for path in _folders(self.preprocessed) if (path / PREPARED_DESCRIPTION).is_file()]
        if name is not None:
            folder = self.preprocessed / name
            if folder not in finished:
                known = ", ".join(path.name for path in finished) or "none"
                msg = f"{folder} is not prepared (prepared data sets: {known}): make it with `kitsattn preprocess`"
                raise KitsattnError(msg)
            return folder
        return _only(
            self.preprocessed,
            finished,
            description=PREPARED_DESCRIPTION,
            none="holds no finished data set: make one with `kitsattn preprocess`",
            several="name one with --dataset",
        )

    def find_runs(self) -> list[list[Path]]:
        """Return the `best` checkpoints of all folds of every run, the newest run first; none if nothing was trained.

        A run is as new as its newest `best` checkpoint.
        """
        found = [sorted(run.glob("fold_*/best.safetensors")) for run in _folders(self.runs)]
        trained = [checkpoints for checkpoints in found if checkpoints]
        return sorted(trained, key=lambda files: max(file.stat().st_mtime for file in files), reverse=True)

    def trained_runs(self) -> list[list[Path]]:
        """Return at least one run, as `find_runs` does.

        Raises:
            KitsattnError: If no fold has been trained.
        """
        runs = self.find_runs()
        if not runs:
            msg = f"{self.runs} holds no trained fold: make one with `kitsattn train --fold 0`"
            raise KitsattnError(msg)
        return runs


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in visible_entries(folder) if path.is_dir()]


def _only(folder: Path, found: list[Path], *, description: str, none: str, several: str) -> Path:
    if not found:
        msg = f"{folder} {none}"
        raise KitsattnError(msg)
    # What the demo leaves behind does not stand in the way of real scans.
    real = [path for path in found if not _is_synthetic(path / description)]
    if len(found) > 1 and len(real) != 1:
        msg = f"{folder} holds several data sets ({', '.join(path.name for path in found)}): {several}"
        raise KitsattnError(msg)
    return found[0] if len(found) == 1 else real[0]


def _is_synthetic(description: Path) -> bool:
    from kitsattn.config import read_mapping  # noqa: PLC0415 - `kitsattn --help` does without

    return description.is_file() and bool(read_mapping(description).get("synthetic"))
