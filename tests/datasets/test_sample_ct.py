"""The CT that ships with the package."""

import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from kitsattn.datasets import sample_ct
from kitsattn.datasets.sample_ct import CITATION, LICENCE, find_sample
from kitsattn.errors import KitsattnError
from kitsattn.volume.formats import read_labels, read_scan
from kitsattn.volume.hu import check_hu

PROJECT = Path(__file__).parents[2]
FIRST_SLICE = 75
"""The lowest slice of the published scan that is kept."""


def test_the_sample_ships_with_the_package_and_is_small() -> None:
    """Scan, labels and attribution are files of the installed package, 2 MB in all."""
    folder = resources.files("kitsattn.datasets") / "sample"
    sizes = {one.name: len(one.read_bytes()) for one in folder.iterdir()}
    assert sizes.keys() == {"ATTRIBUTION.md", "ct.nii.gz", "labels.nii.gz"}
    assert sum(sizes.values()) <= 2_000_000
    sample = find_sample()
    assert {sample.scan.name, sample.labels.name} == {"ct.nii.gz", "labels.nii.gz"}


def test_scan_and_labels_share_a_grid() -> None:
    """110 slices of 119 x 119 voxels of 1.5 mm, in HU, the files in RAS; units, sform and qform are stated."""
    sample = find_sample()
    scan, labels = read_scan(sample.scan), read_labels(sample.labels)
    assert check_hu(scan) is scan
    assert scan.notes == labels.notes == ()
    assert scan.geometry == labels.geometry
    assert scan.geometry.shape == (110, 119, 119)
    assert scan.geometry.spacing_mm == pytest.approx((1.5, 1.5, 1.5))
    assert scan.array.dtype == np.int16
    assert (scan.array.min(), scan.array.max()) == (-1024, 1500)
    for path in (sample.scan, sample.labels):
        image: Any = nib.load(path)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        # The lowest slice of the published scan is at z = 136 mm, its first voxel at x = -111.3 and y = 10.7 mm.
        np.testing.assert_allclose(image.affine[:3, 3], [-111.3252, 10.6748, 136 + FIRST_SLICE * 1.5], atol=1e-3)
        assert image.header.get_xyzt_units()[0] == "mm"


def test_both_kidneys_are_labelled_and_nothing_else() -> None:
    """100 and 106 ml, one on each side, at least 40 mm above the lowest slice."""
    labels = read_labels(find_sample().labels)
    assert np.unique(labels.array).tolist() == [0, 1]
    middle = labels.geometry.shape[2] // 2
    sides = [np.count_nonzero(side) * labels.geometry.voxel_ml for side in np.split(labels.array, [middle], axis=2)]
    assert sides == pytest.approx([99.9, 106.1], abs=0.1)
    lowest = int(np.flatnonzero(labels.array.any(axis=(1, 2)))[0])
    assert lowest * labels.geometry.spacing_mm[0] >= 40


def test_the_attribution_names_source_licence_and_changes() -> None:
    """CC BY 4.0 demands all three."""
    text = (find_sample().scan.parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    words = " ".join(text.replace(">", " ").split())
    assert CITATION in words
    assert LICENCE in words
    assert "https://creativecommons.org/licenses/by/4.0/" in words
    changes = words.partition("## Changes")[2]
    for change in ("lowest 75 of 185 slices", "clipped to [-1024, 1500] HU", "set to -1000 HU", "became 1 (kidney)"):
        assert change in changes


def test_a_missing_file_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It names the file and says what to do."""
    monkeypatch.setattr(sample_ct, "_FOLDER", tmp_path)
    with pytest.raises(KitsattnError, match=r"ct\.nii\.gz is missing: install kitsattn again"):
        find_sample()


@pytest.mark.parametrize("layout", ["label map", "masks"])
def test_the_script_makes_the_same_files(test_data: Path, tmp_path: Path, layout: str) -> None:
    """From the subject's folder as it is published, with one mask per structure, or from one label map."""
    source = test_data / "starter" / "totalsegmentator"
    if not source.is_dir():
        pytest.skip("needs subject s0009 of TotalSegmentator")
    segmentation = source / "s0009_seg.nii.gz"
    if layout == "masks":
        image: Any = nib.load(segmentation)
        values = np.asarray(image.dataobj)
        segmentation = tmp_path / "segmentations"
        segmentation.mkdir()
        for name, value in {"right": 2, "left": 3, "cyst_left": 23, "cyst_right": 24}.items():
            mask = nib.Nifti1Image((values == value).astype(np.uint8), image.affine)
            nib.save(mask, segmentation / f"kidney_{name}.nii.gz")
    script = PROJECT / "docs" / "generate_sample.py"
    words = (script, source / "s0009_ct.nii.gz", segmentation, "--out", tmp_path)
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)
    sample = find_sample()
    for shipped in (sample.scan, sample.labels):
        old, new = (nib.Nifti1Image.from_filename(path) for path in (shipped, tmp_path / shipped.name))
        assert old.header == new.header
        # The compressed bytes depend on the release of zlib.
        np.testing.assert_array_equal(np.asarray(old.dataobj), np.asarray(new.dataobj))
