"""The header of a checkpoint, read and written without torch.

A checkpoint is a safetensors file: eight bytes with the length of a JSON header (little endian), the header, the
tensors. The header's `__metadata__` holds `{"format": "kitsattn/1", "kitsattn": "<JSON of Header>"}`. Tensors are
named `model/<parameter>` and, in resumable files, `training/<…>`.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kitsattn.config import from_json, to_json
from kitsattn.errors import KitsattnError
from kitsattn.words import plural

TTA = Literal["none", "sides", "flips"]
"""Test-time augmentation: none, the mean with the left-right mirror image, or the mean of all four mirror images."""

FORMAT = "kitsattn/1"
MODEL_PREFIX = "model/"
TRAINING_PREFIX = "training/"

_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True, kw_only=True)
class TrainingSource:
    """One collection of data that a network was trained on.

    Attributes:
        name: Name of the collection.
        count: Number of items that were used.
        unit: What is counted, in the plural, such as "label maps" or "scans".
        licence: Licence of the collection.
        citation: How to cite it.
    """

    name: str
    count: int
    unit: str
    licence: str
    citation: str


@dataclass(frozen=True, kw_only=True)
class TestScore:
    """Mean Dice of one region on real scans that the network was not trained on.

    Attributes:
        data: Name of the scans.
        region: Name of the region.
        dice: Mean Dice over the patients, in [0, 1].
        low: Lower end of the 95 % interval of the mean; None if there are too few patients.
        high: Upper end.
        patients: Number of patients.
    """

    data: str
    region: str
    dice: float
    low: float | None = None
    high: float | None = None
    patients: int

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one of them is out of range.
        """
        if not 0 <= self.dice <= 1:
            msg = f"dice must be in [0, 1], got {self.dice}"
            raise ValueError(msg)
        if self.patients < 1:
            msg = f"patients must be 1 or more, got {self.patients}"
            raise ValueError(msg)
        if (self.low is None) != (self.high is None):
            msg = f"low and high must be given together, got {self.low} and {self.high}"
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a network comes from.

    Attributes:
        kitsattn: Version of this package.
        torch: Version of PyTorch.
        dataset: Name of the training data.
        synthetic: Whether these were phantoms; such weights are never chosen silently for a real scan.
        licence: Licence of the training data.
        citation: How to cite the training data.
        recipe: Name of the recipe.
        precision: Precision of training: fp32, bf16 or fp16.
        fold: Fold that was held out.
        folds: Number of folds.
        seed: Seed of the run.
        epoch: Finished epochs.
        scores: Validation Dice by region key, at this epoch.
        created: Time of writing, ISO 8601 in UTC.
        sources: The collections of data that the network was trained on, if they are listed one by one.
        hours: Hours of training; None if they are unknown.
        tests: Dice on real scans that were not trained on.
    """

    kitsattn: str
    torch: str
    dataset: str
    synthetic: bool
    licence: str
    citation: str
    recipe: str
    precision: str
    fold: int
    folds: int
    seed: int
    epoch: int
    scores: Mapping[str, float] = field(default_factory=dict)
    created: str
    sources: tuple[TrainingSource, ...] = ()
    hours: float | None = None
    tests: tuple[TestScore, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a checkpoint says of itself.

    Attributes:
        model: Registered name of the network.
        config: Its settings, as JSON values; checked by the network's settings class.
        plan: The preprocessing plan, as JSON values; checked by `preprocess.plan.Plan`.
        labels: Class name to value, background included.
        provenance: Where the weights come from.
        tta: Test-time augmentation that the network was validated with, and predicts with if none is asked for.
        training: State of the training that is not tensors, as JSON text; None in files that cannot be resumed.
    """

    model: str
    config: Mapping[str, Any]
    plan: Mapping[str, Any]
    labels: Mapping[str, int]
    provenance: Provenance
    tta: TTA = "none"
    training: str | None = None


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a stored tensor, without its values."""

    dtype: str
    shape: tuple[int, ...]


def describe_quality(provenance: Provenance) -> str:
    """Return one line: how accurate a network is, and under which conditions it may be used.

    For example `Dice kidney 0.93, tumour 0.70 (KiTS19, 5 patients); CC BY-NC-SA 4.0; research use only`.
    """
    licence = "licence unknown" if provenance.licence in {"", "unknown"} else provenance.licence
    return f"{describe_accuracy(provenance)}; {licence}; research use only"


def describe_accuracy(provenance: Provenance) -> str:
    """Return one line with the test scores of a network; without them, with the validation Dice and a remark."""
    parts = ["trained on synthetic phantoms"] if provenance.synthetic else []
    groups: dict[str, list[str]] = {}
    for score in provenance.tests:
        data = f"{score.data}, {plural(score.patients, 'patient')}"
        groups.setdefault(data, []).append(f"{score.region} {score.dice:.2f}")
    parts += [f"Dice {', '.join(values)} ({data})" for data, values in groups.items()]
    if not groups and provenance.scores:
        values = [f"{region.replace('_', ' ')} {dice:.2f}" for region, dice in provenance.scores.items()]
        parts.append(f"validation Dice {', '.join(values)} ({provenance.dataset})")
    if not groups:
        parts.append("no test scores")
    return "; ".join(parts)


def to_metadata(header: Header) -> dict[str, str]:
    """Return the `__metadata__` of the safetensors file."""
    return {"format": FORMAT, "kitsattn": json.dumps(to_json(header))}


def read_header(path: Path) -> tuple[Header, dict[str, TensorInfo]]:
    """Read the header of a checkpoint, without its tensors.

    Returns:
        The header, and type and shape of every tensor by name.

    Raises:
        KitsattnError: If the file is missing, no checkpoint of this format, of unknown keys, or cut short.
    """
    content, data_size = _read_safetensors_header(path)
    metadata = content.pop("__metadata__", None)
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != FORMAT or "kitsattn" not in metadata:
        wrong = "names no format" if found is None else f"has the format {found!r}"
        msg = f"{path} {wrong}, this version reads {FORMAT!r}: name a checkpoint that `kitsattn train` wrote"
        raise KitsattnError(msg)
    try:
        tensors = {name: TensorInfo(str(info["dtype"]), tuple(info["shape"])) for name, info in content.items()}
        end = max((info["data_offsets"][1] for info in content.values()), default=0)
        parsed = json.loads(metadata["kitsattn"])
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise _not_a_checkpoint(path) from error
    if data_size < end:
        msg = f"{path} is cut short ({end - data_size} bytes are missing): copy it again, or train again with --restart"
        raise KitsattnError(msg)
    return from_json(Header, parsed, str(path)), tensors


def _read_safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the parsed header of a safetensors file and the number of bytes behind it."""
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH.size)
            length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else _LONGEST_HEADER
            if length >= _LONGEST_HEADER:
                raise _not_a_checkpoint(path)
            content = json.loads(file.read(length))
        if not isinstance(content, dict):
            raise _not_a_checkpoint(path)
        return content, path.stat().st_size - _LENGTH.size - length
    except FileNotFoundError as error:
        msg = f"{path} does not exist: name a checkpoint, or train one with `kitsattn train --fold 0`"
        raise KitsattnError(msg) from error
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror or error}): name a .safetensors file that you may read"
        raise KitsattnError(msg) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _not_a_checkpoint(path) from error


def _not_a_checkpoint(path: Path) -> KitsattnError:
    return KitsattnError(f"{path} is not a kitsattn checkpoint: name a .safetensors file that `kitsattn train` wrote")
