"""One cohort in every layout that `kitsattn preprocess` knows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import Result

from kitsattn.datasets.find import LAYOUTS
from kitsattn.preprocess.store import open_dataset

Command = Callable[..., Result]
Voxels = dict[str, tuple[NDArray[np.float32], NDArray[np.uint8]]]

CASES = ("case_00000", "case_00001")
IMAGE = {
    "kits19": "data/{}/imaging.nii.gz",
    "kits21": "kits21/data/{}/imaging.nii.gz",
    "kits23": "dataset/{}/imaging.nii.gz",
    "nnunet": "imagesTr/{}_0000.nii.gz",
    "pairs": "{}.nii.gz",
}
LABELS = {
    "kits19": "data/{}/segmentation.nii.gz",
    "kits21": "kits21/data/{}/aggregated_MAJ_seg.nii.gz",
    "kits23": "dataset/{}/segmentation.nii.gz",
    "nnunet": "labelsTr/{}.nii.gz",
    "pairs": "{}_seg.nii.gz",
}
SETTINGS = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2},
    "file_ending": ".nii.gz",
    "license": "CC0",
    "reference": "us",
}
CYST = {"background": 0, "kidney": 1, "tumour": 2, "cyst": 3}
LICENCE = {"kits19": "CC BY-NC-SA 4.0", "kits21": "CC BY-NC-SA 4.0", "kits23": "CC BY-NC-SA 4.0", "nnunet": "CC0"}


def _lay_out(kits_folder: Path, layout: str) -> Path:
    """Copy two painted cases into a folder called after the layout."""
    for case in CASES:
        for name, places in (("imaging.nii.gz", IMAGE), ("segmentation.nii.gz", LABELS)):
            target = Path(layout) / places[layout].format(case)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(kits_folder / case / name, target)
    if layout == "nnunet":
        (Path(layout) / "dataset.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    return Path(layout)


def _voxels(folder: Path) -> Voxels:
    prepared = open_dataset(folder)
    cases = [prepared.open_case(case_id) for case_id in prepared.cases]
    return {
        case.case_id: (
            case.read_slices(range(case.shape[0])),
            np.stack([case.read_labels(z) for z in range(case.shape[0])]),
        )
        for case in cases
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, kits_folder: Path, command: Command) -> Voxels:
    """The voxels of the two cases as they are prepared from a bare KiTS19 folder."""
    root = tmp_path_factory.mktemp("expected")
    for case in CASES:
        shutil.copytree(kits_folder / case, root / "cohort" / case)
    result = command("preprocess", root / "cohort", "--workspace", root, "--workers", "1")
    assert result.exit_code == 0, result.output
    return _voxels(root / "preprocessed" / "cohort")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_prepares_the_same_voxels(
    command: Command, kits_folder: Path, expected: Voxels, layout: str
) -> None:
    """The layout is recognised and said; it decides labels and licence, and changes nothing about the cases."""
    raw = _lay_out(kits_folder, layout)
    result = command("preprocess", raw, "--workspace", "home", "--workers", "1")
    assert result.exit_code == 0, result.output
    inner = Path(IMAGE[layout]).parent.parent if layout.startswith("kits") else Path()
    assert f"layout: {layout} (2 cases in {raw / inner})\n" in result.stderr

    folder = Path("home") / "preprocessed" / layout
    prepared = open_dataset(folder)
    assert prepared.labels == (
        CYST if layout in {"kits21", "kits23", "nnunet"} else {"background": 0, "kidney": 1, "tumour": 2}
    )
    assert prepared.licence == LICENCE.get(layout, "unknown")
    for case in CASES:
        source = prepared.sources[case]
        assert source.image == (raw / IMAGE[layout].format(case)).resolve()
        assert source.labels == (raw / LABELS[layout].format(case)).resolve()

    found = _voxels(folder)
    assert list(found) == list(CASES)
    for case in CASES:
        (image, labels), (expected_image, expected_labels) = found[case], expected[case]
        np.testing.assert_array_equal(image, expected_image)
        np.testing.assert_array_equal(labels, expected_labels)
        assert set(np.unique(labels)) == {0, 1, 2}


def test_a_layout_can_be_named(command: Command, kits_folder: Path) -> None:
    """--layout goes before what is recognised; a wrong name, and a layout that is not there, are refused."""
    raw = _lay_out(kits_folder, "kits19")
    result = command("preprocess", raw, "--layout", "kits23", "--workspace", "home", "--workers", "1")
    assert result.exit_code == 0
    assert "layout: kits23 (2 cases" in result.stderr
    assert open_dataset(Path("home") / "preprocessed" / "kits19").labels == CYST

    refused = command("-q", "preprocess", raw, "--layout", "nnunet")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"error: {raw / 'dataset.json'} does not exist")
    assert command("preprocess", raw, "--layout", "bids").exit_code == 2
