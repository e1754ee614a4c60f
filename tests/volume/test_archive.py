import os
import struct
import zipfile
from pathlib import Path

import pytest

from kitsattn.errors import KitsattnError
from kitsattn.volume.archive import READ_ERRORS, Member, members, printable


def make_zip(path: Path, entries: dict[str, bytes]) -> None:
    """Write an archive of members by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def content(member: Member) -> bytes:
    """Read a member to its end."""
    with member.open() as file:
        return file.read()


def test_folder_is_searched_with_its_subfolders(tmp_path: Path) -> None:
    """Files of all depths are found, sorted by name, each with its size and content."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "IM0001").write_bytes(b"deep")
    (tmp_path / "a.dcm").write_bytes(b"a")

    with members(tmp_path) as files:
        found = [(member.name, member.size, content(member)) for member in files]

    assert found == [("a.dcm", 1, b"a"), (os.path.join("b", "c", "IM0001"), 4, b"deep")]  # noqa: PTH118 - a name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipes_and_links_to_folders_are_passed_over(tmp_path: Path) -> None:
    """A pipe would be waited for, and a link to the folder itself would be followed for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)

    with members(tmp_path) as files:
        assert files == []


def test_names_that_lead_out_of_an_archive_are_names_only(tmp_path: Path) -> None:
    """Members called ../x, /x or by a link are read in memory; nothing is written anywhere."""
    inner = tmp_path / "inner"
    inner.mkdir()
    make_zip(inner / "evil.zip", {"../out.dcm": b"up", "/etc/out.dcm": b"root", "nested.zip": b"PK"})
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(inner / "evil.zip", "a") as archive:
        archive.writestr(link, "/etc/passwd")

    with members(inner / "evil.zip") as files:
        contents = {member.name: content(member) for member in files}

    assert contents == {"../out.dcm": b"up", "/etc/out.dcm": b"root", "nested.zip": b"PK", "link": b"/etc/passwd"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evil.zip", "inner"]


def test_encrypted_archive_is_refused(tmp_path: Path) -> None:
    """The error says what to do with a password."""
    path = tmp_path / "scan.zip"
    make_zip(path, {"a": b"a"})
    stored = bytearray(path.read_bytes())
    stored[stored.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(stored)

    with pytest.raises(KitsattnError, match=r"scan.zip is encrypted: unpack it"), members(path):
        pass


def test_archive_that_states_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Five members of 4 GiB each by their entries are more than the 16 GiB that are read."""
    path = tmp_path / "bomb.zip"
    make_zip(path, {str(number): b"a" for number in range(5)})
    stored = bytearray(path.read_bytes())
    start = stored.index(b"PK\x01\x02")
    while stored[start : start + 4] == b"PK\x01\x02":
        struct.pack_into("<I", stored, start + 24, 0xFFFFFFFE)
        start += 46 + 1
    path.write_bytes(stored)

    with (
        pytest.raises(KitsattnError, match=r"bomb.zip states 20.0 GiB of contents, more than the 16 GiB"),
        members(path),
    ):
        pass


@pytest.mark.parametrize("stored", [b"", b"PK\x03\x04 no archive", b"text"])
def test_damaged_archive_is_refused(tmp_path: Path, stored: bytes) -> None:
    """What is no zip archive in spite of its name is named in one line."""
    path = tmp_path / "scan.zip"
    path.write_bytes(stored)

    with (
        pytest.raises(KitsattnError, match=r"scan.zip is not a zip archive, or is truncated or damaged"),
        members(path),
    ):
        pass


def test_damaged_member_raises_what_readers_expect(tmp_path: Path) -> None:
    """A member whose bytes changed fails its checksum when it is read to the end."""
    path = tmp_path / "scan.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"content")
    path.write_bytes(path.read_bytes().replace(b"content", b"c0ntent", 1))

    with members(path) as files, pytest.raises(READ_ERRORS):
        content(files[0])


def test_missing_path_is_named(tmp_path: Path) -> None:
    """A path that does not exist is an error of one line."""
    with pytest.raises(KitsattnError, match=r"nothing does not exist"), members(tmp_path / "nothing"):
        pass


def test_text_is_shown_on_one_line_without_control_characters() -> None:
    """Escapes, line breaks and marks of direction become spaces, and long text is cut."""
    assert printable("a\x1b[31m\n\u202eb\0", 64) == "a [31m b"
    assert printable("x" * 70, 64) == "x" * 63 + "…"
