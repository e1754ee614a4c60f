"""Which files a data folder gives, and which of them are kept for validation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kitsattn.errors import KitsattnError
from kitsattn.synthesis.data import (
    FIRST_HELD_OUT_KITS,
    HELD_OUT_BODIES,
    HELD_OUT_CURVAS,
    KITS19_LABELS,
    SOURCES_OF_DATA,
    TOTALSEGMENTATOR,
    StarterData,
    find_starter_data,
)


def test_what_is_held_out_stays_held_out() -> None:
    """Scores of shipped weights are measured on these; a change makes them worthless."""
    assert frozenset({"s0009", "s0328"}) == HELD_OUT_BODIES
    assert frozenset({10012, 10013, 10014}) == HELD_OUT_CURVAS
    assert FIRST_HELD_OUT_KITS == 159


def check_split(found: StarterData) -> None:
    """Check that nothing that is held out is among what is trained on."""
    for path in found.label_maps:
        number = int(path.name.removeprefix("case_").removesuffix(".nii.gz"))
        if path.parent.name == "kits19-labels":
            assert number < 159
        else:  # KiTS23's own cases; what it shares with KiTS19 begins with the same numbers
            assert path.parent.name == "kits23-labels"
            assert number >= 400
    assert not {path.name.removesuffix("_seg.nii.gz") for path, _ in found.bodies} & {"s0009", "s0328"}
    for held_out, slices in ((False, found.slices), (True, found.held_out_slices)):
        for one in slices:
            source, patient, _ = one.name.split()
            limits = {"CURVAS": patient in {"10012", "10013", "10014"}, "KiTS19": int(patient) >= 159}
            assert limits[source] == held_out, one.name


def test_a_folder_gives_all_that_is_not_held_out(starter_folder: Path) -> None:
    """Cases from 159 on, subjects s0009 and s0328 and three patients of CURVAS are left out."""
    found = find_starter_data(starter_folder)
    check_split(found)
    names = [f"{path.parent.name}/{path.name}" for path in found.label_maps]
    assert names == [
        "kits19-labels/case_00003.nii.gz",
        "kits19-labels/case_00158.nii.gz",
        "kits23-labels/case_00400.nii.gz",
    ]
    assert [path.name for path, _ in found.bodies] == ["s0001_seg.nii.gz"]
    assert found.bodies[0][1][2] == "kidney_left"
    assert found.atlas is not None
    assert found.atlas[1][1] == "right_kidney"
    assert [one.name for one in found.slices] == ["CURVAS 10001 40", "CURVAS 10002 60", "KiTS19 4 20", "KiTS19 158 30"]
    assert [one.name for one in found.held_out_slices] == ["CURVAS 10012 50", "CURVAS 10014 70", "KiTS19 160 40"]


def test_real_data_are_split(test_data: Path) -> None:
    """The real folder gives no case, subject or patient that is held out, and keeps some for validation."""
    found = find_starter_data(test_data)
    check_split(found)
    assert found.label_maps
    assert found.bodies
    assert found.held_out_slices


def test_slices_have_the_labels_that_are_known(starter_folder: Path) -> None:
    """CURVAS's other organs are background, and only KiTS19 labels tumours and has known pixels."""
    found = find_starter_data(starter_folder)
    curvas, kits = found.slices[0], found.slices[2]
    assert set(np.unique(curvas.labels).tolist()) == {0, 1}
    assert (curvas.pixel_mm, curvas.tumours_labelled) == (None, False)
    assert set(np.unique(kits.labels).tolist()) == {0, 1, 2}
    assert (kits.pixel_mm, kits.tumours_labelled) == (0.9, True)
    assert {one.image.dtype for one in found.slices} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("given", [True, False])
def test_what_is_missing_is_listed(tmp_path: Path, *, given: bool) -> None:
    """No folder and an empty one give one line with each source's place, content, origin and licence."""
    with pytest.raises(KitsattnError) as refusal:
        find_starter_data(tmp_path if given else None)
    message = str(refusal.value)
    assert "\n" not in message
    assert message.startswith(
        f"{tmp_path} holds no label maps of organs" if given else "a recipe that makes scans needs --data"
    )
    for info in SOURCES_OF_DATA:
        assert f"{info.path} ({info.content}; from {info.origin}; {info.licence})" in message


def test_label_maps_of_organs_are_enough(starter_folder: Path, tmp_path: Path) -> None:
    """Without them the folder is refused, even if it has label maps of KiTS."""
    for name in (KITS19_LABELS.path, TOTALSEGMENTATOR.path):
        shutil.copytree(starter_folder / name, tmp_path / name)
    found = find_starter_data(tmp_path)
    assert (found.atlas, found.slices, found.held_out_slices) == (None, (), ())
    shutil.rmtree(tmp_path / KITS19_LABELS.path)
    assert find_starter_data(tmp_path).label_maps == ()
    shutil.copytree(starter_folder / KITS19_LABELS.path, tmp_path / KITS19_LABELS.path)
    shutil.rmtree(tmp_path / TOTALSEGMENTATOR.path)
    with pytest.raises(KitsattnError, match="holds no label maps of organs"):
        find_starter_data(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"text", None])
def test_damaged_slices_are_one_line(starter_folder: Path, tmp_path: Path, content: bytes | None) -> None:
    """A file that is empty, cut, or something else is named, with what to do."""
    shutil.copytree(starter_folder, tmp_path / "data")
    path = tmp_path / "data" / "starter" / "real-slices" / "kits19_train_slices.npz"
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(KitsattnError) as refusal:
        find_starter_data(tmp_path / "data")
    assert str(refusal.value).startswith(f"{path} does not hold the arrays images, labels, case, slice, spacing_zyx (")
    assert str(refusal.value).endswith("): copy it again")


@pytest.mark.parametrize("content", ["", "[1, 2]", json.dumps({"two": "kidney_left"})])
def test_names_that_are_no_names_are_one_line(starter_folder: Path, tmp_path: Path, content: str) -> None:
    """labels.json maps whole numbers to names."""
    shutil.copytree(starter_folder, tmp_path / "data")
    path = tmp_path / "data" / "starter" / "totalsegmentator" / "labels.json"
    path.write_text(content)
    with pytest.raises(KitsattnError, match=r"labels.json must map label values to organ names, such as"):
        find_starter_data(tmp_path / "data")
