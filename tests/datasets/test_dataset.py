import unicodedata
from pathlib import Path

import pytest

from kitsattn.datasets.dataset import (
    SCAN_SUFFIXES,
    CaseFiles,
    Description,
    check_case_ids,
    check_label_values,
    read_description,
)
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS
from kitsattn.volume.formats import OUTPUT_SUFFIXES


def _cases(*names: str) -> list[CaseFiles]:
    return [CaseFiles(name, Path(f"{number}.nii.gz"), None) for number, name in enumerate(names)]


def test_the_first_description_counts(tmp_path: Path) -> None:
    """The folder that was named goes before the one its cases lie in; without any, all is left to the layout."""
    inner = tmp_path / "data"
    inner.mkdir()
    assert read_description(tmp_path, inner) == Description()
    (inner / "kitsattn-dataset.json").write_text('{"name": "inner"}')
    assert read_description(tmp_path, inner) == Description(name="inner")
    (tmp_path / "kitsattn-dataset.json").write_text('{"name": "outer"}')
    assert read_description(tmp_path, inner) == Description(name="outer")


def test_labels_of_kits_have_their_values() -> None:
    """Kidney, tumour and cyst are 1, 2 and 3 where they are named; other classes may have any name."""
    check_label_values(KITS19_LABELS)
    check_label_values(KITS23_LABELS)
    check_label_values({"background": 0, "vessel": 1})
    with pytest.raises(ValueError, match="labels must call 1 kidney, as KiTS does"):
        check_label_values({"background": 0, "tumour": 1, "kidney": 2})
    with pytest.raises(ValueError, match="labels must call 2 tumour, as KiTS does"):
        check_label_values({"background": 0, "tumour": 1})
    with pytest.raises(ValueError, match="labels must be numbered"):
        check_label_values({"background": 0, "kidney": 1, "cyst": 3})


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "a\\b",
        "a:b",
        "what?",
        "a\n",
        "",
        ".hidden",
        " a",
        "a.",
        "a ",
        "CON",
        "nul.1",
        "com1",
    ],
)
def test_a_case_id_must_name_files_everywhere(name: str) -> None:
    """What Linux, macOS or Windows cannot take as a file's name is refused, with the file it came from."""
    with pytest.raises(KitsattnError, match=r"1\.nii\.gz: its case would be called .* cannot name files"):
        check_case_ids(_cases("fine", name))


def test_case_ids_that_are_fine() -> None:
    """Dots, blanks, dashes and letters of any language inside a name do no harm."""
    check_case_ids(_cases("a.labels", "case_00000", "1.2.840.113", "scan 1", "-x", "Müller", "niere", "console", "a"))


@pytest.mark.parametrize(
    ("first", "second"), [("a", "A"), ("STRASSE", "straße"), *[("é", unicodedata.normalize("NFD", "é"))]]
)
def test_case_ids_that_become_one_file_are_refused(first: str, second: str) -> None:
    """Ids that differ in case or in the spelling of an accent only are the same file on macOS and Windows."""
    with pytest.raises(KitsattnError, match=r"0\.nii\.gz and 2\.nii\.gz are both called"):
        check_case_ids(_cases(first, "other", second))


def test_every_format_that_is_written_is_found() -> None:
    """Label maps that this package wrote are found again as pairs."""
    assert set(SCAN_SUFFIXES) >= set(OUTPUT_SUFFIXES)
