"""What is prepared once, and what is opened of it."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kitsattn.errors import KitsattnError
from kitsattn.preprocess.store import open_dataset
from kitsattn.synthesis import prepare
from kitsattn.synthesis.data import find_starter_data
from kitsattn.synthesis.painted import thin_labels
from kitsattn.synthesis.prepare import PLAN, PreparedMaterial, plan_file, prepare_material
from kitsattn.train.starter import describe_sources, made_dataset
from kitsattn.volume.nifti import read_labels
from kitsattn.workspace import Workspace


def root_of(material: PreparedMaterial) -> Path:
    """Return the workspace's folder."""
    return material.folder.parents[1]


@pytest.fixture
def copied(material: PreparedMaterial, tmp_path: Path) -> PreparedMaterial:
    """Prepared material in a workspace that the test may change."""
    shutil.copytree(root_of(material), tmp_path / "workspace")
    workspace = Workspace(tmp_path / "workspace")
    return replace(
        material,
        folder=workspace.preprocessed / material.folder.name,
        painted=workspace.preprocessed / material.painted.name,
    )


def written(folder: Path) -> Mapping[Path, tuple[int, int]]:
    """Return each prepared file with its size and time; descriptions and logs, which each call writes, are left out."""
    files = [path for path in folder.rglob("*") if path.suffix in {".gz", ".npz", ".b2nd"}]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_only_what_may_be_trained_on_is_prepared(material: PreparedMaterial, starter_folder: Path) -> None:
    """Each body, phantom, kidney and slice comes from a file that is not held out."""
    opened = material.open()
    assert [body.name for body in opened.bodies] == ["s0001", "spl"]
    assert sorted(path.name for path in (material.folder / "bodies").iterdir()) == ["s0001.npz", "spl.npz"]
    used = ("kits19-labels/case_00003", "kits19-labels/case_00158", "starter/kits23-labels/case_00400")
    assert len(opened.painted) == len(used)
    for name, source in zip(used, open_dataset(material.painted).sources.values(), strict=True):
        wanted = thin_labels(read_labels(starter_folder / f"{name}.nii.gz"))
        np.testing.assert_array_equal(read_labels(source.labels).array, wanted.array)
    assert len(opened.kidneys) == 2 * len(used)
    assert {one.name for one in opened.slices} == {
        "CURVAS 10001 40",
        "CURVAS 10002 60",
        "KiTS19 4 20",
        "KiTS19 158 30",
    }


def test_the_atlas_is_enlarged(material: PreparedMaterial) -> None:
    """Its header says 4 x 3 x 3 mm; its organs say 1.5 times as much."""
    spacings = {body.name: body.spacing_mm for body in material.open().bodies}
    assert spacings == {"s0001": (3.0, 1.5, 1.5), "spl": (6.0, 4.5, 4.5)}


def test_a_second_call_does_nothing_anew(material: PreparedMaterial, starter_folder: Path) -> None:
    """No file is written again, and no work is reported."""
    before = written(root_of(material))
    work: list[tuple[str, int]] = []
    again = prepare_material(
        find_starter_data(starter_folder),
        Workspace(root_of(material)),
        progress=lambda label, _, total, /: work.append((label, total)),
    )
    assert (again.folder, again.painted) == (material.folder, material.painted)
    assert written(root_of(material)) == before
    assert {total for label, total in work if label in {"prepare bodies", "cut out kidneys", "paint phantoms"}} == {0}


def test_what_is_missing_is_prepared_again(copied: PreparedMaterial, starter_folder: Path) -> None:
    """A file that was deleted comes back, to the same content; the others stay."""
    path = copied.folder / "bodies" / "s0001.npz"
    before, others = copied.open().bodies[0], written(root_of(copied))
    path.unlink()
    prepare_material(find_starter_data(starter_folder), Workspace(root_of(copied)))
    after = copied.open().bodies[0]
    np.testing.assert_array_equal(after.tissues, before.tissues)
    np.testing.assert_array_equal(after.skin_mm, before.skin_mm)
    assert {one: seen for one, seen in written(root_of(copied)).items() if one != path} == {
        one: seen for one, seen in others.items() if one != path
    }


def test_a_body_that_is_not_in_the_folder_is_not_drawn_from(copied: PreparedMaterial) -> None:
    """A body that an earlier call prepared, and that is held out since, stays on the disk and out of the training."""
    bodies = copied.folder / "bodies"
    shutil.copy(bodies / "s0001.npz", bodies / "s0328.npz")
    assert [body.name for body in copied.open().bodies] == ["s0001", "spl"]


def test_data_that_grow_or_shrink_are_followed(copied: PreparedMaterial, starter_folder: Path) -> None:
    """A new label map adds its phantom and kidneys without a change to the others; one that is gone is not drawn."""
    found = find_starter_data(starter_folder)
    fewer = replace(found, label_maps=found.label_maps[1:])
    smaller = prepare_material(fewer, Workspace(root_of(copied)))
    assert [case.case_id for case in smaller.open().painted] == ["case_00158", "case_00400"]
    assert len(smaller.open().kidneys) == 4
    first = found.label_maps[0].with_suffix("").with_suffix("").name
    shutil.rmtree(copied.folder.parents[1] / "raw" / copied.painted.name / first)
    shutil.rmtree(copied.painted / "cases" / first)
    (copied.folder / "kidneys" / f"{first}.npz").unlink()
    before = written(root_of(copied))
    grown = prepare_material(found, Workspace(root_of(copied)))
    assert [case.case_id for case in grown.open().painted] == ["case_00003", "case_00158", "case_00400"]
    assert len(grown.open().kidneys) == 6
    assert {path: seen for path, seen in written(root_of(copied)).items() if path in before} == before


def test_without_label_maps_of_kits_phantoms_follow_no_patient(
    starter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are painted once, whole; all that is drawn from may then be used for any purpose."""
    monkeypatch.setattr(prepare, "_PHANTOMS", 1)
    monkeypatch.setattr(prepare, "_PHANTOM_SHAPE", (8, 240, 240))
    found = find_starter_data(starter_folder)
    free = replace(found, label_maps=(), atlas=None, slices=())
    made = prepare_material(free, Workspace(tmp_path))
    opened = made.open()
    assert [case.case_id for case in opened.painted] == ["case_00000"]
    assert opened.kidneys == []
    assert made_dataset(made).licence == "CC BY 4.0"
    sources = [(source.name, source.count, source.unit, source.licence) for source in describe_sources(made)]
    assert sources[1:] == [("starter-phantoms", 1, "procedural phantoms", "CC0-1.0")]
    before = written(tmp_path)
    prepare_material(free, Workspace(tmp_path))
    assert written(tmp_path) == before


@pytest.mark.parametrize("name", ["bodies/s0001.npz", "kidneys/case_00003.npz"])
def test_damaged_material_is_one_line(copied: PreparedMaterial, name: str) -> None:
    """It names the file and says to delete it."""
    path = copied.folder / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(KitsattnError) as refusal:
        copied.open()
    message = str(refusal.value)
    assert message.startswith(f"{path} is damaged")
    assert message.endswith("delete it, and the training prepares it again")
    assert "\n" not in message


def test_the_plan_for_real_scans_is_written(material: PreparedMaterial) -> None:
    """Painted cases were prepared with it."""
    assert plan_file(Workspace(root_of(material))).is_file()
    assert open_dataset(material.painted).plan == PLAN


def test_names_without_kidneys_end_the_preparation(starter_folder: Path, tmp_path: Path) -> None:
    """A label map of organs that names no kidney is refused before anything is painted."""
    found = find_starter_data(starter_folder)
    wrong = replace(found, bodies=((found.bodies[0][0], {1: "liver"}),))
    with pytest.raises(KitsattnError, match=r"include no kidney_left or kidney_right: check labels\.json"):
        prepare_material(wrong, Workspace(tmp_path))
    assert not (tmp_path / "raw").exists()
