import json
from pathlib import Path

import pytest

from kitsattn.datasets.find import find_dataset
from kitsattn.datasets.kits import _default_name, scan_name
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS


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
        ('{"name": "con"}', "name must be usable"),
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
    """A folder without cases, named as KiTS, says what was expected."""
    with pytest.raises(KitsattnError, match=r"holds no case: expected folders such as case_00000/imaging\.nii\.gz"):
        find_dataset(tmp_path, layout="kits19")


@pytest.mark.parametrize(
    ("repository", "inner"), [("kits19", "data"), ("kits23", "dataset"), ("kits21", "kits21/data"), ("kits21", "data")]
)
def test_a_challenge_repository_is_descended_into(tmp_path: Path, repository: str, inner: str) -> None:
    """Cases in kits19/data are kits19, not data, whichever of the two folders is named."""
    make_case(tmp_path / repository / inner, "case_00000")
    for named in (tmp_path / repository, tmp_path / repository / inner):
        dataset = find_dataset(named)
        assert (dataset.name, dataset.folder) == (repository, tmp_path / repository / inner)


def test_a_description_lies_in_the_repository_or_beside_the_cases(tmp_path: Path) -> None:
    """Both are looked at, the folder that was named first."""
    make_case(tmp_path / "data", "case_00000")
    (tmp_path / "data" / "kitsattn-dataset.json").write_text('{"name": "beside"}')
    assert find_dataset(tmp_path).name == "beside"
    (tmp_path / "kitsattn-dataset.json").write_text('{"name": "above"}')
    assert find_dataset(tmp_path).name == "above"


@pytest.mark.parametrize(
    ("place", "marks", "citation"),
    [
        ("ours", [], "unknown"),
        ("ours", ["case_00400/x"], "unknown"),
        ("kits19/ours", [], "unknown"),
        ("kits19/data", [], "Results of the KiTS19 challenge"),
        ("ours", ["kits.json"], "Results of the KiTS19 challenge"),
        ("ours", ["case_00000/aggregated_MAJ_seg.nii.gz"], "The KiTS21 Challenge"),
        ("ours", ["kits23.json"], "The KiTS21 Challenge"),
        ("ours", ["case_00000/instances/x"], "The KiTS21 Challenge"),
        ("KiTS23/dataset", [], "The KiTS21 Challenge"),
    ],
)
def test_licence_and_citation_are_those_of_a_challenge_that_is_certain(
    tmp_path: Path, place: str, marks: list[str], citation: str
) -> None:
    """Files of a challenge, or its name as the data set's, are certain; its layout alone may be anybody's."""
    make_case(tmp_path / place, "case_00000")
    for mark in marks:
        (tmp_path / place / mark).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place / mark).touch()
    for case in (tmp_path / place).glob("case_*"):
        (case / "imaging.nii.gz").touch()
    dataset = find_dataset(tmp_path / place)
    assert citation in dataset.citation
    assert dataset.licence == ("unknown" if citation == "unknown" else "CC BY-NC-SA 4.0")


def test_a_named_layout_is_no_evidence_of_a_challenge(tmp_path: Path) -> None:
    """`--layout kits23` is also how one's own data with cysts are read."""
    make_case(tmp_path, "case_00000")
    dataset = find_dataset(tmp_path, layout="kits23")
    assert (dataset.labels, dataset.licence, dataset.citation) == (KITS23_LABELS, "unknown", "unknown")


def test_the_majority_is_the_label_map_of_kits21(tmp_path: Path) -> None:
    """Of the three aggregated label maps, and never one of another name."""
    make_case(tmp_path, "case_00000")
    make_case(tmp_path, "case_00001")
    for kind in ("OR", "AND", "MAJ"):
        (tmp_path / "case_00001" / f"aggregated_{kind}_seg.nii.gz").touch()
    dataset = find_dataset(tmp_path)
    assert [case.labels for case in dataset.cases] == [None, tmp_path / "case_00001" / "aggregated_MAJ_seg.nii.gz"]
    assert dataset.labels == KITS23_LABELS


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


def test_cases_in_a_containers_data_folder_have_a_name() -> None:
    """There is no name above /data."""
    assert _default_name(Path("/data")) == "data"
    assert _default_name(Path("/x/kits19/data")) == "kits19"
