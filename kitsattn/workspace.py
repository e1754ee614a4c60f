"""Where things lie by default: raw data, prepared data, runs and predictions under one folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from kitsattn.errors import KitsattnError

ENVIRONMENT_VARIABLE = "KITSATTN_WORKSPACE"
DEFAULT_FOLDER = "kitsattn-workspace"


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
        if folder is None:
            folder = Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FOLDER)
        return cls(folder)

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
        """Return the only raw data set.

        Raises:
            KitsattnError: If there is none, or more than one.
        """
        return _only(
            self.raw,
            none="put a KiTS folder there, name one (kitsattn preprocess FOLDER), or make phantoms with "
            "`kitsattn demo --data-only`",
            several="name one: kitsattn preprocess FOLDER",
        )

    def preprocessed_dataset(self, name: str | None = None) -> Path:
        """Return the prepared data set `name`, or the only one.

        Raises:
            KitsattnError: If it is not there, or if there are several and none is named.
        """
        if name is not None:
            folder = self.preprocessed / name
            if not folder.is_dir():
                known = ", ".join(path.name for path in _folders(self.preprocessed)) or "none"
                msg = f"{folder} does not exist (prepared data sets: {known}): make it with `kitsattn preprocess`"
                raise KitsattnError(msg)
            return folder
        return _only(
            self.preprocessed,
            none="make one with `kitsattn preprocess`",
            several="name one with --dataset",
        )

    def best_checkpoints(self, run: str | None = None) -> list[Path]:
        """Return the `best` checkpoints of all folds of `run`, or of the newest run.

        A run is as new as its newest `best` checkpoint.

        Raises:
            KitsattnError: If there is no such run, or it has no checkpoint yet.
        """
        names = [run] if run is not None else [path.name for path in _folders(self.runs)]
        found = {name: sorted((self.runs / name).glob("fold_*/best.safetensors")) for name in names}
        trained = {name: files for name, files in found.items() if files}
        if not trained:
            where = self.runs if run is None else self.runs / run
            msg = f"{where} holds no trained fold: make one with `kitsattn train --fold 0`, or name --model FILE"
            raise KitsattnError(msg)
        return max(trained.values(), key=lambda files: max(file.stat().st_mtime for file in files))


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _only(folder: Path, *, none: str, several: str) -> Path:
    found = _folders(folder)
    if not found:
        msg = f"{folder} holds no data set: {none}"
        raise KitsattnError(msg)
    if len(found) > 1:
        msg = f"{folder} holds several data sets ({', '.join(path.name for path in found)}): {several}"
        raise KitsattnError(msg)
    return found[0]
