"""Which scans are predicted, and what their label maps are called."""

from pathlib import Path

import pytest

from kitsattn.errors import KitsattnError
from kitsattn.predict.cases import find_cases, holds_cases
from kitsattn.volume.archive import members
from kitsattn.volume.formats import read_scan


def _names(source: Path, suffix: str = ".nii.gz") -> dict[str, str]:
    cases = find_cases(source, Path("out"), suffix)
    for case in cases:
        assert case.target == Path("out") / f"{case.name}{suffix}"
    return {str(case.source.relative_to(source if source.is_dir() else source.parent)): case.name for case in cases}


def _touch(folder: Path, *names: str) -> Path:
    """Make files that are empty, but for those of DICOM without a suffix, IM…, which begin as DICOM does."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM" if path.name.startswith("IM") else b"")
    return folder


@pytest.mark.parametrize("inner", ["", "data", "dataset", "kits21/data"])
def test_cases_of_kits_are_named_as_the_challenges_want(tmp_path: Path, inner: str) -> None:
    """In number order, from the challenge's folder or from the repository above it; a case without a scan is none."""
    place = _touch(tmp_path / inner, "case_00210/imaging.nii.gz", "case_00002/imaging.nii.gz", "case_00003/notes.txt")
    assert holds_cases(tmp_path)
    prefix = f"{inner}/" if inner else ""
    assert _names(tmp_path) == {
        f"{prefix}case_00002/imaging.nii.gz": "prediction_00002",
        f"{prefix}case_00210/imaging.nii.gz": "prediction_00210",
    }
    assert place.is_dir()


def test_scans_in_a_folder_keep_their_names(tmp_path: Path) -> None:
    """Every format of a scan; other and hidden files are passed over."""
    _touch(tmp_path, "b.nii.gz", "a.nrrd", "c.mha", "d.mhd", "d.raw", "e.zip", "F.NII", "._b.nii.gz", "notes.txt")
    assert holds_cases(tmp_path)
    assert set(_names(tmp_path, ".mha").values()) == {"a", "b", "c", "d", "e", "F"}


def test_the_channel_of_nnunet_is_left_out_where_all_have_it(tmp_path: Path) -> None:
    """`imagesTs` gives the names of `labelsTs`; a single name that ends so keeps it among others."""
    _touch(tmp_path, "k_001_0000.nii.gz", "k_002_0000.nii.gz")
    assert list(_names(tmp_path).values()) == ["k_001", "k_002"]
    _touch(tmp_path, "other.nii.gz")
    assert list(_names(tmp_path).values()) == ["k_001_0000", "k_002_0000", "other"]


@pytest.mark.parametrize("clutter", ["__MACOSX", "@eaDir", "#recycle", "lost+found"])
def test_what_archivers_and_file_servers_leave_is_no_case(tmp_path: Path, clutter: str) -> None:
    """Neither beside patients nor within one, where its files may be called as DICOM is."""
    _touch(tmp_path, "ann/IM0001", f"ann/{clutter}/IM0001", f"{clutter}/ann/1.dcm", f"{clutter}/a.nii.gz", "Thumbs.db")

    assert _names(tmp_path) == {"ann": "ann"}
    with members(tmp_path / "ann") as files:
        assert [file.name for file in files] == ["IM0001"]
    _touch(tmp_path / "more", f"{clutter}/1.dcm", "bob.zip")
    assert _names(tmp_path / "more") == {"bob.zip": "bob"}


@pytest.mark.parametrize(
    ("there", "link"),
    [
        ("a.nii.gz", "b.nii.gz"),
        ("ann/IM0001", "bob"),
        ("ann/IM0001", "bob/IM0001"),
        ("case_00000/imaging.nii.gz", "case_00001/imaging.nii.gz"),
        ("case_00000/imaging.nii.gz", "case_00001"),
    ],
)
def test_a_link_to_nothing_is_a_case_that_fails(tmp_path: Path, there: str, link: str) -> None:
    """A scan that was not fetched is not passed over."""
    _touch(tmp_path, there)
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / "gone" / "x")

    cases = find_cases(tmp_path, Path("out"), ".nii.gz")

    assert len(cases) == 2
    with pytest.raises(KitsattnError, match=r"does not exist"):
        read_scan(cases[1].source)


def test_folders_of_dicom_are_a_case_each(tmp_path: Path) -> None:
    """However deep their files lie; one with DICOM files right in it is one case, whatever else lies there."""
    _touch(tmp_path, "ann/study/1.dcm", "bob/IM0001", "bob/IM0002", "notes/a.txt", "LICENSE")
    (tmp_path / "empty").mkdir()
    assert not holds_cases(tmp_path)
    assert _names(tmp_path) == {"ann": "ann", "bob": "bob"}
    assert _names(tmp_path / "bob") == {".": "bob"}
    _touch(tmp_path / "bob", "mask.nii.gz")
    assert not holds_cases(tmp_path / "bob")
    assert _names(tmp_path / "bob") == {".": "bob"}


def test_files_archives_and_dicom_folders_may_lie_together(tmp_path: Path) -> None:
    """None is passed over for the others."""
    _touch(tmp_path, "ann/1.dcm", "zoe.zip", "eve.nii.gz")
    assert _names(tmp_path) == {"ann": "ann", "eve.nii.gz": "eve", "zoe.zip": "zoe"}


def test_a_list_names_scans_relative_to_itself(tmp_path: Path) -> None:
    """In its order; lines with # and empty ones are passed over."""
    _touch(tmp_path, "b.nii.gz", "sub/a.nrrd", "case_00007/imaging.nii.gz", "series/1.dcm")
    listed = tmp_path / "scans.txt"
    absolute = tmp_path / "sub" / "a.nrrd"
    content = f"# scans\nb.nii.gz\n\n  {absolute}\ncase_00007/imaging.nii.gz\nseries\n"
    listed.write_text(content, encoding="utf-8-sig")  # as editors of Windows do
    assert holds_cases(listed)
    assert list(_names(listed).values()) == ["b", "a", "case_00007", "series"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"gone.nii.gz\nb.nii.gz\n", "names what is not there: .*gone.nii.gz"),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
        (b"# nothing\n", "holds no scan"),
        (b"b.nii.gz\nsub/b.nrrd\n", "several scans called b"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    """Each with how to fix it."""
    _touch(tmp_path, "b.nii.gz", "sub/b.nrrd")
    (tmp_path / "scans.txt").write_bytes(content)
    with pytest.raises(KitsattnError, match=told):
        find_cases(tmp_path / "scans.txt", Path("out"), ".nii.gz")


def test_two_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    """Their label maps would overwrite each other."""
    _touch(tmp_path, "a.nii.gz", "a.nrrd")
    with pytest.raises(KitsattnError, match="several scans called a, whose label maps would have one name"):
        find_cases(tmp_path, Path("out"), ".nii.gz")


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    """With what is expected in it."""
    with pytest.raises(KitsattnError, match=r"holds no scan: expected case_NNNNN/imaging.nii.gz, files in one of"):
        find_cases(tmp_path, Path("out"), ".nii.gz")
