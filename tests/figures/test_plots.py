import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

import pytest

from kitsattn.figures.plots import plot_intensities, plot_sizes, plot_spacing, plot_volumes

SPACINGS = {f"case_{number:05}": (1.0 + number % 3, 0.7 + 0.01 * number, 0.7 + 0.01 * number) for number in range(20)}
WINDOW = (-300.0, 300.0)


def texts(svg: bytes) -> list[str]:
    """Return what is written in a plot: matplotlib draws letters as paths, with the text in a comment before."""
    ET.fromstring(svg)  # noqa: S314 - our own file, which must be well-formed
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg.decode(), flags=re.DOTALL)]


def named(svg: bytes) -> list[str]:
    """Return the names of cases in a plot."""
    return sorted(text for text in texts(svg) if text.startswith("case_"))


def uniform(lowest: int, highest: int) -> tuple[int, list[int]]:
    """Return the histogram of one voxel at each whole HU."""
    return lowest, [1] * (highest - lowest + 1)


def test_plots_are_drawn_in_the_colour_of_the_theme() -> None:
    """Text has the colour of the reader's theme, on a transparent ground; nothing is fetched."""
    svg = plot_spacing(SPACINGS, (0.78, 0.78)).decode()

    assert "prefers-color-scheme: dark" in svg
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#ffffff" not in svg
    assert not re.search(r'(href="(?!#)|url\((?!#)|@import)', svg)


def test_equal_data_give_an_equal_plot() -> None:
    """There is no date and no random name in a plot."""
    assert plot_spacing(SPACINGS, (0.78, 0.78)) == plot_spacing(SPACINGS, (0.78, 0.78))


def test_spacing_names_what_stands_apart() -> None:
    """Of twenty cases only the one with far thicker slices is named; axes have units, the target is given."""
    svg = plot_spacing({**SPACINGS, "case_99999": (12.0, 0.8, 0.8)}, (0.78, 0.81))

    assert named(svg) == ["case_99999"]
    assert {"in-plane spacing (mm)", "distance of slices (mm)"} <= set(texts(svg))
    assert {"target in-plane: 0.78 mm", "target in-plane: 0.81 mm"} <= set(texts(svg))


def test_few_cases_are_all_named() -> None:
    """With a handful of cases there is no typical one, and room for every name."""
    few = {case: SPACINGS[case] for case in list(SPACINGS)[:4]}

    assert named(plot_spacing(few, (0.78, 0.78))) == sorted(few)


def test_sizes_count_shapes() -> None:
    """Each number of rows and columns is a bar with its count; beyond six the rest are one."""
    shapes = {str(number): (40 + number, 512, 512) for number in range(9)}
    odd = {f"odd {number}": (50, 512, 600 + number) for number in range(7)}

    assert {"512 x 512", "9", "number of slices", "cases"} <= set(texts(plot_sizes(shapes)))
    written = texts(plot_sizes({**shapes, **odd}))
    assert {"512 x 512", "512 x 600", "others"} <= set(written)
    assert "512 x 606" not in written


def test_intensities_weigh_every_case_alike() -> None:
    """Worked by hand: one voxel at 0 HU counts as much as a thousand at 100 to 1099 HU."""
    svg = plot_intensities({"a": (0, [1]), "b": uniform(100, 1099)}, clip_hu=WINDOW, mean_hu=12.34, std_hu=5.0)

    # Half of all weight lies at 0; 99.5 % lie at or below the last but ten of the others.
    assert "0.5 % and 99.5 % are below 0 and 1089 HU" in texts(svg)
    assert "mean 12.3 HU, deviation 5.0 HU" in texts(svg)
    assert "clipped to -300 to 300 HU" in texts(svg)
    assert "value of labelled voxels (HU)" in texts(svg)


def test_intensities_name_what_stands_apart() -> None:
    """A case whose values lie far from the others' is named, and the axis reaches it."""
    usual = {f"case_{number:05}": uniform(number, 200 + number) for number in range(12)}

    svg = plot_intensities({**usual, "case_99999": uniform(1400, 1600)}, clip_hu=WINDOW, mean_hu=100, std_hu=50)

    assert named(svg) == ["case_99999"]
    assert "1500" in texts(svg)


def test_volumes_name_the_extremes_and_count_the_empty() -> None:
    """Cases without a class are counted below its name; a volume far from the others is named."""
    kidneys = {f"case_{number:05}": 300.0 + number for number in range(20)}
    tumours = dict.fromkeys(kidneys, 0.0)

    svg = plot_volumes({"kidney": {**kidneys, "case_99999": 3.0}, "tumour": {**tumours, "case_99999": 9.0}})

    assert named(svg) == ["case_99999", "case_99999"]
    assert {"volume (ml)", "median"} <= set(texts(svg))
    assert "none in 20 of 21" in svg.decode()


@pytest.mark.parametrize(
    "volumes",
    [{}, {"kidney": {"a": 0.0}}, {"kidney": {"a": 1.0}}, {"kidney": {str(number): 5.0 for number in range(300)}}],
    ids=["no class", "nothing", "one case", "all alike"],
)
def test_volumes_of_odd_data_sets_are_drawn(volumes: Mapping[str, Mapping[str, float]]) -> None:
    """No class, no voxel, one case and equal cases are no special cases."""
    assert texts(plot_volumes(volumes))


def test_one_case_of_one_value_is_drawn() -> None:
    """A data set of a single case, whose foreground has one value, is no special case."""
    assert texts(plot_intensities({"a": (40, [7])}, clip_hu=WINDOW, mean_hu=40.0, std_hu=1.0))
    assert named(plot_spacing({"case_1": (5.0, 0.7, 0.8)}, (0.7, 0.8))) == ["case_1"]
    assert texts(plot_sizes({"a": (1, 1, 1)}))


def test_names_are_plain_text_of_printable_letters() -> None:
    """Formulas, markup, control characters, letters that no font has and long names do no harm."""
    names = [r"case_$\frac$", "case_<&--", "case_\x01\udcff", "case_\U0001f9e0", "case_" + "x" * 100]

    svg = plot_spacing({name: (float(number), 0.7, 0.7) for number, name in enumerate(names)}, (0.7, 0.7))

    assert len(named(svg)) == 5
    assert "case_??" in named(svg)
    assert max(len(name) for name in named(svg)) == 18
