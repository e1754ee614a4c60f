from collections.abc import Callable
from pathlib import Path

import pytest

from kitsattn.datasets.find import find_dataset
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS

Touch = Callable[..., Path]


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("image", "label"), ("images", "masks"), ("images", "segmentations")],
)
def test_two_folders(touch: Touch, images: str, labels: str) -> None:
    """Scan and label map have one name, whatever their formats; hidden and other files are left alone."""
    root = touch(
        f"{images}/b.nii.gz", f"{labels}/b.nrrd", f"{images}/A.1.MHA", f"{labels}/A.1.nii", f"{images}/._b.nii.gz",
        f"{images}/readme.txt", f"{labels}/b.zraw", "c.nii.gz",
    )  # fmt: skip
    dataset = find_dataset(root)
    assert [(case.case_id, case.image, case.labels) for case in dataset.cases] == [
        ("A.1", root / images / "A.1.MHA", root / labels / "A.1.nii"),
        ("b", root / images / "b.nii.gz", root / labels / "b.nrrd"),
    ]
    assert (dataset.name, dataset.folder, dataset.layout) == (root.name, root, "pairs")
    assert (dataset.labels, dataset.synthetic) == (KITS19_LABELS, False)
    assert (dataset.licence, dataset.citation) == ("unknown", "unknown")


@pytest.mark.parametrize("suffix", ["_seg", "_label", "_labels", "_segmentation", "_mask", "_SEG"])
def test_one_folder(touch: Touch, suffix: str) -> None:
    """Label maps are told from scans by the end of their name."""
    root = touch("a.nii.gz", f"a{suffix}.nii.gz", "b_2.mha", f"b_2{suffix}.nrrd", "notes_seg.txt")
    assert [(case.case_id, case.labels) for case in find_dataset(root).cases] == [
        ("a", root / f"a{suffix}.nii.gz"),
        ("b_2", root / f"b_2{suffix}.nrrd"),
    ]


def test_links_to_nothing_are_cases(touch: Touch) -> None:
    """What was not fetched is counted, so that reading it fails; so are links in the other layouts."""
    root = touch("images/a.nii.gz", "labels/a.nii.gz", "@eaDir/c.nii.gz", "Thumbs.db")
    for folder in ("images", "labels"):
        (root / folder / "b.nii.gz").symlink_to(root / "gone")
    assert [(case.case_id, case.labels) for case in find_dataset(root).cases] == [
        ("a", root / "labels" / "a.nii.gz"),
        ("b", root / "labels" / "b.nii.gz"),
    ]

    kits = touch("k/case_00000/imaging.nii.gz", "k/case_00001/imaging.nii.gz") / "k"
    (kits / "case_00001" / "segmentation.nii.gz").symlink_to(root / "gone")
    assert [case.labels for case in find_dataset(kits).cases] == [None, kits / "case_00001" / "segmentation.nii.gz"]
    (kits / "case_00002").symlink_to(root / "gone")
    with pytest.raises(KitsattnError, match="case_00002"):
        find_dataset(kits)


def test_a_scan_without_labels_is_a_test_case(touch: Touch) -> None:
    """As in every layout; where no scan has any, the layout must be named."""
    assert find_dataset(touch("a.nii.gz", "b.nii.gz", "b_seg.nii.gz")).cases[0].labels is None
    assert find_dataset(touch("images/a.nii.gz"), layout="pairs").cases[0].labels is None


def test_the_description_wins(touch: Touch) -> None:
    """Name, labels, licence and citation of the file in the folder."""
    root = touch("a.nii.gz", "a_seg.nii.gz")
    (root / "kitsattn-dataset.json").write_text(
        '{"name": "ours", "labels": {"background": 0, "kidney": 1}, "licence": "CC0", "citation": "us"}'
    )
    dataset = find_dataset(root)
    assert (dataset.name, dataset.labels) == ("ours", {"background": 0, "kidney": 1})
    assert (dataset.licence, dataset.citation) == ("CC0", "us")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.nii", "b_seg.nii", "a_seg.nii"], r"1 of 2 label maps have no scan of their name \(b_seg\.nii\)"),
        (["images/a.nii", "labels/a.nii", "labels/b.nii"], r"1 of 2 label maps have no scan of their name \(b\.nii\)"),
        (["a.nii", "a_mask.nii", "a_seg.nii"], r"a_mask\.nii and .*a_seg\.nii are both label maps of .*a\.nii"),
        (["images/a.nii", "images/a.mha", "labels/a.nii"], r"images/a\.mha and .*images/a\.nii are both called a"),
        (["images/a.nii", "labels/a.nii", "masks/a.nii"], "holds both labels and masks: leave one of them there"),
        (["images/a.nii", "image/a.nii", "labels/a.nii"], "holds both images and image: leave one of them there"),
        (["images/a.txt", "labels/a.nii"], r"holds no scan: expected images/NAME\.nii\.gz"),
    ],
)
def test_what_does_not_pair_is_refused(touch: Touch, names: list[str], reason: str) -> None:
    """A label map without its scan, and two files for one case, are named."""
    with pytest.raises(KitsattnError, match=reason):
        find_dataset(touch(*names))
