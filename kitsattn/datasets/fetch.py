"""One gzip file over HTTP: resumed where it stopped, and checked before it gets its name."""

import email.utils
import gzip
import itertools
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from threading import Event

import httpx

from kitsattn.config import read_settings, to_json
from kitsattn.errors import KitsattnError
from kitsattn.files import rename_durably, unwritable, write_json
from kitsattn.version import __version__

_CHUNK_BYTES = 1 << 16
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that another try may change; a cut connection is the other such case."""

_RANGE_STATUS = frozenset({HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE})

_GZIP_START = b"\x1f\x8b"
_LFS_START = b"version https://git-lfs.github.com/"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to bear with a server.

    Attributes:
        tries: Failures in a row without a new byte in between, after which a file is given up.
        first_wait_s: Pause after the first of them, in seconds; it doubles with each further one.
        longest_wait_s: The longest pause, in seconds, also where the server asks for more (Retry-After).
        timeout_s: How long to wait for a connection, and for the next bytes, in seconds.
    """

    tries: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 600.0
    timeout_s: float = 60.0


class NotFetchedError(KitsattnError):
    """One file could not be fetched, which says nothing of the next.

    Attributes:
        absent: Whether the server has no such file, rather than something being wrong.
    """

    def __init__(self, message: str, *, absent: bool = False) -> None:
        super().__init__(message)
        self.absent = absent


class StoppedError(Exception):
    """Fetching was stopped from outside; what has come so far is kept."""


def fetch_gzip(
    url: str,
    path: Path,
    *,
    patience: Patience,
    stopped: Event,
    progress: Callable[[int, int], None],
) -> None:
    """Fetch a gzip file to `path`; only a whole one gets that name.

    Until then it is `.NAME.part`, and `.NAME.part.json` says of which version on the server it is a part. It is
    continued, by this call after a failure or by a later one, only where the server says that this version is still
    there: ETag, size and position must agree. Otherwise the download starts again. Proxies and certificates are taken
    from the usual environment variables (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).

    Args:
        url: Where the file is.
        path: The final path. Its folder is made if it is missing.
        patience: How long to bear with the server.
        stopped: Once it is set, nothing more is written.
        progress: Called with the bytes received and the bytes in all, where the server tells them.

    Raises:
        NotFetchedError: If the file does not exist, is not a gzip file, is damaged, or never arrives.
        StoppedError: If `stopped` was set.
        KitsattnError: If it cannot be written, or if those variables name what cannot be used.
    """
    part = _Part(path)
    failures, furthest = 0, part.size
    with _client(patience.timeout_s) as client:
        while not stopped.is_set():
            try:
                in_one_piece = _receive(client, url, part, stopped=stopped, progress=progress)
                _check(part, url, in_one_piece=in_one_piece)
                part.finish()
            except OSError as error:
                raise unwritable(path, error) from error
            except _PassingError as error:
                failures = 1 if part.size > furthest else failures + 1
                furthest = max(furthest, part.size)
                if failures >= patience.tries:
                    msg = f"{url}: {error}, {failures} times in a row"
                    raise NotFetchedError(msg) from error
                asked = patience.first_wait_s * 2 ** (failures - 1) if error.wait_s is None else error.wait_s
                wait_s = min(asked, patience.longest_wait_s)
                _log.info("%s: %s; trying again in %.0f s", url, error, wait_s)
                stopped.wait(wait_s)
            else:
                return
    raise StoppedError


class _PassingError(Exception):
    """A failure that another try may fix, and the pause in seconds that the server asked for."""

    def __init__(self, reason: str, *, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class _Version:
    """What a part is a part of.

    Attributes:
        url: Where it came from.
        etag: The server's name for this version of the file, a strong one.
        size: Of the whole file, in bytes.
    """

    url: str
    etag: str
    size: int


class _Part:
    """The bytes of a file that have come so far, and the version they belong to."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.with_name(f".{final.name}.part")
        self._note = final.with_name(f".{final.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes that have come so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def version(self, url: str) -> _Version | None:
        """Return the version on `url` of which this is the beginning; None if there is nothing to continue."""
        if not self.size:
            return None
        try:
            version = read_settings(_Version, self._note)
        except KitsattnError:
            return None  # without a note nobody knows what it is a part of
        return version if version.url == url and self.size <= version.size else None

    def begin(self, version: _Version | None = None) -> None:
        """Drop what there is; the note is written before the first byte, and never stands beside other bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        if version is not None:
            write_json(self._note, to_json(version))

    def finish(self) -> None:
        """Give the file its final name."""
        rename_durably(self.path, self.final)
        self._note.unlink(missing_ok=True)


def _client(timeout_s: float) -> httpx.Client:
    """Return a client with the proxies and certificates that the environment names."""
    try:
        return httpx.Client(follow_redirects=True, timeout=timeout_s, headers={"User-Agent": f"kitsattn/{__version__}"})
    except (ImportError, OSError, ValueError) as error:  # a SOCKS proxy, a missing file, an address that is none
        msg = f"the network settings of the environment do not work ({error}): check HTTPS_PROXY and SSL_CERT_FILE"
        raise KitsattnError(msg) from error


def _receive(
    client: httpx.Client, url: str, part: _Part, *, stopped: Event, progress: Callable[[int, int], None]
) -> bool:
    """Receive the file or the rest of it; return whether this one answer certainly held all of it."""
    version, received = part.version(url), part.size
    if version is not None and received == version.size:
        return False
    # The file is gzip itself: its bytes are wanted as they are there, not packed once more for the way.
    headers = {"Accept-Encoding": "identity"}
    if version is not None:
        headers |= {"Range": f"bytes={received}-", "If-Range": version.etag}
    try:
        with client.stream("GET", url, headers=headers) as response:
            chunks = response.iter_raw(_CHUNK_BYTES)
            if version is not None and response.status_code in _RANGE_STATUS:
                _check_rest(response, part, version, received)
                size: int | None = version.size
            else:
                chunks = _from_the_beginning(response, chunks, url)
                size, received = _size(response), 0
                part.begin(_version(response, url, size))
            with part.path.open("ab") as file:
                for chunk in chunks:
                    if stopped.is_set():
                        raise StoppedError
                    file.write(chunk)
                    received += len(chunk)
                    if size is not None:
                        progress(received, size)
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        msg = f"{url} leads nowhere: {error}"
        raise NotFetchedError(msg) from error
    except httpx.TransportError as error:
        raise _PassingError(str(error) or type(error).__name__) from error
    if size is not None and received != size:
        msg = f"{received} of {size} bytes came"
        raise _PassingError(msg)
    return response.status_code == HTTPStatus.OK and size is not None


def _from_the_beginning(response: httpx.Response, chunks: Iterator[bytes], url: str) -> Iterator[bytes]:
    """Check that a gzip file comes, before what there is of it is given up; return its bytes."""
    status = response.status_code
    if status in _PASSING_STATUS:
        msg = f"the server answered {status} {response.reason_phrase}"
        raise _PassingError(msg, wait_s=_retry_after(response))
    if status != HTTPStatus.OK:
        absent = status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
        msg = f"{url}: the server answered {status} {response.reason_phrase}"
        raise NotFetchedError(msg, absent=absent)
    first = next(chunks, b"")
    if first.startswith(_GZIP_START):
        return itertools.chain([first], chunks)
    if first.startswith(_LFS_START):
        msg = f"{url} is a Git LFS pointer, not the file itself: name a mirror that serves the content"
    elif "html" in response.headers.get("Content-Type", "") or first.lstrip()[:1] == b"<":
        msg = f"{url} is a web page, not a gzip file: a login or proxy page has taken its place"
    else:
        msg = f"{url} is not a gzip file; it begins with {first[:16]!r}"
    raise NotFetchedError(msg)


def _check_rest(response: httpx.Response, part: _Part, version: _Version, received: int) -> None:
    """Refuse a rest that does not continue the part: it is another version's, or begins elsewhere."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    begins, size = (int(found[1]), int(found[2])) if found else (None, None)
    if (begins, size, response.headers.get("ETag")) != (received, version.size, version.etag):
        part.begin()
        msg = "the server sent a rest that does not fit"
        raise _PassingError(msg, wait_s=0)


def _size(response: httpx.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _version(response: httpx.Response, url: str, size: int | None) -> _Version | None:
    """Return what a part must agree with to be continued; None if the server says too little for that."""
    etag = response.headers.get("ETag", "")
    # A weak ETag, W/"…", promises the same meaning, not the same bytes (RFC 9110, 13.1.5).
    return _Version(url, etag, size) if etag.startswith('"') and size is not None else None


def _retry_after(response: httpx.Response) -> float | None:
    """Return the pause in seconds that the server asks for, as a number or as a date (RFC 9110, 10.2.3)."""
    asked = response.headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    try:
        date = email.utils.parsedate_to_datetime(asked)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _check(part: _Part, url: str, *, in_one_piece: bool) -> None:
    """Read the file to its end, checksum included; drop it if it is damaged."""
    try:
        with gzip.open(part.path) as stream:
            while stream.read(1 << 20):
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        part.begin()
        if not in_one_piece:
            msg = f"the received file is not complete ({error})"
            raise _PassingError(msg, wait_s=0) from error
        # It came as the server has it: to fetch it again would bring the same.
        msg = f"{url} is damaged on the server ({error})"
        raise NotFetchedError(msg) from error
