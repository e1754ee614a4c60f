from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from kitsattn.cli.preprocess import Layout
from kitsattn.datasets.find import LAYOUTS, find_dataset
from kitsattn.errors import KitsattnError

Touch = Callable[..., Path]


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz"], "kits19"),
        (["case_00000/imaging.nii.gz", "case_00000/aggregated_MAJ_seg.nii.gz"], "kits21"),
        (["case_00000/imaging.nii.gz", "case_00000/instances/kidney_instance-1_annotation-1.nii.gz"], "kits23"),
        (["case_00000/imaging.nii.gz", "kits23.json"], "kits23"),
        (["case_00399/imaging.nii.gz"], "kits19"),
        (["case_00400/imaging.nii.gz"], "kits23"),
        (["images/a.nii.gz", "labels/a.nii.gz"], "pairs"),
        (["a.nii.gz", "a_seg.nii.gz"], "pairs"),
        (["case_00000/imaging.nii.gz", "imagesTr/a_0000.nii.gz", "dataset.json", "a.nii", "a_seg.nii"], "kits19"),
    ],
)
def test_a_layout_is_recognised_by_names(touch: Touch, names: list[str], layout: str) -> None:
    """Empty files suffice: no volume is opened. KiTS case folders go before anything beside them."""
    assert find_dataset(touch(*names)).layout == layout


@pytest.mark.parametrize(
    ("place", "layout"),
    [
        ("kits23/training", "kits23"),
        ("KiTS23/dataset", "kits23"),
        ("kits23/kits19/data", "kits19"),
        ("kits19/kits23", "kits23"),
        ("kits2023", "kits19"),
    ],
)
def test_a_path_tells_kits23_from_kits19(touch: Touch, place: str, layout: str) -> None:
    """Where the files are the same, the innermost folder with a challenge's name decides; KiTS19 if there is none."""
    folder = touch(f"{place}/case_00000/imaging.nii.gz", f"{place}/case_00000/segmentation.nii.gz") / place
    assert find_dataset(folder).layout == layout


def test_a_named_layout_is_not_questioned(touch: Touch) -> None:
    """--layout decides which label map is read, and what the labels are."""
    files = ["imaging.nii.gz", "segmentation.nii.gz", "aggregated_MAJ_seg.nii.gz"]
    folder = touch(*(f"case_00400/{file}" for file in files))
    found = {layout: find_dataset(folder, layout=layout) for layout in ("kits19", "kits21", "kits23")}
    label_maps = {layout: dataset.cases[0].labels for layout, dataset in found.items()}
    assert label_maps == {
        "kits19": folder / "case_00400" / "segmentation.nii.gz",
        "kits21": folder / "case_00400" / "aggregated_MAJ_seg.nii.gz",
        "kits23": folder / "case_00400" / "segmentation.nii.gz",
    }
    assert ["cyst" in dataset.labels for dataset in found.values()] == [False, True, True]
    assert [dataset.layout for dataset in found.values()] == ["kits19", "kits21", "kits23"]


def test_a_folder_without_data_says_what_was_looked_for(touch: Touch) -> None:
    """One line names every layout; a scan without any label map is none."""
    folder = touch("notes.txt", "scan.nii.gz", "sub/case_00000/imaging.nii.gz")
    looked_for = (
        r"case_00000/imaging\.nii\.gz.*imagesTr with labelsTr and dataset\.json.*images/NAME.*NAME_seg\.nii\.gz"
        r".*formats \.nii\.gz, \.nii, \.nrrd, \.mha"
    )
    with pytest.raises(KitsattnError, match=rf"holds no data set: expected {looked_for}$"):
        find_dataset(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    """A path that is no folder says so, also with a layout."""
    for layout in (None, "pairs"):
        with pytest.raises(KitsattnError, match="nothing is not a folder"):
            find_dataset(tmp_path / "nothing", layout=layout)


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    """The known ones are named."""
    with pytest.raises(KitsattnError, match="'bids' is not known: choose kits19, kits21, kits23, nnunet, pairs"):
        find_dataset(tmp_path, layout="bids")


def test_the_command_line_offers_every_layout() -> None:
    """--layout has the choices of find_dataset."""
    assert get_args(Layout) == LAYOUTS
