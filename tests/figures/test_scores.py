import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from kitsattn.figures.scores import ScorePanel, _draw_panel, plot_agreement, plot_boxes, scores_sheet

BOX = "quartiles; whiskers: within 1.5 times their distance"
COHORT = {f"case_{number:05}": 0.8 + number / 200 for number in range(20)}
VOLUMES = {f"case_{number:05}": 30.0 + number for number in range(20)}


def texts(svg: bytes) -> set[str]:
    """Return what is written in a plot: matplotlib draws letters as paths, with the text in a comment before."""
    ET.fromstring(svg)  # noqa: S314 - our own file, which must be well-formed
    return {text.strip() for text in re.findall(r"<!--(.*?)-->", svg.decode(), flags=re.DOTALL)}


def named(svg: bytes) -> set[str]:
    """Return the names of cases in a plot."""
    return {text for text in texts(svg) if text.startswith("case_")}


def dice(values: Mapping[str, float]) -> ScorePanel:
    """Return a panel of one region."""
    return ScorePanel("Dice", {"Tumour": values}, share=True)


def drawn(panel: ScorePanel) -> Axes:
    """Return the axes a panel is drawn on."""
    axes = Figure().add_subplot()
    _draw_panel(axes, panel)
    return axes


def heights(axes: Axes) -> list[list[float]]:
    """Return the heights of what is drawn with dots or lines."""
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines]


@pytest.mark.parametrize(
    "svg",
    [plot_boxes(dice(COHORT)), plot_agreement("Tumour", VOLUMES, VOLUMES, bias_ml=0.0, low_ml=-1.0, high_ml=1.0)],
    ids=["boxes", "agreement"],
)
def test_plots_are_drawn_in_the_colour_of_the_theme(svg: bytes) -> None:
    """Text has the colour of the reader's theme, on a transparent ground; nothing is fetched."""
    text = svg.decode()

    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert "#010203" not in text
    assert "#ffffff" not in text
    assert not re.search(r'(href="(?!#)|url\((?!#)|@import)', text)


def test_equal_scores_give_an_equal_plot() -> None:
    """Dots are spread in the same way each time."""
    assert plot_boxes(dice(COHORT)) == plot_boxes(dice(COHORT))


def test_box_has_quartiles_whiskers_and_every_case() -> None:
    """Worked by hand: of 0.1 to 0.8 and 0 the quartiles are 0.2 and 0.6, and all are a dot."""
    axes = drawn(dice({str(number): number / 10 for number in range(9)}))

    (box,) = axes.patches
    assert sorted(set(np.asarray(box.get_path().vertices)[:, 1].round(6))) == [0.2, 0.6]
    lines = heights(axes)
    assert [0.2, 0.0] in lines  # the lower whisker
    assert [0.6, 0.8] in lines
    assert [number / 10 for number in range(9)] in lines
    assert lines[-1] == [0.4, 0.4]  # the median, above all else


def test_box_names_what_stands_apart() -> None:
    """Of many cases only those beyond the whiskers are named."""
    svg = plot_boxes(dice({**COHORT, "case_99999": 0.1}))

    assert named(svg) == {"case_99999"}
    assert {"Dice", "Tumour", "median", "a case", BOX} <= texts(svg)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_few_cases_have_no_box(count: int) -> None:
    """A handful of cases are dots with a median, all named; quartiles would mean nothing."""
    few = {case: COHORT[case] for case in list(COHORT)[:count]}

    svg = plot_boxes(dice(few))

    assert named(svg) == set(few)
    assert "median" in texts(svg)
    assert BOX not in texts(svg)
    assert list(drawn(dice(few)).patches) == []


def test_undefined_values_are_counted() -> None:
    """NaN is left out of dots, box and median, and counted below the region's name."""
    panel = ScorePanel(
        "HD95, mm",
        {"Kidney": COHORT, "Tumour": {**COHORT, "a": math.nan, "b": math.nan}, "Cyst": {"a": math.nan}},
        share=False,
    )

    assert heights(drawn(panel))[-2] == list(COHORT.values())
    labels = [label.get_text() for label in drawn(panel).get_xticklabels()]
    assert labels == ["Kidney", "Tumour\n2 not defined", "Cyst\n1 not defined"]
    assert plot_boxes(panel)


@pytest.mark.parametrize(
    ("values", "share", "ends"),
    [
        ({"a": 0.34, "b": 0.9}, True, (0.3, 1.0)),
        ({"a": 1.0}, True, (0.9, 1.0)),
        ({"a": 0.0, "b": 1.0}, True, (0.0, 1.0)),
        ({"a": math.nan}, True, (0.0, 1.0)),
        ({"a": 2.0, "b": 8.0}, False, (0.0, None)),
        ({"a": -2.0, "b": 8.0}, False, (-2.5, None)),
    ],
    ids=["low", "all 1", "0 to 1", "nothing", "mm", "difference"],
)
def test_axis_reaches_the_best_share_and_zero(
    values: Mapping[str, float], *, share: bool, ends: tuple[float, float | None]
) -> None:
    """Shares end at 1 and begin at the tenth below the lowest, distances begin at 0; differences may be negative."""
    low, high = drawn(ScorePanel("x", {"Tumour": values}, share=share)).get_ylim()

    assert low == pytest.approx(ends[0])
    assert high == ends[1] or (ends[1] is None and high > max(values.values()))


def test_agreement_gives_bias_and_limits() -> None:
    """The lines' values are written, axes have units, and only the case far from the others is named."""
    predicted = {case: volume - 1.0 - 0.1 * (index % 3) for index, (case, volume) in enumerate(VOLUMES.items())}

    svg = plot_agreement(
        "Tumour",
        {**predicted, "case_99999": 90.0},
        {**VOLUMES, "case_99999": 40.0},
        bias_ml=1.24,
        low_ml=-20.06,
        high_ml=22.5,
    )

    assert named(svg) == {"case_99999"}
    assert {"bias: +1.2 ml", "limits of agreement: -20.1 and +22.5 ml", "Tumour"} <= texts(svg)
    assert {"mean of predicted and reference volume (ml)", "predicted - reference (ml)"} <= texts(svg)


def test_agreement_of_one_case_has_no_limits() -> None:
    """Limits that are not defined are not drawn."""
    svg = plot_agreement("Tumour", {"case_1": 5.0}, {"case_1": 4.0}, bias_ml=1.0, low_ml=math.nan, high_ml=math.nan)

    assert named(svg) == {"case_1"}
    assert "bias: +1.0 ml" in texts(svg)
    assert not [text for text in texts(svg) if text.startswith("limits")]


@pytest.mark.parametrize(("panels", "width"), [(1, 840), (3, 1680)])
def test_sheet_is_a_png_on_white(tmp_path: Path, panels: int, width: int) -> None:
    """Panels stand two abreast on white, none on another; title and note are drawn and in the metadata."""
    title, note = r"$\frac$ {b}", "SYNTHETIC phantoms"

    scores_sheet(tmp_path / "scores.png", [dice(COHORT)] * panels, title=title, note=note)

    assert [path.name for path in tmp_path.iterdir()] == ["scores.png"]
    with Image.open(tmp_path / "scores.png") as sheet:
        assert (sheet.format, sheet.width) == ("PNG", width)
        assert (sheet.info["Title"], sheet.info["Description"]) == (title, note)
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert (pixels[[0, -1]] == 255).all()
    medians = np.abs(pixels - (0xE0, 0x60, 0x1A)).max(axis=2) < 20
    assert medians[:, :840].any()
    assert medians[:, 840:].any() == (panels > 1)
    assert (pixels[15:50, :200] < 100).any()  # the title


def test_long_notes_are_wrapped(tmp_path: Path) -> None:
    """What does not fit across a sheet goes on in the next line, and the sheet grows."""
    for name, note in (("short", "word"), ("long", "word " * 100)):
        scores_sheet(tmp_path / name, [dice(COHORT)], title="Scores", note=note)

    with Image.open(tmp_path / "short") as short, Image.open(tmp_path / "long") as long:
        assert short.width == long.width
        assert long.height - short.height > 50
        assert (np.asarray(long.convert("L"))[:, -20:] == 255).all(axis=0).any()


def test_names_are_plain_text_of_printable_letters(tmp_path: Path) -> None:
    """Formulas, control characters, letters that no font has and long names do no harm; both ends of a name stay."""
    names = [r"case_$\frac$", "case_\x01\udcff", "case_\U0001f9e0", "case_" + "x" * 100 + "_7"]
    panel = dice({name: 0.5 + index / 10 for index, name in enumerate(names)})

    svg = plot_boxes(panel)
    scores_sheet(tmp_path / "scores.png", [panel], title="Scores")

    assert {r"case_$\frac$", "case_??", "case_\U0001f9e0", "case\N{HORIZONTAL ELLIPSIS}xxxxxxx_7"} <= texts(svg)
