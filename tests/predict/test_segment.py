"""Prediction from Python."""

import logging
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch

import kitsattn
from kitsattn.checkpoint.file import Checkpoint, load_checkpoint, save_checkpoint
from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.models import build_model, model_entry
from kitsattn.notices import SYNTHETIC_MODEL_NOTICE
from kitsattn.predict.cases import PredictionCase
from kitsattn.predict.infer import Ensemble, Inference
from kitsattn.predict.run import predict_cases
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that nobody trained, but that finds every class somewhere."""
    golden = load_checkpoint(GOLDEN)
    torch.manual_seed(0)
    config = model_entry(golden.header.model).read_config({**golden.header.config, "aspp_channels": 16}, "test")
    model = build_model(golden.header.model, config)
    for _ in range(100):
        model(torch.randn(2, 3, 64, 64))  # the normalisations fit their input
    model.eval()
    with torch.no_grad():
        logits = model(torch.randn(4, 3, 64, 64))
        model.get_parameter("decoder.classify.bias").sub_(logits.mean(dim=(0, 2, 3)))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    header = replace(golden.header, config=to_json(config))
    save_checkpoint(path, Checkpoint(header, model.state_dict(), {}))
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Ensemble:
    """The same, loaded."""
    return kitsattn.load_model(checkpoint, device="cpu", precision="fp32")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A scan with scaled values on a grid that is neither isotropic nor in any program's usual order."""
    generator = np.random.default_rng(0)
    array = np.full((9, 40, 44), -1000, np.int16)
    array[:, 3:37, 3:41] = generator.normal(-95, 10, (9, 34, 38))
    array[:, 7:33, 7:37] = generator.normal(60, 60, (9, 26, 30))
    write_nifti(tmp_path / "scan.nii.gz", Volume(array, Geometry.axial(array.shape, (4.0, 2.0, 2.5))), axes="PIR")
    return tmp_path / "scan.nii.gz"


def _values(labels: Any) -> np.ndarray:
    """Return the voxels in nibabel's order of axes."""
    if isinstance(labels, SimpleITK.Image):
        return SimpleITK.GetArrayFromImage(labels).T
    return np.asarray(labels.dataobj)


@pytest.fixture
def expected(model: Ensemble, path: Path) -> nib.Nifti1Image:
    """What `kitsattn predict --no-postprocess` writes."""
    target = path.with_name("labels.nii.gz")
    predict_cases(model, [PredictionCase(name="scan", source=path, target=target)], rules=None)
    image = nib.load(target)
    assert isinstance(image, nib.Nifti1Image)
    assert len(np.unique(np.asarray(image.dataobj))) > 1
    return image


def test_a_path_gives_what_the_command_writes(
    model: Ensemble, checkpoint: Path, path: Path, expected: nib.Nifti1Image
) -> None:
    """As an image of nibabel, also where the path is text and the model a file."""
    for named, network in ((path, model), (str(path), checkpoint)):
        labels = kitsattn.segment(named, network, rules=None)
        assert isinstance(labels, nib.Nifti1Image)
        np.testing.assert_array_equal(labels.affine, expected.affine)
        if network is model:  # the file takes the precision that suits the machine
            np.testing.assert_array_equal(_values(labels), _values(expected))
        assert labels.get_data_dtype() == np.uint8


def test_the_shipped_model_is_the_default(shipped_folder: Path, path: Path) -> None:
    """`segment(image)` does what it does with the model that is loaded by name."""
    model = kitsattn.load_model("starter")
    assert model.paths == (shipped_folder / "starter.safetensors",)
    by_name = _values(kitsattn.segment(path, model, rules=None))
    np.testing.assert_array_equal(_values(kitsattn.segment(path, rules=None)), by_name)
    np.testing.assert_array_equal(_values(kitsattn.segment(path, "starter", rules=None)), by_name)


@pytest.mark.parametrize("kind", ["lazy", "memory", "float", "fourth axis", "pair"])
def test_an_image_of_nibabel_gives_one(model: Ensemble, path: Path, expected: nib.Nifti1Image, kind: str) -> None:
    """Read lazily with its slope, in memory, with another type; what the image was given since counts."""
    image: Any = nib.load(path)
    if kind == "lazy":
        raw = np.asarray(image.dataobj)
        image = nib.Nifti1Image(((raw.astype(np.int32) + 1000) * 2).astype(np.int16), image.affine)
        image.header.set_slope_inter(0.5, -1000)
        nib.save(image, path.with_name("scaled.nii"))
        image = nib.load(path.with_name("scaled.nii"))
    elif kind == "memory":
        image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    elif kind == "float":
        image = nib.Nifti1Image(image.get_fdata(), image.affine)
    elif kind == "fourth axis":
        image = nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)
    else:
        image = nib.Nifti1Pair(np.asarray(image.dataobj), image.affine)
    labels = kitsattn.segment(image, model, rules=None)
    assert isinstance(labels, nib.Nifti1Image)
    assert labels.shape == image.shape
    np.testing.assert_allclose(labels.affine, image.affine, atol=1e-6)
    np.testing.assert_array_equal(_values(labels).reshape(expected.shape), _values(expected))


def test_an_image_of_simpleitk_gives_one(model: Ensemble, path: Path, expected: nib.Nifti1Image) -> None:
    """On its own grid, and the image itself is left as it was."""
    image = SimpleITK.ReadImage(str(path))
    before = SimpleITK.GetArrayFromImage(image)
    labels = kitsattn.segment(image, model, rules=None)
    assert isinstance(labels, SimpleITK.Image)
    assert labels.GetPixelID() == SimpleITK.sitkUInt8
    for read in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(labels, read)() == getattr(image, read)()
    np.testing.assert_array_equal(_values(labels), _values(expected))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), before)


def test_threads_may_share_a_model(model: Ensemble, path: Path, expected: nib.Nifti1Image) -> None:
    """Four at a time, each with the result of one alone."""
    with ThreadPoolExecutor(4) as pool:
        for labels in pool.map(lambda _: kitsattn.segment(path, model, rules=None), range(4)):
            np.testing.assert_array_equal(_values(labels), _values(expected))


def test_the_rules_of_the_command_are_the_default(model: Ensemble, path: Path) -> None:
    """Specks of a network that nobody trained go."""
    raw, kept = _values(kitsattn.segment(path, model, rules=None)), _values(kitsattn.segment(path, model))
    assert (kept > 0).sum() < (raw > 0).sum()


def test_a_locator_is_a_file_or_a_loaded_model(model: Ensemble, checkpoint: Path, path: Path) -> None:
    """A scan of 36 mm is predicted whole with either; a fast prediction has no use for one."""
    plain = _values(kitsattn.segment(path, model))
    for locator in (checkpoint, model):
        np.testing.assert_array_equal(_values(kitsattn.segment(path, model, locator=locator)), plain)
    with pytest.raises(KitsattnError, match="leave out either `fast` or the locator"):
        kitsattn.segment(path, model, locator=model, inference=Inference(fast=True))


def test_warnings_are_logged(checkpoint: Path, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of how the scan was read, and of what the model was trained on."""
    caplog.set_level(logging.WARNING, logger="kitsattn")
    image: Any = nib.load(path)
    values, moved = np.asarray(image.dataobj), image.affine.copy()
    moved[0, 3] += 5
    image = nib.Nifti1Image(values, image.affine, image.header)
    image.set_sform(moved, code=1)
    nib.save(image, path)
    kitsattn.segment(path, checkpoint)
    assert "the sform was used" in caplog.text
    assert SYNTHETIC_MODEL_NOTICE in caplog.text


def test_wrong_calls_are_told(model: Ensemble, path: Path) -> None:
    """A model without a file, a model that does not exist, a device that there is not, a series of an image."""
    with pytest.raises(KitsattnError, match="no model and no file named 'stater'"):
        kitsattn.load_model("stater")
    with pytest.raises(KitsattnError, match="needs a checkpoint"):
        kitsattn.load_model()
    with pytest.raises(KitsattnError, match="has no abacus device"):
        kitsattn.load_model(GOLDEN, device="abacus")  # type: ignore[arg-type]
    with pytest.raises(KitsattnError, match="has no series"):
        kitsattn.segment(SimpleITK.ReadImage(str(path)), model, series="3")


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((3, 3, 3)), "not ndarray"),
        (nib.Nifti1Image(np.zeros((3, 3)), np.eye(4)), "a scan has three axes"),
        (SimpleITK.Image([3, 3, 3], SimpleITK.sitkVectorUInt8), "several values a voxel"),
        (nib.Nifti1Image(np.full((9, 9, 9), np.nan), np.eye(4)), "the image"),
        ("gone.nii.gz", "does not exist"),
    ],
    ids=["array", "two axes", "colours", "nan", "gone"],
)
def test_what_is_no_scan_is_refused(model: Ensemble, image: Any, told: str) -> None:
    """With the errors of files."""
    with pytest.raises(KitsattnError, match=told):
        kitsattn.segment(image, model)


def test_the_example_of_the_documentation_runs(checkpoint: Path, path: Path, expected: nib.Nifti1Image) -> None:
    """As it stands there, with a scan and a model beside it."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "predict.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shutil.copy(checkpoint, path.parent / "best.safetensors")
    path.rename(path.parent / "in.nii.gz")
    subprocess.run([sys.executable, "-c", example], cwd=path.parent, check=True)
    written: Any = nib.load(path.parent / "out.nii.gz")
    assert written.shape == expected.shape
    np.testing.assert_array_equal(written.affine, expected.affine)


def test_importing_the_package_loads_nothing() -> None:
    """Its functions are there all the same, and a wrong name is told."""
    script = (
        "import sys, kitsattn\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "from kitsattn import segment, load_model\n"
        "assert 'torch' in sys.modules and callable(segment)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="'kitsattn' has no attribute 'segmnt'"):
        kitsattn.segmnt  # noqa: B018
