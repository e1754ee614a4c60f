"""One file over HTTP, from a real server on loopback that does what servers and networks do."""

import email.utils
import gzip
import logging
import time
from pathlib import Path
from threading import Event, Timer
from typing import TYPE_CHECKING

import numpy as np
import pytest

from kitsattn.datasets.fetch import NotFetchedError, Patience, StoppedError, fetch_gzip
from kitsattn.errors import KitsattnError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import FileServer, Served

    Fetch = Callable[..., Path]

# Bytes that do not compress, so that a cut in the middle leaves much.
CONTENT = gzip.compress(np.random.default_rng(0).bytes(500_000), 1)
OTHER = gzip.compress(np.random.default_rng(1).bytes(500_000), 1)
PATIENCE = Patience(tries=3, first_wait_s=0.01, timeout_s=5.0)
NAME = "/case_00000.nii.gz"


@pytest.fixture
def fetch(file_server: "FileServer", tmp_path: Path) -> "Fetch":
    """Fetch the file of the server and return where it lies; the tests' folder does not exist before."""

    def run(
        patience: Patience = PATIENCE,
        stopped: Event | None = None,
        progress: "Callable[[int, int], None]" = lambda _received, _size: None,
        url: str = file_server.url + NAME,
    ) -> Path:
        path = tmp_path / "case_00000" / "imaging.nii.gz"
        fetch_gzip(
            url,
            path,
            patience=patience,
            stopped=stopped or Event(),
            progress=progress,
        )
        return path

    return run


def _ranges(server: "FileServer") -> list[str | None]:
    return [headers.get("Range") for _, headers in server.requests]


def _leave_part(server: "FileServer", fetch: "Fetch", content: bytes = CONTENT) -> "Served":
    """Serve a file and let the connection be cut once: 196 608 bytes stay, three chunks."""
    served = server.serve(NAME, content).fail(cut=200_000)
    with pytest.raises(NotFetchedError):
        fetch(Patience(tries=1))
    return served


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_whole_file_gets_its_name(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """The bytes are those of the server, as they lie there, and nothing else is left in the folder."""
    file_server.serve(NAME, CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert _names(tmp_path) == ["imaging.nii.gz"]
    ((_, headers),) = file_server.requests
    assert headers["Accept-Encoding"] == "identity"


def test_a_cut_connection_is_continued_where_it_ended(
    file_server: "FileServer", fetch: "Fetch", caplog: pytest.LogCaptureFixture
) -> None:
    """Each further request asks for the rest of the same version, and is announced."""
    file_server.serve(NAME, CONTENT).fail(cut=150_000).fail(cut=150_000)
    with caplog.at_level(logging.INFO):
        assert fetch().read_bytes() == CONTENT
    first, second, third = (headers for _, headers in file_server.requests)
    assert "Range" not in first
    assert {second["If-Range"], third["If-Range"]} == {'"one"'}
    begun = [int(headers["Range"].removeprefix("bytes=").removesuffix("-")) for headers in (second, third)]
    # Less than a chunk of 64 KiB is lost with each cut.
    assert 150_000 - 65_536 < begun[0] <= 150_000
    assert begun[0] + 150_000 - 65_536 < begun[1] <= begun[0] + 150_000
    assert len([record for record in caplog.records if "trying again" in record.message]) == 2


def test_new_bytes_renew_the_patience(file_server: "FileServer", fetch: "Fetch") -> None:
    """A connection that is cut more often than there are tries still brings the file, as long as it brings more."""
    file_server.serve(NAME, CONTENT).fail(times=4, cut=100_000)
    assert fetch(Patience(tries=2, first_wait_s=0.01)).read_bytes() == CONTENT
    assert len(file_server.requests) == 5


def test_a_connection_without_new_bytes_is_given_up(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """After so many tries in a row the error says what happened where; the part is kept, and continued later."""
    served = file_server.serve(NAME, CONTENT).fail(cut=200_000).fail(times=9, cut=0)
    with pytest.raises(NotFetchedError, match=r"case_00000\.nii\.gz: .*, 3 times in a row"):
        fetch()
    assert len(file_server.requests) == 3
    assert _names(tmp_path) == [".imaging.nii.gz.part", ".imaging.nii.gz.part.json"]
    served.faults.clear()
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server)[-1] == "bytes=196608-"


def test_silence_is_a_cut_as_well(file_server: "FileServer", fetch: "Fetch") -> None:
    """A connection that falls silent is given up after the timeout, and continued."""
    file_server.serve(NAME, CONTENT).fail(cut=200_000, hold=True)
    begun = time.monotonic()
    assert fetch(Patience(first_wait_s=0.01, timeout_s=0.2)).read_bytes() == CONTENT
    assert time.monotonic() - begun < 10
    assert _ranges(file_server) == [None, "bytes=196608-"]


def test_a_file_that_changed_meanwhile_is_begun_anew(file_server: "FileServer", fetch: "Fetch") -> None:
    """Nothing of the old version is in the result."""
    served = _leave_part(file_server, fetch, OTHER)
    served.content, served.etag, served.faults = CONTENT, '"two"', []
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server) == [None, "bytes=196608-"]


@pytest.mark.parametrize("ignores", ["etag", "if-range"])
def test_a_rest_of_another_version_is_not_glued_on(
    file_server: "FileServer", fetch: "Fetch", caplog: pytest.LogCaptureFixture, *, ignores: str
) -> None:
    """A server that ignores If-Range sends the rest of a changed file; its ETag, or its lack of one, gives it away."""
    served = _leave_part(file_server, fetch, OTHER)
    served.content = CONTENT
    served.headers = {"ETag": '"two"' if ignores == "if-range" else None}
    caplog.set_level(logging.INFO)
    assert fetch().read_bytes() == CONTENT
    assert "a rest that does not fit" in caplog.text, "the checksum is the second line of defence, not the first"
    assert _ranges(file_server) == [None, "bytes=196608-", None]


def test_a_rest_from_elsewhere_is_not_glued_on(file_server: "FileServer", fetch: "Fetch") -> None:
    """A rest that begins at another byte, or is part of a file of another size, is dropped with the part."""
    for wrong in (f"bytes 1-{len(CONTENT) - 1}/{len(CONTENT)}", "bytes 196608-500000/500001", "nonsense"):
        served = _leave_part(file_server, fetch)
        served.headers = {"Content-Range": wrong}
        with pytest.raises(NotFetchedError, match="a rest that does not fit"):
            fetch(Patience(tries=1))
        path = fetch(Patience(tries=1))
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_a_rest_that_the_server_does_not_have_is_begun_anew(file_server: "FileServer", fetch: "Fetch") -> None:
    """416 means that the part is none of this file."""
    served = _leave_part(file_server, fetch, OTHER)
    served.content = CONTENT
    file_server.serve(NAME, CONTENT).fail(status=416, headers={"Content-Range": "bytes */9"})
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server) == [None, "bytes=196608-", None]


@pytest.mark.parametrize("options", [{"ranges": False}, {"etag": None}, {"etag": 'W/"one"'}], ids=str)
def test_a_server_that_cannot_continue_sends_all_again(
    file_server: "FileServer", fetch: "Fetch", *, options: dict[str, object]
) -> None:
    """Without ranges the whole file comes; without a strong ETag no range is asked for."""
    file_server.serve(NAME, CONTENT, **options).fail(cut=200_000)
    assert fetch().read_bytes() == CONTENT
    asked = "bytes=196608-" if "ranges" in options else None
    assert _ranges(file_server) == [None, asked]


def test_a_part_of_another_address_is_not_continued(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """ETags are comparable on one address only; the part is dropped once the new file comes."""
    served = _leave_part(file_server, fetch, OTHER)
    note = tmp_path / "case_00000" / ".imaging.nii.gz.part.json"
    note.write_text(note.read_text(encoding="utf-8").replace(file_server.url, "http://elsewhere"), encoding="utf-8")
    served.content = CONTENT
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server) == [None, None]


@pytest.mark.parametrize("note", [None, "torn {", '{"url": "", "etag": "", "size": 1, "more": 2}'], ids=str)
def test_a_part_without_its_note_is_begun_anew(
    file_server: "FileServer", fetch: "Fetch", tmp_path: Path, *, note: str | None
) -> None:
    """Nobody knows what it is a part of."""
    folder = tmp_path / "case_00000"
    folder.mkdir()
    (folder / ".imaging.nii.gz.part").write_bytes(OTHER[:1000])
    if note is not None:
        (folder / ".imaging.nii.gz.part.json").write_text(note, encoding="utf-8")
    file_server.serve(NAME, CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server) == [None]


def test_a_part_that_is_whole_already_only_gets_its_name(
    file_server: "FileServer", fetch: "Fetch", tmp_path: Path
) -> None:
    """A process killed between the last byte and the check has nothing left to fetch."""
    _leave_part(file_server, fetch)
    (tmp_path / "case_00000" / ".imaging.nii.gz.part").write_bytes(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert len(file_server.requests) == 1


def test_a_part_longer_than_the_file_is_begun_anew(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """It cannot be a part of it, and the server need not be asked for a rest."""
    _leave_part(file_server, fetch)
    (tmp_path / "case_00000" / ".imaging.nii.gz.part").write_bytes(CONTENT + b"more")
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server) == [None, None]


def test_pieces_that_make_no_whole_file_are_fetched_once_more(
    file_server: "FileServer", fetch: "Fetch", tmp_path: Path
) -> None:
    """A part that was damaged on this disk fails the checksum, and does not stand in the way."""
    _leave_part(file_server, fetch)
    part = tmp_path / "case_00000" / ".imaging.nii.gz.part"
    part.write_bytes(part.read_bytes()[:100_000] + bytes(96_608))
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server) == [None, "bytes=196608-", None]


@pytest.mark.parametrize("asked", ["0", "date", "date without a zone", None])
def test_a_busy_server_is_asked_again(file_server: "FileServer", fetch: "Fetch", *, asked: str | None) -> None:
    """503 passes; Retry-After, seconds or a date, says when to come back, else the first pause does."""
    past = email.utils.formatdate(time.time() - 20, usegmt=asked == "date")
    headers = {} if asked is None else {"Retry-After": asked if asked == "0" else past}
    file_server.serve(NAME, CONTENT).fail(status=503, headers=headers)
    begun = time.monotonic()
    fetch(Patience(tries=2, first_wait_s=0.2 if asked is None else 20.0))
    elapsed = time.monotonic() - begun
    assert elapsed < 10
    assert asked is not None or elapsed >= 0.2
    assert len(file_server.requests) == 2


def test_the_pause_that_the_server_asks_for_is_kept(file_server: "FileServer", fetch: "Fetch") -> None:
    """A pause of a second is waited for, an hour only as long as the longest pause."""
    file_server.serve(NAME, CONTENT).fail(status=429, headers={"Retry-After": "1"})
    begun = time.monotonic()
    fetch(PATIENCE).unlink()
    assert 1 <= time.monotonic() - begun < 5
    file_server.serve(NAME, CONTENT).fail(status=503, headers={"Retry-After": "3600"})
    begun = time.monotonic()
    fetch(Patience(longest_wait_s=0.3))
    assert 0.3 <= time.monotonic() - begun < 5


def test_pauses_grow(file_server: "FileServer", fetch: "Fetch", caplog: pytest.LogCaptureFixture) -> None:
    """Each failure in a row doubles the pause, up to the longest."""
    file_server.serve(NAME, CONTENT).fail(times=4, status=500)
    begun = time.monotonic()
    with caplog.at_level(logging.INFO):
        fetch(Patience(tries=5, first_wait_s=0.1, longest_wait_s=0.3))
    assert 0.1 + 0.2 + 0.3 + 0.3 <= time.monotonic() - begun < 5
    assert "the server answered 500 Internal Server Error; trying again" in caplog.text


@pytest.mark.parametrize(("status", "absent"), [(404, True), (410, True), (403, False), (401, False)])
def test_what_no_other_try_changes_is_said_at_once(
    file_server: "FileServer", fetch: "Fetch", tmp_path: Path, *, status: int, absent: bool
) -> None:
    """The error names address and answer, and knows whether the file is merely not there; nothing is made."""
    file_server.serve(NAME, CONTENT).fail(status=status)
    with pytest.raises(NotFetchedError, match=f"{NAME}: the server answered {status} ") as caught:
        fetch()
    assert caught.value.absent == absent
    assert len(file_server.requests) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "kind", "named"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "text/html; charset=utf-8", "is a web page"),
        (b"\n <html>proxy</html>", "application/octet-stream", "is a web page"),
        (b"Please log in", "text/html", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "text/plain", "Git LFS pointer"),
        (b"PK\x03\x04 zip", "application/gzip", r"is not a gzip file; it begins with b'PK"),
        (b"", "application/gzip", "is not a gzip file; it begins with b''"),
    ],
    ids=["page", "unnamed page", "text", "pointer", "zip", "nothing"],
)
def test_something_else_in_its_place_is_refused(
    file_server: "FileServer", fetch: "Fetch", *, content: bytes, kind: str, named: str
) -> None:
    """A status of 200 is no proof of a file: what came is named; a part that was there is kept."""
    served = _leave_part(file_server, fetch)
    served.content, served.etag, served.headers = content, '"two"', {"Content-Type": kind}
    with pytest.raises(NotFetchedError, match=named):
        fetch()
    served.content, served.etag, served.headers = CONTENT, '"one"', {}
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server)[-1] == "bytes=196608-"


@pytest.mark.parametrize("damaged", [CONTENT[:-4] + b"nope", CONTENT[:250_000], CONTENT + b"more"], ids=range(3))
def test_a_file_damaged_on_the_server_is_refused(
    file_server: "FileServer", fetch: "Fetch", tmp_path: Path, *, damaged: bytes
) -> None:
    """A wrong checksum, a missing end or something after it never gets the final name, and is not fetched again."""
    file_server.serve(NAME, damaged)
    with pytest.raises(NotFetchedError, match=r"case_00000\.nii\.gz is damaged on the server"):
        fetch()
    assert len(file_server.requests) == 1
    assert _names(tmp_path) == []


def test_a_content_length_that_is_too_long_is_a_cut(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """Fewer bytes than were promised are not a file, however often they come."""
    file_server.serve(NAME, CONTENT, headers={"Content-Length": str(len(CONTENT) + 1)})
    with pytest.raises(NotFetchedError, match="times in a row"):
        fetch()
    assert "imaging.nii.gz" not in _names(tmp_path)


def test_a_content_length_that_is_too_short_is_damage(file_server: "FileServer", fetch: "Fetch") -> None:
    """The bytes that were promised came, but they are no whole gzip file."""
    file_server.serve(NAME, CONTENT, headers={"Content-Length": "200000"})
    with pytest.raises(NotFetchedError, match="damaged on the server"):
        fetch()


def test_without_a_content_length_the_checksum_decides(file_server: "FileServer", fetch: "Fetch") -> None:
    """The end of the connection may be a cut, so a file that lacks its end is fetched again."""
    file_server.serve(NAME, CONTENT, headers={"Content-Length": None}).fail(cut=200_000)
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server) == [None, None]


def test_a_rest_in_portions_is_taken(file_server: "FileServer", fetch: "Fetch") -> None:
    """A server may send less than the rest that was asked for; what is missing is asked for again."""
    portion = {"Content-Length": "131072", "Content-Range": f"bytes 196608-327679/{len(CONTENT)}"}
    file_server.serve(NAME, CONTENT).fail(cut=200_000).fail(cut=131_072, headers=portion)
    assert fetch(Patience(tries=2, first_wait_s=0.01)).read_bytes() == CONTENT
    assert _ranges(file_server) == [None, "bytes=196608-", "bytes=327680-"]


def test_redirects_are_followed_on_each_try(file_server: "FileServer", fetch: "Fetch") -> None:
    """A rest is asked for at the first address again: the second one may be signed for minutes only."""
    file_server.redirects[NAME] = "/elsewhere"
    file_server.serve("/elsewhere", CONTENT).fail(cut=200_000)
    assert fetch().read_bytes() == CONTENT
    assert [path for path, _ in file_server.requests] == [NAME, "/elsewhere", NAME, "/elsewhere"]
    assert _ranges(file_server)[-1] == "bytes=196608-"


@pytest.mark.parametrize("target", [NAME, "ftp://127.0.0.1/file"])
def test_redirects_that_lead_nowhere_are_refused(file_server: "FileServer", fetch: "Fetch", *, target: str) -> None:
    """A circle, or an address that is none of http, is one line and no second try."""
    file_server.redirects[NAME] = target
    with pytest.raises(NotFetchedError, match="leads nowhere"):
        fetch()


def test_the_proxy_of_the_environment_is_used(
    file_server: "FileServer", fetch: "Fetch", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is asked of the proxy, whole."""
    monkeypatch.setenv("http_proxy", file_server.url)
    monkeypatch.delenv("no_proxy")
    file_server.serve(f"http://mirror.invalid{NAME}", CONTENT)
    assert fetch(url=f"http://mirror.invalid{NAME}").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("variable", "value"),
    [("all_proxy", "socks5://localhost"), ("http_proxy", "gopher://localhost"), ("SSL_CERT_FILE", "missing.pem")],
)
def test_an_environment_that_cannot_be_used(
    fetch: "Fetch", monkeypatch: pytest.MonkeyPatch, *, variable: str, value: str
) -> None:
    """It is one line that names the variables, not a traceback of the library."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(KitsattnError, match=r"network settings of the environment do not work .*HTTPS_PROXY") as caught:
        fetch()
    assert not isinstance(caught.value, NotFetchedError)


def test_nobody_at_the_address(fetch: "Fetch", file_server: "FileServer") -> None:
    """A server that is not there is tried as patiently as one that is busy."""
    file_server.shutdown()
    file_server.server_close()
    with pytest.raises(NotFetchedError, match="refused, 3 times in a row"):
        fetch()


def test_stopping_ends_a_pause(file_server: "FileServer", fetch: "Fetch") -> None:
    """Somebody who stops does not wait for the pause to end, and the server is not asked again."""
    file_server.serve(NAME, CONTENT).fail(status=503, headers={"Retry-After": "30"})
    stopped = Event()
    timer = Timer(0.3, stopped.set)
    timer.start()
    begun = time.monotonic()
    for _ in range(2):
        with pytest.raises(StoppedError):
            fetch(stopped=stopped)
    assert time.monotonic() - begun < 5
    timer.join()
    assert len(file_server.requests) <= 1


def test_stopping_in_the_midst_keeps_the_part(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """Nothing is written after the stop; what was there is continued later."""
    file_server.serve(NAME, CONTENT)
    stopped = Event()
    with pytest.raises(StoppedError):
        fetch(stopped=stopped, progress=lambda _received, _size: stopped.set())
    assert _names(tmp_path) == [".imaging.nii.gz.part", ".imaging.nii.gz.part.json"]
    assert fetch().read_bytes() == CONTENT
    assert _ranges(file_server) == [None, "bytes=65536-"]


def test_a_place_that_cannot_be_written(file_server: "FileServer", fetch: "Fetch", tmp_path: Path) -> None:
    """The file that stands in the way is named, and no server is blamed."""
    (tmp_path / "case_00000").write_bytes(b"")
    file_server.serve(NAME, CONTENT)
    with pytest.raises(KitsattnError, match=r"imaging\.nii\.gz cannot be written") as caught:
        fetch()
    assert not isinstance(caught.value, NotFetchedError)
