"""The KiTS19 data set, fetched from where its authors publish it, into the layout that `preprocess` reads."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event

import httpx

from kitsattn.datasets.dataset import DESCRIPTION_NAME
from kitsattn.datasets.fetch import NotFetchedError, Patience, fetch_gzip
from kitsattn.datasets.kits import CITATIONS, IMAGE_NAME, LABELS_NAME, LICENCE
from kitsattn.errors import KitsattnError
from kitsattn.files import read_json, sole_writer, write_json
from kitsattn.jobs import Progress, silent
from kitsattn.labels import KITS19_LABELS

NAME = "kits19"
IMAGES_URL = "https://huggingface.co/datasets/neheller/KiTS-Challenge-Imaging/resolve/main/images"
# Not raw.githubusercontent.com: this address leads on to the content also where a file is kept in Git LFS.
LABELS_URL = "https://github.com/neheller/kits19/raw/master/data"
CASES = range(300)
LABELLED_CASES = range(210)

_CASES_PART = re.compile(r"\s*([0-9]{1,5})\s*(?:-\s*([0-9]{1,5})\s*)?")
_HOPELESS = 8
"""So many files in a row that fail, without being absent, mean that the others would as well."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """One file of the data set.

    Attributes:
        url: Where it is published.
        path: Where it belongs.
    """

    url: str
    path: Path


@dataclass(frozen=True)
class Failure:
    """A file that could not be fetched.

    Attributes:
        file: The file.
        reason: What happened, in one line that names the address.
    """

    file: RemoteFile
    reason: str


@dataclass(frozen=True)
class Download:
    """What a download brought.

    Attributes:
        folder: Of the data set.
        fetched: Files that are new.
        present: Files that were there already.
        failures: Files that could not be fetched.
    """

    folder: Path
    fetched: tuple[Path, ...]
    present: tuple[Path, ...]
    failures: tuple[Failure, ...]


def parse_cases(text: str) -> tuple[int, ...]:
    """Read case numbers such as `0-9,15,200-209`.

    Returns:
        The numbers in ascending order, each once.

    Raises:
        KitsattnError: If it is not a list of numbers and ranges, or KiTS19 does not have such a case.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = _CASES_PART.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            msg = f"{part.strip()!r} is not a case number or a range of them: write for example 0-9,15,200-209"
            raise KitsattnError(msg)
        if last not in CASES:
            msg = (
                f"there is no case {last}: KiTS19 has cases 0 to {CASES[-1]}, those to {LABELLED_CASES[-1]} with labels"
            )
            raise KitsattnError(msg)
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def kits19_files(
    folder: Path, cases: Sequence[int] = LABELLED_CASES, *, images_url: str = IMAGES_URL, labels_url: str = LABELS_URL
) -> list[RemoteFile]:
    """List the files of KiTS19 cases; those after case 209 have no label map.

    Args:
        folder: Where the cases belong.
        cases: Their numbers.
        images_url: Holds `case_NNNNN.nii.gz`.
        labels_url: Holds `case_NNNNN/segmentation.nii.gz`.

    Returns:
        The files, a case's label map before its image: a case without a label map would count as a test case.

    Raises:
        KitsattnError: If an address is not plain http(s).
    """
    images_url, labels_url = _folder_url(images_url), _folder_url(labels_url)
    files = []
    for number in cases:
        case = f"case_{number:05}"
        if number in LABELLED_CASES:
            files.append(RemoteFile(f"{labels_url}/{case}/{LABELS_NAME}", folder / case / LABELS_NAME))
        files.append(RemoteFile(f"{images_url}/{case}.nii.gz", folder / case / IMAGE_NAME))
    return files


def download_kits19(
    folder: Path,
    cases: Sequence[int] = LABELLED_CASES,
    *,
    images_url: str = IMAGES_URL,
    labels_url: str = LABELS_URL,
    parallel: int = 4,
    patience: Patience | None = None,
    progress: Progress = silent,
) -> Download:
    """Fetch KiTS19 cases and a description of the data set; files that are there already are left alone.

    A file that cannot be fetched does not hold up the others.

    Args:
        folder: Gets `case_NNNNN/imaging.nii.gz`, `case_NNNNN/segmentation.nii.gz` and `kitsattn-dataset.json`.
        cases: Case numbers, 0 to 299.
        images_url: Holds `case_NNNNN.nii.gz`.
        labels_url: Holds `case_NNNNN/segmentation.nii.gz`.
        parallel: Files that are fetched at a time.
        patience: How long to bear with a server; None is right for servers on the internet.
        progress: Called with the number of files, and for each file with its megabytes.

    Raises:
        KitsattnError: If an address is wrong, the folder cannot be written or is being filled by another download,
            or if so many files fail in a row that the rest is not tried.
    """
    files = kits19_files(folder, cases, images_url=images_url, labels_url=labels_url)
    with sole_writer(folder, "kitsattn download"):
        _describe(folder / DESCRIPTION_NAME)
        missing = [file for file in files if not file.path.exists()]
        failures = _fetch_all(missing, parallel=parallel, patience=patience or Patience(), progress=progress)
    failed = {failure.file for failure in failures}
    return Download(
        folder=folder,
        fetched=tuple(file.path for file in missing if file not in failed),
        present=tuple(file.path for file in files if file not in missing),
        failures=tuple(failures),
    )


def _folder_url(url: str) -> str:
    try:
        parts = httpx.URL(url)
        plain = (
            parts.scheme in {"http", "https"} and parts.host and not (parts.userinfo or parts.query or parts.fragment)
        )
    except httpx.InvalidURL:
        plain = False
    if not plain:
        msg = f"{url!r} is not an address to download from: write http(s)://HOST/FOLDER, without a password, ? or #"
        raise KitsattnError(msg)
    return url.rstrip("/")


def _describe(path: Path) -> None:
    description = {"name": NAME, "labels": dict(KITS19_LABELS), "licence": LICENCE, "citation": CITATIONS[NAME]}
    if not path.exists():
        write_json(path, description)
    elif read_json(path) != description:
        _log.info("%s says something else, and is left as it is", path)


def _fetch_all(files: Sequence[RemoteFile], *, parallel: int, patience: Patience, progress: Progress) -> list[Failure]:
    stopped = Event()
    failures: list[Failure] = []
    in_a_row = 0
    progress("files", 0, len(files))
    # The pool's threads end with the program: a connection that stalls does not hold up Ctrl-C.
    with ThreadPool(parallel) as pool:
        fetch = partial(_fetch, patience=patience, stopped=stopped, progress=progress)
        try:
            for done, (file, error) in enumerate(pool.imap_unordered(fetch, files), 1):
                progress("files", done, len(files))
                if error is None:
                    in_a_row = 0
                    continue
                _log.warning("%s", error)
                failures.append(Failure(file, str(error)))
                in_a_row += not error.absent
                if in_a_row == _HOPELESS:
                    msg = (
                        f"{in_a_row} files in a row could not be fetched, so the rest is not tried: check the network "
                        "and its proxy (HTTPS_PROXY), name a mirror (--images-url, --labels-url), or try again later"
                    )
                    raise KitsattnError(msg)
        finally:
            stopped.set()
    return failures


def _fetch(
    file: RemoteFile, *, patience: Patience, stopped: Event, progress: Progress
) -> tuple[RemoteFile, NotFetchedError | None]:
    label = f"{file.path.parent.name}/{file.path.name} (MB)"

    def megabytes(received: int, size: int) -> None:
        progress(label, received // 10**6, -(-size // 10**6))

    try:
        fetch_gzip(file.url, file.path, patience=patience, stopped=stopped, progress=megabytes)
    except NotFetchedError as error:
        return file, error
    finally:
        progress(label, 1, 1)  # whatever has become of it, nothing more comes
    return file, None
