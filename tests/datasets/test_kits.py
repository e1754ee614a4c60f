import json
from pathlib import Path

import pytest

from kitsattn.datasets.find import find_dataset
from kitsattn.datasets.kits import scan_name
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS


def make_case(folder: Path, case_id: str, *, image: bool = True, labels: bool = True) -> None:
    """Make a case folder with empty files."""
    case = folder / case_id
    case.mkdir(parents=True)
    if image:
        (case / "imaging.nii.gz").touch()
    if labels:
        (case / "segmentation.nii.gz").touch()


def test_cases_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Case folders are sorted by number; other files and folders are left alone."""
    for case_id in ("case_00100", "case_00002", "case_99"):
        make_case(tmp_path / "kits", case_id)
    (tmp_path / "kits" / "LICENSE").touch()
    (tmp_path / "kits" / "interpolated").mkdir()

    dataset = find_dataset(tmp_path / "kits")

    assert [case.case_id for case in dataset.cases] == ["case_00002", "case_99", "case_00100"]
    assert dataset.cases[0].image == tmp_path / "kits" / "case_00002" / "imaging.nii.gz"
    assert dataset.cases[0].labels == tmp_path / "kits" / "case_00002" / "segmentation.nii.gz"
    assert (dataset.name, dataset.synthetic, dataset.labels) == ("kits", False, KITS19_LABELS)


def test_a_case_without_labels_is_a_test_case(tmp_path: Path) -> None:
    """A missing label map is no mistake."""
    make_case(tmp_path, "case_00000", labels=False)

    assert find_dataset(tmp_path).cases[0].labels is None


def test_description_is_read(tmp_path: Path) -> None:
    """Name, labels, licence, citation and whether the data are synthetic come from kitsattn-dataset.json."""
    make_case(tmp_path, "case_00000")
    description = {
        "name": "phantoms",
        "synthetic": True,
        "labels": {"background": 0, "kidney": 1, "tumour": 2, "cyst": 3},
        "licence": "CC0",
        "citation": "nobody",
    }
    (tmp_path / "kitsattn-dataset.json").write_text(json.dumps(description))

    dataset = find_dataset(tmp_path)

    assert (dataset.name, dataset.synthetic, dataset.licence, dataset.citation) == ("phantoms", True, "CC0", "nobody")
    assert dataset.labels["cyst"] == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"title": "x"}', "unknown key 'title'"),
        ('{"synthetic": "no"}', "synthetic must be of type bool"),
        ('{"labels": {"background": 0, "kidney": 2}}', "labels must be numbered"),
        ('{"labels": {"air": 0, "kidney": 1}}', "labels must be numbered"),
        ('{"name": "../elsewhere"}', "name must be usable"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_wrong_description_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    """A description with unknown keys or impossible values names the file and the mistake."""
    make_case(tmp_path, "case_00000")
    (tmp_path / "kitsattn-dataset.json").write_text(content)

    with pytest.raises(KitsattnError, match=rf"kitsattn-dataset\.json.*{reason}"):
        find_dataset(tmp_path)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    """A folder without cases says what was expected."""
    with pytest.raises(KitsattnError, match=r"holds no case: expected folders such as case_00000/imaging\.nii\.gz"):
        find_dataset(tmp_path)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    """A path that is no folder says so."""
    with pytest.raises(KitsattnError, match="is no folder"):
        find_dataset(tmp_path / "nothing")


@pytest.mark.parametrize("inner", ["data", "dataset"])
def test_a_challenge_repository_gives_its_own_name(tmp_path: Path, inner: str) -> None:
    """Cases in kits19/data are kits19, not data."""
    case = tmp_path / "kits19" / inner / "case_00000"
    case.mkdir(parents=True)
    (case / "imaging.nii.gz").touch()
    assert find_dataset(tmp_path / "kits19" / inner).name == "kits19"


def test_cases_without_images_are_named(tmp_path: Path) -> None:
    """A clone of the KiTS repository before the images were downloaded is refused, with the first cases named."""
    make_case(tmp_path, "case_00000")
    for number in range(1, 6):
        make_case(tmp_path, f"case_0000{number}", image=False)

    with pytest.raises(KitsattnError, match=r"5 of 6 cases have no imaging.*\(case_00001, case_00002, case_00003, …\)"):
        find_dataset(tmp_path)


def test_the_same_number_twice_is_refused(tmp_path: Path) -> None:
    """Folders case_7 and case_00007 would be the same case."""
    make_case(tmp_path, "case_7")
    make_case(tmp_path, "case_00007")

    with pytest.raises(KitsattnError, match="holds case 7 twice, as case_00007 and case_7"):
        find_dataset(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("kits19/case_00042/imaging.nii.gz", "case_00042"),
        ("scan.1.nii.gz", "scan.1"),
        ("a/b.nrrd", "b"),
    ],
)
def test_a_scan_is_called_after_its_case(path: str, name: str) -> None:
    """Every KiTS scan is called imaging.nii.gz: its folder tells them apart."""
    assert scan_name(Path(path)) == name
