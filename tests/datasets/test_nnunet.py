import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kitsattn.datasets.find import find_dataset
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS, KITS23_LABELS

Touch = Callable[..., Path]

KITS = {"background": 0, "kidney": 1, "tumor": 2}
VERSION_2 = {"channel_names": {"0": "CT"}, "labels": KITS, "numTraining": 1, "file_ending": ".nii.gz"}
VERSION_1 = {"modality": {"0": "ct"}, "labels": {"0": "background", "1": "Kidney", "2": "Tumor"}}
PAIR = ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"]
DATASET = "Dataset220_KiTS2023"


@pytest.fixture
def raw(touch: Touch) -> Callable[..., Path]:
    """Make a raw data set of empty files with these settings in its dataset.json."""

    def make(settings: dict[str, Any], *names: str) -> Path:
        folder = touch(*(f"{DATASET}/{name}" for name in names), f"{DATASET}/dataset.json") / DATASET
        (folder / "dataset.json").write_text(json.dumps(settings))
        return folder

    return make


@pytest.mark.parametrize("settings", [VERSION_2, VERSION_1], ids=["version 2", "version 1"])
def test_cases_are_found(raw: Callable[..., Path], settings: dict[str, Any]) -> None:
    """Images and label maps belong together by name; test images and hidden files are left alone."""
    names = ["imagesTr/b_7_0000.nii.gz", "labelsTr/b_7.nii.gz", "imagesTr/._a_0000.nii.gz", "imagesTs/c_0000.nii.gz"]
    folder = raw(settings, *PAIR, *names)
    dataset = find_dataset(folder)
    assert [(case.case_id, case.image, case.labels) for case in dataset.cases] == [
        ("a", folder / "imagesTr" / "a_0000.nii.gz", folder / "labelsTr" / "a.nii.gz"),
        ("b_7", folder / "imagesTr" / "b_7_0000.nii.gz", folder / "labelsTr" / "b_7.nii.gz"),
    ]
    assert (dataset.name, dataset.folder, dataset.layout) == (DATASET, folder, "nnunet")
    assert (dataset.labels, dataset.synthetic) == (KITS19_LABELS, False)
    assert (dataset.licence, dataset.citation) == ("unknown", "unknown")


def test_another_file_ending(raw: Callable[..., Path]) -> None:
    """file_ending says which files count."""
    names = ["imagesTr/a_0000.mha", "labelsTr/a.mha", "labelsTr/a.nii.gz", "imagesTr/b_0001.nii.gz"]
    folder = raw({**VERSION_2, "file_ending": ".mha"}, *names)
    assert [case.labels for case in find_dataset(folder).cases] == [folder / "labelsTr" / "a.mha"]


def test_an_image_without_labels_is_a_test_case(raw: Callable[..., Path]) -> None:
    """As in every layout."""
    cases = find_dataset(raw(VERSION_2, *PAIR, "imagesTr/b_0000.nii.gz")).cases
    assert [case.labels is None for case in cases] == [False, True]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, KITS23_LABELS),
        ({"background": 0, "Kidney": [3, 1, 2], "Masses": [3, 2], "Tumor": [2]}, KITS23_LABELS),
        ({"background": 0, "kidney": [1, 2], "tumor": 2}, KITS19_LABELS),
        ({"background": 0, "vessel": 1}, {"background": 0, "vessel": 1}),
    ],
)
def test_labels_are_understood(raw: Callable[..., Path], labels: dict[str, Any], expected: dict[str, int]) -> None:
    """The regions of KiTS are traced back to their classes; other classes keep their names."""
    assert find_dataset(raw({**VERSION_2, "labels": labels}, *PAIR)).labels == expected


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "regions instead of classes.*only those of KiTS"),
        ({"background": 0, "kidney": [1, "2"], "tumor": 2}, "regions instead of classes.*only those of KiTS"),
        ({**KITS, "ignore": 3}, "has an ignore label, and every voxel is trained on"),
        ({"background": 0, "kidney": 1, "tumor": 3}, "labels must be numbered"),
        ({"background": 0, "tumor": 1, "kidney": 2}, "labels must call 1 kidney"),
        ({"background": 0, "kidney": 1.5}, "labels must be whole numbers"),
        ({"0": "background", "one": "kidney"}, "labels must be whole numbers"),
        ({"0": "background", "1": "tumor", "2": "Tumor"}, "two labels of .* have one name"),
        (["kidney"], "has no labels, such as"),
        (None, "has no labels, such as"),
    ],
)
def test_labels_that_are_not_understood_are_refused(raw: Callable[..., Path], labels: Any, reason: str) -> None:
    """The line names dataset.json; a description of one's own beside it settles the matter."""
    folder = raw({**VERSION_2, "labels": labels}, *PAIR)
    with pytest.raises(KitsattnError, match=rf"dataset\.json.*{reason}"):
        find_dataset(folder)
    (folder / "kitsattn-dataset.json").write_text(json.dumps({"labels": dict(KITS23_LABELS)}))
    assert find_dataset(folder).labels == KITS23_LABELS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"channel_names": {"0": "CT", "1": "PET"}}, "has the channels CT, PET: exactly one is read"),
        ({"channel_names": {"0": "T2"}}, "has the channels T2: exactly one is read, and it must be called CT"),
        ({"channel_names": {}}, "has the channels none"),
        ({"channel_names": "CT"}, "names no channels: add channel_names"),
        ({"file_ending": ".png"}, r"file_ending is '\.png': convert the files"),
        ({"dataset": []}, "dataset must be an object with a key for each case"),
        ({"dataset": {"a": {"images": ["x"]}}}, r"dataset\.a: the key 'label' is missing"),
        ({"dataset": {"a": {"images": ["x", "y"], "label": "z"}}}, r"dataset\.a has 2 images"),
        ({"dataset": {"a": {"images": ["x"], "label": "z"}}}, "x does not exist, and .* lists it for a"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(
    raw: Callable[..., Path], change: dict[str, Any], reason: str
) -> None:
    """One CT channel, in a format that is read, with files that are there."""
    with pytest.raises(KitsattnError, match=reason):
        find_dataset(raw({**VERSION_2, **change}, *PAIR))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            [*PAIR, "imagesTr/a_0001.nii.gz"],
            r"a_0001\.nii\.gz: nnU-Net calls an image of one channel CASE_0000\.nii\.gz",
        ),
        (["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"], r"a\.nii\.gz: nnU-Net calls an image of one channel"),
        ([*PAIR, "labelsTr/b.nii.gz"], r"1 of 2 label maps have no image in imagesTr \(b\.nii\.gz\)"),
        (["labelsTr/a.nii.gz"], r"imagesTr holds no image: expected files such as CASE_0000\.nii\.gz"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(raw: Callable[..., Path], names: list[str], reason: str) -> None:
    """A second channel, a missing _0000 and label maps without images are named."""
    with pytest.raises(KitsattnError, match=reason):
        find_dataset(raw(VERSION_2, *names))


def test_case_ids_that_become_one_file_are_refused(raw: Callable[..., Path]) -> None:
    """Prepared files are named after them, also on systems that do not tell A from a."""
    entry = {"images": [PAIR[0]], "label": PAIR[1]}
    with pytest.raises(KitsattnError, match="are both called a"):
        find_dataset(raw({**VERSION_2, "dataset": {"a": entry, "A": entry}}, *PAIR))


def test_missing_settings_are_named(touch: Touch) -> None:
    """Without dataset.json nobody knows what the labels are."""
    with pytest.raises(KitsattnError, match=r"dataset\.json does not exist, and nnU-Net's raw layout needs it"):
        find_dataset(touch(*PAIR))


def test_files_that_lie_elsewhere(raw: Callable[..., Path], touch: Touch) -> None:
    """Version 2's `dataset` names the files of each case; imagesTr is then not looked at."""
    root = touch("far/b.nii.gz", "far/b_seg.nii.gz")
    listed = {
        "b": {"images": ["../far/b.nii.gz"], "label": str(root / "far" / "b_seg.nii.gz")},
        "a": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"},
    }
    folder = raw({**VERSION_2, "dataset": listed}, *PAIR, "imagesTr/unlisted.nii.gz")
    assert [(case.case_id, case.image, case.labels) for case in find_dataset(folder).cases] == [
        ("a", folder / "imagesTr/a_0000.nii.gz", folder / "labelsTr/a.nii.gz"),
        ("b", folder / "../far/b.nii.gz", root / "far" / "b_seg.nii.gz"),
    ]


@pytest.mark.parametrize(
    ("settings", "licence", "citation"),
    [
        ({"licence": "CC0", "reference": "us 2024"}, "CC0", "us 2024"),
        ({"licence": "", "license": "CC BY 4.0", "reference": "none"}, "CC BY 4.0", "unknown"),
        ({"license": 3}, "unknown", "unknown"),
    ],
)
def test_licence_and_reference_are_taken_over(
    raw: Callable[..., Path], settings: dict[str, Any], licence: str, citation: str
) -> None:
    """Both spellings of licence are read; what says nothing stays unknown; one's own description wins."""
    folder = raw({**VERSION_2, **settings}, *PAIR)
    dataset = find_dataset(folder)
    assert (dataset.licence, dataset.citation) == (licence, citation)
    own = {"name": "ours", "licence": "CC0-1.0", "citation": "me", "synthetic": True}
    (folder / "kitsattn-dataset.json").write_text(json.dumps(own))
    dataset = find_dataset(folder)
    assert (dataset.name, dataset.licence, dataset.citation, dataset.synthetic) == ("ours", "CC0-1.0", "me", True)
