import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kitsattn.evaluate.case import CaseScores
from kitsattn.evaluate.match import CasePair
from kitsattn.evaluate.metrics.hd95 import HD95
from kitsattn.evaluate.metrics.metric import EMPTY_RULE
from kitsattn.evaluate.report import draw_case, write_picture, write_report, write_summary
from kitsattn.evaluate.scores import Scores
from kitsattn.evaluate.scoring import Scoring
from kitsattn.labels import KITS19, KITS23, ScoringProtocol, protocol_of
from kitsattn.notices import RESEARCH_NOTICE, SYNTHETIC_SCORES_NOTICE
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.nifti import write_nifti
from kitsattn.volume.volume import Volume


@pytest.fixture
def scores() -> Scores:
    """Two cases, one of them without a prediction, and a prediction too many."""
    cases = tuple(
        CaseScores(case, {"kidney_and_tumour": {"dice": kidney}, "tumour": {"dice": tumour}})
        for case, kidney, tumour in (("case_00001", 0.75, 0.5), ("case_00002", 0.0, 1.0))
    )
    return Scores(cases, Scoring(), missing=("case_00002",), surplus=("case_00009",))


def test_summary_holds_scores_and_provenance(tmp_path: Path, scores: Scores) -> None:
    """The file holds the scores as `to_json` lays them out, and what they were made with."""
    write_summary(tmp_path / "summary.json", scores, provenance={"model": "attention-deeplab-tiny"})

    content = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert content == {**scores.to_json(), "provenance": {"model": "attention-deeplab-tiny"}}


@pytest.mark.parametrize("synthetic", [False, True])
def test_report_says_what_the_numbers_are(
    tmp_path: Path,
    scores: Scores,
    synthetic: bool,  # noqa: FBT001 - a parameter
) -> None:
    """The page has every score, the means, the rule for empty regions, and the warnings that apply."""
    image = tmp_path / "case_00001.png"
    image.write_bytes(b"\x89PNG and so on")

    write_report(
        tmp_path / "report.html",
        scores,
        title="A fold",
        provenance={"model": "attention-deeplab-tiny"},
        synthetic=synthetic,
        images={"case_00001": image},
        next_steps={"kitsattn train --fold 1": "Train the next fold."},
    )

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in (
        "<h1>A fold</h1>",
        "Dice (2 cases), composite 0.562",
        ">0.750<",
        ">0.375<",
        "case_00001. Dice: kidney and tumour 0.750, tumour 0.500.",
        "KiTS19. Kidney and tumour: labels 1 (kidney) and 2 (tumour) as one region. Tumour: label 2",
        "with the outlines of kidney and tumour, predicted and reference.",
        "No prediction was found for case_00002: scored as all background.",
        "Left out, having no reference: case_00009.",
        "attention-deeplab-tiny",
        "<code>kitsattn train --fold 1</code>",
        base64.b64encode(b"\x89PNG and so on").decode(),
        RESEARCH_NOTICE,
        EMPTY_RULE,
    ):
        assert part in page
    assert (SYNTHETIC_SCORES_NOTICE in page) == synthetic


def test_report_of_kits23_has_a_column_for_each_of_its_regions(tmp_path: Path) -> None:
    """Table, note and pictures name the regions of the protocol, and the labels in each."""
    image = tmp_path / "a.png"
    image.write_bytes(b"\x89PNG and so on")
    dice = {"kidney_and_masses": {"dice": 0.9}, "masses": {"dice": 0.8}, "tumour": {"dice": 0.4}}
    scores = Scores((CaseScores("a", dice),), Scoring(KITS23))

    write_report(tmp_path / "report.html", scores, title="", provenance={}, synthetic=False, images={"a": image})

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in (
        "Dice (1 case), composite 0.700",
        '<th scope="col">Kidney and masses',
        '<th scope="col">Masses',
        '<th scope="col">Tumour',
        "KiTS23. Kidney and masses: labels 1 (kidney), 2 (tumour) and 3 (cyst) as one region.",
        "Masses: labels 2 (tumour) and 3 (cyst) as one region. Tumour: label 2 (tumour).",
        "a. Dice: kidney and masses 0.900, masses 0.800, tumour 0.400.",
        "with the outlines of kidney, tumour and cyst, predicted and reference.",
    ):
        assert part in page


def test_tables_sort_and_begin_with_the_worst_case(tmp_path: Path) -> None:
    """What is not defined is worse than any distance; headings are made buttons by the page's script."""
    nan = float("nan")
    cases = tuple(
        CaseScores(case, {region.key: {"hd95_mm": value} for region in KITS19.regions}, turned=case == "c")
        for case, value in (("a", 1.0), ("b", 9.0), ("c", nan))
    )
    scores = Scores(cases, Scoring(metrics=(HD95,)), failed={"d": "d.nii.gz is no label map"})

    write_report(tmp_path / "report.html", scores, title="", provenance={}, synthetic=False, images={})

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    places = [page.index(f'<th scope="row">{case}</th>') for case in ("c", "b", "a")]
    assert places == sorted(places)
    assert "data-sortable" in page or "sortable" in page
    assert "Not scored: d: d.nii.gz is no label map." in page
    assert "turned: c." in page


@pytest.mark.parametrize(("synthetic", "notice"), [(False, RESEARCH_NOTICE), (True, SYNTHETIC_SCORES_NOTICE)])
def test_picture_says_what_the_data_are(
    tmp_path: Path,
    scores: Scores,
    synthetic: bool,  # noqa: FBT001 - a parameter
    notice: str,
) -> None:
    """Phantoms are told in the PNG too."""
    write_picture(tmp_path / "scores.png", scores, title="A fold", synthetic=synthetic)

    with Image.open(tmp_path / "scores.png") as image:
        assert image.info["Description"] == notice


GEOMETRY = Geometry.axial((6, 30, 40), (5.0, 2.0, 2.0))


def write_case(folder: Path, *, scan: np.ndarray | None = None, geometry: Geometry = GEOMETRY) -> CasePair:
    """Write a label map, which is its own prediction but for a cyst, and perhaps a scan."""
    labels = np.zeros(GEOMETRY.shape, np.uint8)
    labels[1:5, 5:20, 5:30] = 1
    write_nifti(folder / "labels.nii.gz", Volume(labels, GEOMETRY))
    labels[1:5, 8:16, 8:20] = 3
    write_nifti(folder / "predicted.nii.gz", Volume(labels, GEOMETRY))
    if scan is not None:
        write_nifti(folder / "scan.nii.gz", Volume(scan, geometry))
    place = None if scan is None else folder / "scan.nii.gz"
    return CasePair("case_00001", folder / "predicted.nii.gz", folder / "labels.nii.gz", place)


def draw(pair: CasePair, protocol: ScoringProtocol = KITS19) -> tuple[np.ndarray, str]:
    """Return the pixels of a case's picture, and what it says below the headline."""
    with Image.open(BytesIO(draw_case(pair, protocol))) as image:
        return np.asarray(image.convert("RGB")), str(image.info["Description"])


def test_a_case_is_drawn_on_its_scan(tmp_path: Path) -> None:
    """The picture is brighter than the one without a scan, and has nothing to say."""
    scan = np.full(GEOMETRY.shape, 200, np.int16)
    scan[:, :2] = -100

    pixels, note = draw(write_case(tmp_path, scan=scan))
    dark, other = draw(write_case(tmp_path))

    assert (note, other) == ("", "The scan is not known: outlines only.")
    assert pixels.mean() > dark.mean() + 20


@pytest.mark.parametrize(
    ("fat", "spacing_mm", "reason"),
    [(-100, (5.0, 2.0, 2.5), "is not on the grid of its label map"), (0, (5.0, 2.0, 2.0), "cannot be read as a scan")],
)
def test_a_scan_that_does_not_fit_is_left_out(
    tmp_path: Path, fat: int, spacing_mm: tuple[float, float, float], reason: str
) -> None:
    """A scan on another grid would show other anatomy; one that is not in HU costs no page."""
    scan = np.full(GEOMETRY.shape, 200, np.int16)
    scan[:, :2] = fat
    pair = write_case(tmp_path, scan=scan, geometry=Geometry.axial(GEOMETRY.shape, spacing_mm))

    _, note = draw(pair)

    assert note == f"scan.nii.gz {reason}: outlines only."


def test_a_scan_that_is_gone_is_left_out(tmp_path: Path) -> None:
    """Nothing is lost by it."""
    pair = write_case(tmp_path, scan=np.zeros(GEOMETRY.shape, np.int16))
    (tmp_path / "scan.nii.gz").unlink()

    assert draw(pair)[1] == "scan.nii.gz cannot be read as a scan: outlines only."


def test_values_that_the_protocol_does_not_know_are_not_drawn(tmp_path: Path) -> None:
    """A 3 is background by KiTS19 and a cyst by KiTS23; labels of no challenge have one outline."""
    pair = write_case(tmp_path)
    pixels, _ = draw(pair, KITS19)
    with_cyst, _ = draw(pair, KITS23)
    others, _ = draw(pair, protocol_of({"background": 0, "liver": 1, "spleen": 2, "gut": 3}))
    cyst = np.array([0x2F, 0xD6, 0xA0])

    def drawn(picture: np.ndarray) -> bool:
        return bool((np.abs(picture.astype(int) - cyst).sum(axis=2) < 60).any())

    assert (drawn(pixels), drawn(with_cyst), drawn(others)) == (False, True, False)
