"""Prepared data sets on disk: one JSON for all, and for each case a folder with image, labels, foreground and a JSON.

`<folder>/dataset.json` names the cases and their sources; it is written last, so a folder without it is unfinished.
`<folder>/cases/<id>/` takes its name when all in it is written: a case is there as a whole or not at all. Its
`image.b2nd` is int16 in HU, clipped and resampled but not yet normalised: whole HU are the precision of the scanner,
take 30 % less space than normalised float16 and are read twice as fast (0.16 against 0.23 MB and 0.3 against 0.6 ms a
slice of 416 x 554). `labels.b2nd` are the labels, `locations.b2nd` the foreground voxels that patches are centred on,
`case.json` says what the case was prepared from and for.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from kitsattn.config import from_json, to_json
from kitsattn.errors import KitsattnError
from kitsattn.files import atomic_folder, read_json, write_json
from kitsattn.labels import BACKGROUND
from kitsattn.preprocess.case import Placement, PreparedScan, prepare_labels
from kitsattn.preprocess.intensity import normalise
from kitsattn.preprocess.plan import Plan, Target
from kitsattn.volume.geometry import Geometry, Shape, Triple
from kitsattn.workspace import PREPARED_DESCRIPTION, PREPARED_FORMAT

DATASET_FORMAT = f"{PREPARED_FORMAT}1"
CASE_FORMAT = "kitsattn-case/1"
DATASET_FILE = PREPARED_DESCRIPTION
CASES_FOLDER = "cases"

_IMAGE, _LABELS, _LOCATIONS, RECORD_FILE = "image.b2nd", "labels.b2nd", "locations.b2nd", "case.json"

_CHUNK = 8
"""Slices in one chunk of a file. Each slice is a block of its own, so that reading one unpacks no other."""

# One thread: the processes that prepare and read cases share the cores already.
_PACKING = {"cparams": {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}, "contiguous": True}
_UNPACKING = {"nthreads": 1}

_LOCATIONS_AT_LEAST = 10_000
_LOCATIONS_PART = 0.01
_SEED = 1234


@dataclass(frozen=True)
class CaseSource:
    """Where a case comes from.

    Attributes:
        case_id: The case.
        image: Its scan.
        labels: Its label map.
        image_sha256: Checksum of the scan's file.
        labels_sha256: Checksum of the label map's file.
        assumed_hu: Whether the scan's values were taken as HU without a check.
    """

    case_id: str
    image: Path
    labels: Path
    image_sha256: str
    labels_sha256: str
    assumed_hu: bool = False


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """What `cases/<id>/case.json` stores about a finished case.

    Attributes:
        format: Tag of the format.
        case_id: The case.
        geometry: Of the scan.
        placement: How the prepared grid is in it.
        target: Spacing and window it was prepared for.
        labels: Class name to label value.
        image_sha256: Checksum of the scan's file.
        labels_sha256: Checksum of the label map's file.
        sizes: Name of each of its other files to its bytes.
        assumed_hu: Whether the scan's values were taken as HU without a check.
    """

    format: str
    case_id: str
    geometry: Geometry
    placement: Placement
    target: Target
    labels: Mapping[str, int]
    image_sha256: str
    labels_sha256: str
    sizes: Mapping[str, int]
    assumed_hu: bool = False

    def __post_init__(self) -> None:
        """Check the format."""
        if self.format != CASE_FORMAT:
            msg = f"format {self.format!r} is not {CASE_FORMAT!r}: run `kitsattn preprocess` again"
            raise ValueError(msg)


@dataclass(frozen=True)
class StoredCase:
    """A prepared case on disk; files are opened when they are read, so it can be sent to other processes.

    Attributes:
        folder: Where its files are.
        record: What is known of it.
        mean_hu: What is subtracted when slices are read, from the plan.
        std_hu: What they are divided by then.
    """

    folder: Path
    record: CaseRecord
    mean_hu: float
    std_hu: float

    @property
    def case_id(self) -> str:
        """The case's name."""
        return self.record.case_id

    @property
    def file(self) -> Path:
        """The JSON that describes it."""
        return case_folder(self.folder, self.case_id) / RECORD_FILE

    @property
    def shape(self) -> Shape:
        """Shape of image and labels, (z, height, width)."""
        return self.record.placement.scan_shape[0], *self.record.placement.prepared_shape

    @property
    def spacing_mm(self) -> Triple:
        """Spacing of the prepared grid, (z, y, x)."""
        return self.record.geometry.spacing_mm[0], *self.record.target.spacing_mm

    def read_slices(self, indices: Sequence[int] | NDArray[np.intp]) -> NDArray[np.float32]:
        """Read slices of the image, in any order and more than once if asked.

        Returns:
            (number of indices, height, width), normalised.
        """
        wanted, order = np.unique(np.asarray(indices), return_inverse=True)
        with _opened(case_folder(self.folder, self.case_id) / _IMAGE) as image:
            hu = np.stack([image[int(index)] for index in wanted]).astype(np.float32)
        return normalise(hu, self.mean_hu, self.std_hu)[order]

    @contextmanager
    def opened(self) -> Iterator[tuple[Any, Any]]:
        """Open the image in HU, int16, and the labels, uint8, both (z, height, width).

        They are stored arrays: indexing one reads and unpacks what is asked for.
        """
        with (
            _opened(case_folder(self.folder, self.case_id) / _IMAGE) as image,
            _opened(case_folder(self.folder, self.case_id) / _LABELS) as labels,
        ):
            yield image, labels

    def read_labels(self, index: int) -> NDArray[np.uint8]:
        """Read one slice of the label map, (height, width)."""
        with _opened(case_folder(self.folder, self.case_id) / _LABELS) as stored:
            labels: NDArray[np.uint8] = stored[int(index)]
        return labels

    @cached_property
    def locations(self) -> Mapping[int, NDArray[np.int32]]:
        """Foreground class to some of its voxels, (n, 3) as z, y, x on the prepared grid; absent ones are left out."""
        with _opened(case_folder(self.folder, self.case_id) / _LOCATIONS) as stored:
            rows: NDArray[np.int32] = stored[:]
        return {int(value): rows[rows[:, 0] == value, 1:] for value in np.unique(rows[:, 0]) if value != BACKGROUND}


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """A prepared data set.

    Attributes:
        folder: Where it is.
        name: What the data set is called.
        synthetic: Whether its scans were painted rather than measured.
        licence: Under which the data may be used.
        citation: What to cite for the data.
        labels: Class name to label value.
        plan: How its cases were prepared.
        sources: Case to where it comes from, in the order of the data set.
    """

    folder: Path
    name: str
    synthetic: bool
    licence: str
    citation: str
    labels: Mapping[str, int]
    plan: Plan
    sources: Mapping[str, CaseSource]

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases, in the order of the data set."""
        return tuple(self.sources)

    def open_case(self, case_id: str) -> StoredCase:
        """Open a case.

        Raises:
            KitsattnError: If it is not there, of another format, or was prepared with another plan or from other files.
        """
        record = read_record(self.folder, case_id)
        if not _is_of(record, self.sources[case_id], self.plan.target, self.labels):
            msg = f"{self.folder}: {case_id} was prepared with another plan or other files: run `kitsattn preprocess`"
            raise KitsattnError(msg)
        return StoredCase(self.folder, record, self.plan.mean_hu, self.plan.std_hu)


def open_dataset(folder: Path) -> PreparedDataset:
    """Open a prepared data set.

    Raises:
        KitsattnError: If it is not there, unfinished, or of another format.
    """
    file = folder / DATASET_FILE
    if not file.is_file():
        msg = f"{folder} holds no finished data set ({DATASET_FILE} is missing): make it with `kitsattn preprocess`"
        raise KitsattnError(msg)
    content = read_json(file)
    if not isinstance(content, dict) or content.pop("format", None) != DATASET_FORMAT:
        msg = f"{file} is not in the format {DATASET_FORMAT}: run `kitsattn preprocess` again"
        raise KitsattnError(msg)
    return from_json(PreparedDataset, {**content, "folder": str(folder)}, str(file))


def save_dataset(dataset: PreparedDataset) -> None:
    """Write `dataset.json`, which marks the data set as finished."""
    content = to_json(dataset)
    del content["folder"]
    write_json(dataset.folder / DATASET_FILE, {"format": DATASET_FORMAT, **content})


def read_record(folder: Path, case_id: str) -> CaseRecord:
    """Read what is known of a finished case of the prepared data set in `folder`.

    Raises:
        KitsattnError: If it is not there, unfinished, or of another format.
    """
    file = case_folder(folder, case_id) / RECORD_FILE
    if not file.is_file():
        msg = (
            f"{folder} holds no finished case {case_id}: run `kitsattn preprocess` again; it continues where it stopped"
        )
        raise KitsattnError(msg)
    return from_json(CaseRecord, read_json(file), str(file))


def save_case(
    folder: Path, source: CaseSource, prepared: PreparedScan, labels: NDArray[np.uint8], classes: Mapping[str, int]
) -> CaseRecord:
    """Prepare a case and write it, as a whole: an earlier one of its name stays until then.

    Slices are prepared and packed a chunk at a time, so that the prepared case is never in memory as a whole.

    Args:
        folder: Of the prepared data set.
        source: Where the case comes from.
        prepared: Its scan.
        labels: Its label map on the scan's grid, (z, y, x).
        classes: Class name to label value.

    Raises:
        KitsattnError: If it cannot be written.
    """
    depth, height, width = prepared.shape
    layout = {"chunks": (min(_CHUNK, depth), height, width), "blocks": (1, height, width), **_PACKING}
    image = blosc2.empty(prepared.shape, dtype=np.int16, **layout)
    label_map = blosc2.empty(prepared.shape, dtype=np.uint8, **layout)
    foreground: dict[int, list[NDArray[np.intp]]] = {}
    for start in range(0, depth, _CHUNK):
        stop = min(start + _CHUNK, depth)
        image[start:stop] = np.rint(prepared.hu(start, stop)).astype(np.int16)
        block = np.ascontiguousarray(prepare_labels(labels[start:stop], prepared.placement))
        label_map[start:stop] = block
        voxels = np.flatnonzero(block)
        values = block.ravel()[voxels]
        for value in np.unique(values):
            foreground.setdefault(int(value), []).append(voxels[values == value] + start * height * width)
    locations = draw_locations(
        {value: np.concatenate(parts) for value, parts in sorted(foreground.items())}, prepared.shape
    )
    # Packed in memory first: a full disk is then an OSError of ours, while blosc2 would name no reason.
    packed = {_IMAGE: image, _LABELS: label_map, _LOCATIONS: blosc2.asarray(locations, **_PACKING)}
    with atomic_folder(case_folder(folder, source.case_id)) as unfinished:
        sizes = {name: (unfinished / name).write_bytes(array.to_cframe()) for name, array in packed.items()}
        record = CaseRecord(
            format=CASE_FORMAT,
            case_id=source.case_id,
            geometry=prepared.scan.geometry,
            placement=prepared.placement,
            target=prepared.target,
            labels=classes,
            image_sha256=source.image_sha256,
            labels_sha256=source.labels_sha256,
            sizes=sizes,
            assumed_hu=source.assumed_hu,
        )
        write_json(unfinished / RECORD_FILE, to_json(record))
    return record


def is_finished(folder: Path, source: CaseSource, target: Target, classes: Mapping[str, int]) -> bool:
    """Tell whether a case was prepared from the same files, read alike, for the same target and classes, as a whole."""
    place = case_folder(folder, source.case_id)
    try:
        record = read_record(folder, source.case_id)
        whole = all((place / name).stat().st_size == size for name, size in record.sizes.items())
    except (KitsattnError, OSError):
        return False
    return whole and _is_of(record, source, target, classes)


def draw_locations(voxels: Mapping[int, NDArray[np.intp]], shape: Shape) -> NDArray[np.int32]:
    """Draw voxels of each foreground class: 10,000 or 1 %, whichever is more, or all if there are fewer.

    The numbers are nnU-Net's. The draw is seeded, so that a case gives the same voxels every time.

    Args:
        voxels: Class value to all its voxels, as ascending indices into the flattened case.
        shape: Of the case, (z, height, width).

    Returns:
        (n, 4), columns class, z, y, x, sorted by class.
    """
    drawn = [np.empty((0, 4), np.int32)]
    for value, places in voxels.items():
        wanted = max(min(_LOCATIONS_AT_LEAST, places.size), math.ceil(_LOCATIONS_PART * places.size))
        chosen = np.sort(np.random.default_rng([_SEED, value]).choice(places, wanted, replace=False))
        rows = np.stack(np.unravel_index(chosen, shape), axis=1)
        drawn.append(np.insert(rows, 0, value, axis=1).astype(np.int32))
    return np.concatenate(drawn)


def case_folder(folder: Path, case_id: str) -> Path:
    """Return the folder of a case of the prepared data set in `folder`."""
    return folder / CASES_FOLDER / case_id


def _is_of(record: CaseRecord, source: CaseSource, target: Target, classes: Mapping[str, int]) -> bool:
    same_files = (record.image_sha256, record.labels_sha256) == (source.image_sha256, source.labels_sha256)
    same_files = same_files and record.assumed_hu == source.assumed_hu
    return same_files and record.target == target and record.labels == classes


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file for reading; damage may show only while it is read."""
    try:
        yield blosc2.open(str(path), mode="r", dparams=_UNPACKING)
    except (MemoryError, OSError, RuntimeError) as error:  # blosc2 takes damage for a great size, too
        msg = f"{path} is missing or damaged: run `kitsattn preprocess --restart` to prepare the data set again"
        raise KitsattnError(msg) from error
