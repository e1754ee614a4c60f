"""Prediction of many cases."""

import logging
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from kitsattn.checkpoint.header import Header
from kitsattn.errors import KitsattnError
from kitsattn.files import read_json
from kitsattn.predict.case import Prediction, predict_scan, read_case, write_case
from kitsattn.predict.cases import PredictionCase, read_ahead
from kitsattn.predict.infer import Ensemble, Member
from kitsattn.predict.report import write_report
from kitsattn.predict.run import predict_cases
from kitsattn.preprocess.plan import Plan
from kitsattn.volume.formats import read_labels, read_scan
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume

SPACING_MM = (5.0, 2.0, 2.0)


class Bright(torch.nn.Module):
    """Takes what is brighter than 100 HU for kidney, and than 200 HU for tumour."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = x[:, 0]
        return 9 * torch.stack([torch.ones_like(value), value, 2 * value - 2], dim=1)


@pytest.fixture
def ensemble(header: Header) -> Ensemble:
    """A network whose answer is known."""
    plan = Plan(spacing_mm=(2.0, 2.0), mean_hu=0.0, std_hu=100.0, patch_size=(64, 64))
    return Ensemble(
        (Path("a.safetensors"),), (header,), (Member(Bright(), 1, None),), plan, torch.device("cpu"), "fp32"
    )


@pytest.fixture
def cases(tmp_path: Path) -> list[PredictionCase]:
    """Three scans of a body with two kidneys, one of which has a tumour, another one in each scan."""
    made = []
    for number, name in enumerate(("a", "b", "c")):
        array = np.full((12, 48, 64), -1000, np.int16)
        array[:, 4:44, 4:60] = -100
        array[:, 8:40, 8:56] = 50
        array[2:10, 20:30, 12:22] = array[2:10, 20:30, 44:54] = 150
        array[4:8, 22:28, 14 : 18 + number] = 250
        scan = Volume(array, Geometry.axial(array.shape, SPACING_MM))
        write_nifti(tmp_path / f"{name}.nii.gz", scan, axes="LAS")
        made.append(
            PredictionCase(name=name, source=tmp_path / f"{name}.nii.gz", target=tmp_path / "out" / f"{name}.nii.gz")
        )
    return made


def _predicted(results: list[Prediction | KitsattnError]) -> list[Prediction]:
    """Return the results, none of which is an error."""
    predictions = [result for result in results if isinstance(result, Prediction)]
    assert len(predictions) == len(results)
    return predictions


def test_each_case_has_its_label_map_and_what_was_asked_for(
    ensemble: Ensemble, cases: list[PredictionCase], tmp_path: Path
) -> None:
    """On the scan's own grid; statistics, preview and probabilities agree with it."""
    asked = [
        replace(
            case,
            statistics=tmp_path / f"{case.name}.json",
            preview=tmp_path / f"{case.name}.png",
            probabilities=tmp_path / f"{case.name}_p.nii.gz",
        )
        for case in cases
    ]
    seen: list[tuple[str, int, int]] = []
    results = predict_cases(ensemble, asked, progress=lambda *report: seen.append(report))
    for number, (case, result) in enumerate(zip(asked, results, strict=True)):
        assert isinstance(result, Prediction)
        labels, scan = read_labels(case.target), read_scan(case.source)
        assert labels.geometry == scan.geometry
        np.testing.assert_array_equal(labels.array, np.digitize(scan.array, (100, 200)))
        tumour_ml = 4 * 6 * (4 + number) * 20 / 1000
        assert result.volumes_ml["tumour"] == pytest.approx(tumour_ml)
        assert case.statistics is not None
        assert read_json(case.statistics)["classes"]["tumour"]["volume_ml"] == pytest.approx(tumour_ml)
        assert case.probabilities is not None
        image: Any = nib.load(case.probabilities)
        stored: Any = nib.load(case.target)
        np.testing.assert_allclose(image.affine, stored.affine)
        values = image.get_fdata()
        assert values.shape == (*stored.shape, 3)
        np.testing.assert_allclose(values.sum(axis=-1), 1.0, atol=1e-4)
        np.testing.assert_array_equal(values.argmax(axis=-1), np.asarray(stored.dataobj))
        assert case.preview is not None
        with Image.open(case.preview) as picture:
            title = f"{case.name}: kidney {result.volumes_ml['kidney']:.1f} ml, tumour {tumour_ml:.1f} ml"
            assert picture.info["Title"] == title
    assert [report for report in seen if report[0] == "cases"] == [("cases", done, 3) for done in range(4)]


def test_a_case_that_fails_costs_no_other(
    ensemble: Ensemble,
    cases: list[PredictionCase],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """A damaged file, a network that raises what nobody foresaw, a target that cannot be written; the last is done."""
    caplog.set_level(logging.DEBUG, logger="kitsattn")
    cases[0].source.write_bytes(b"no scan")
    (tmp_path / "file").touch()
    fourth = replace(cases[2], name="d", target=tmp_path / "d.nii.gz")
    every = [cases[0], cases[1], replace(cases[2], target=tmp_path / "file" / "c.nii.gz"), fourth]

    def predict(ensemble: Ensemble, case: PredictionCase, *arguments: Any, **settings: Any) -> Any:
        if case.name == "b":
            msg = "odd"
            raise ZeroDivisionError(msg)
        return predict_scan(ensemble, case, *arguments, **settings)

    monkeypatch.setattr("kitsattn.predict.run.predict_scan", predict)
    *failed, done = predict_cases(ensemble, every)
    assert [type(error) for error in failed] == [KitsattnError] * 3
    assert "is not a NIfTI file" in str(failed[0])
    assert str(failed[1]).startswith("b: ZeroDivisionError: odd (kitsattn -v shows where")
    assert "c.nii.gz cannot be written" in str(failed[2])
    assert "ZeroDivisionError" in caplog.text
    assert isinstance(done, Prediction)
    assert read_labels(fourth.target).array.any()


def test_the_next_scan_is_read_and_the_last_written_meanwhile(
    ensemble: Ensemble, cases: list[PredictionCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second case is predicted the third has been read, and the first is being written; not more at once."""
    read, may_write = {case.name: threading.Event() for case in cases}, threading.Event()
    writing = threading.Event()

    def read_and_tell(case: PredictionCase, **settings: Any) -> Volume:
        scan = read_case(case, **settings)
        read[case.name].set()
        return scan

    def predict(ensemble: Ensemble, case: PredictionCase, *arguments: Any, **settings: Any) -> Any:
        if case.name == "b":
            assert read["c"].wait(30)
            assert writing.wait(30)
            may_write.set()
        return predict_scan(ensemble, case, *arguments, **settings)

    def wait_and_write(*arguments: Any, **settings: Any) -> Prediction:
        writing.set()
        assert may_write.wait(30)
        return write_case(*arguments, **settings)

    monkeypatch.setattr("kitsattn.predict.run.read_case", read_and_tell)
    monkeypatch.setattr("kitsattn.predict.run.predict_scan", predict)
    monkeypatch.setattr("kitsattn.predict.run.write_case", wait_and_write)
    assert all(isinstance(result, Prediction) for result in predict_cases(ensemble, cases))


def test_the_first_scan_may_be_read_ahead(
    ensemble: Ensemble, cases: list[PredictionCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read once, and is the one that is predicted; the others are read as ever."""
    read: list[Path] = []

    def read_and_note(path: Path, series: str | None) -> Volume:
        read.append(path)
        return read_scan(path, series)

    monkeypatch.setattr("kitsattn.predict.cases.read_scan", read_and_note)
    monkeypatch.setattr("kitsattn.predict.case.read_scan", read_and_note)
    expected = [read_labels(result.case.target).array for result in _predicted(predict_cases(ensemble, cases))]
    read.clear()
    results = _predicted(predict_cases(ensemble, cases, overwrite=True, first_scan=read_ahead(cases[0])))
    assert read == [case.source for case in cases]
    for result, labels in zip(results, expected, strict=True):
        np.testing.assert_array_equal(read_labels(result.case.target).array, labels)


def test_what_is_wrong_with_a_scan_read_ahead_is_told_as_ever(
    ensemble: Ensemble, cases: list[PredictionCase], tmp_path: Path
) -> None:
    """In the same words, and after what is wrong with its target."""
    case = replace(cases[0], source=tmp_path / "broken.nii.gz")
    case.source.write_bytes(b"no scan")
    (expected,) = predict_cases(ensemble, [case])
    (found,) = predict_cases(ensemble, [case], first_scan=read_ahead(case))
    assert isinstance(found, KitsattnError)
    assert str(found) == str(expected)
    case.target.parent.mkdir()
    case.target.touch()
    (found,) = predict_cases(ensemble, [case], first_scan=read_ahead(case))
    assert "exists already" in str(found)


def test_three_scans_are_held_at_most_and_none_that_failed(
    ensemble: Ensemble, cases: list[PredictionCase], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However many cases there are; errors do not hold what they were raised over."""
    read: list[weakref.ref[Volume]] = []
    most = 0

    def alive() -> int:
        return sum(scan() is not None for scan in read)

    def read_and_count(case: PredictionCase, **settings: Any) -> Volume:
        nonlocal most
        scan = replace(read_case(case, **settings))
        read.append(weakref.ref(scan))
        most = max(most, alive())
        return scan

    monkeypatch.setattr("kitsattn.predict.run.read_case", read_and_count)
    (tmp_path / "file").touch()
    several = [replace(case, target=tmp_path / f"{case.name}{n}.nii.gz") for n in range(3) for case in cases[:2]]
    failing = [replace(case, target=tmp_path / "file" / f"{n}.nii.gz") for n in range(3) for case in cases[:2]]
    results = predict_cases(ensemble, [*failing, *several], first_scan=read_ahead(failing[0]))
    assert [str(result) for result in results[6:] if isinstance(result, KitsattnError)] == []
    assert all(isinstance(result, KitsattnError) for result in results[:6])
    assert most <= 3
    assert alive() == 0


def test_the_label_map_is_written_last(
    ensemble: Ensemble, cases: list[PredictionCase], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A case with a label map is finished: what cannot be written beside it leaves none."""
    (tmp_path / "file").touch()
    (result,) = predict_cases(ensemble, [replace(cases[0], statistics=tmp_path / "file" / "a.json")])
    assert isinstance(result, KitsattnError)
    assert not cases[0].target.exists()

    def fail(*arguments: Any) -> bytes:
        raise OSError(arguments)

    monkeypatch.setattr("kitsattn.predict.case._small_picture", fail)
    (result,) = predict_cases(ensemble, [replace(cases[0], pictured=True)])
    assert isinstance(result, KitsattnError)
    assert not cases[0].target.exists()


def test_existing_label_maps_are_kept_unless_told(ensemble: Ensemble, cases: list[PredictionCase]) -> None:
    """Without `overwrite` the case fails, with it the file is replaced."""
    cases[0].target.parent.mkdir()
    cases[0].target.write_bytes(b"mine")
    (result,) = predict_cases(ensemble, cases[:1])
    assert "exists already" in str(result)
    assert cases[0].target.read_bytes() == b"mine"
    (result,) = predict_cases(ensemble, cases[:1], overwrite=True)
    assert isinstance(result, Prediction)


def test_a_report_shows_every_case(ensemble: Ensemble, cases: list[PredictionCase], tmp_path: Path) -> None:
    """Volumes, a picture of each, and what failed; names are escaped."""
    cases[2].source.write_bytes(b"no scan")
    named = [replace(case, name=f"<b>{case.name}", pictured=True) for case in cases]
    results = dict(zip([case.name for case in named], predict_cases(ensemble, named), strict=True))
    write_report(tmp_path / "report.html", ensemble, results)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/webp") == 2
    assert "&lt;b&gt;a" in page
    assert "<b>" not in page
    assert "1 case could not be predicted" in page
    assert "is not a NIfTI file" in page
    assert f"{4 * 6 * 5 * 20 / 1000:.1f}" in page
