"""Pages in headless Chromium, as a reader sees them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kitsattn.figures.overlay import COMPACT_SIZE, View, compact_sheet
from kitsattn.figures.page import Gallery, Leaf, Leaves, Link, Page, Picture, Table, write_page
from kitsattn.figures.scores import ScorePanel, plot_agreement, plot_boxes

webdriver: Any = pytest.importorskip("selenium.webdriver", reason="needs selenium to steer a browser")

ROWS = (
    ("case_10", 0.5, "12.31", "odd"),
    ("case_2", 0.875, "not defined", "good"),
    ("case_1", 0.5, "2.5", "bad"),
    ("case_20", 0.0, "\N{EM DASH}", "odd"),
    ("case_3", 0.25, "-1.75", "good"),
)
SUMMARIES = (("Mean", 0.425, "4.35", ""), ("Median", 0.5, "2.50", ""))
ORDERS = {
    "Case": ["case_1", "case_2", "case_3", "case_10", "case_20"],
    "Dice": ["case_20", "case_3", "case_10", "case_1", "case_2"],
    "Difference, ml": ["case_3", "case_1", "case_10", "case_2", "case_20"],
    "Remark": ["case_1", "case_2", "case_3", "case_10", "case_20"],
}
REVERSED = {
    "Case": ["case_20", "case_10", "case_3", "case_2", "case_1"],
    "Dice": ["case_2", "case_10", "case_1", "case_3", "case_20"],
    "Difference, ml": ["case_10", "case_1", "case_3", "case_2", "case_20"],
    "Remark": ["case_10", "case_20", "case_2", "case_3", "case_1"],
}
"""Equal cells keep the order they had; what is no number stays last."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a table that sorts, a wide one, box plots, and pictures to leaf through."""
    folder = tmp_path_factory.mktemp("page")
    small = Table("Scores", tuple(ORDERS), ROWS, SUMMARIES, numbers=frozenset(["Difference, ml"]), sortable=True)
    wide = Table(
        "All scores",
        ("Case", *(f"Kidney and masses, metric {number}" for number in range(12))),
        (("a_long_name_of_a_case_" * 3, *[0.5] * 12),),
        anchor="all",
    )
    values = {f"case_{number}": number / 20 for number in range(20)}
    plots = (
        Picture(plot_boxes(ScorePanel("Dice", {"Tumour": values}, share=True)), "Dice", "Box plots of Dice"),
        Picture(plot_agreement("Tumour", values, values, bias_ml=0, low_ml=-1, high_ml=1), "Volume", "Volumes agree"),
    )
    view = View("axial", np.zeros((20, 20)), (), (1.0, 1.0))
    leaves = []
    for number in range(1, 4):
        picture = Picture(compact_sheet([view] * 4, title=f"case_{number}"), "Slices", f"Slices of case_{number}")
        leaves.append(Leaf(f"leaf-{number}", f"case_{number}", picture))
    parts = (
        small,
        wide,
        Gallery("Plots", plots, side_by_side=True),
        Leaves("Worst cases", tuple(leaves), COMPACT_SIZE, Link("all cases", "all")),
    )
    write_page(folder / "page.html", Page("Scores", ("Research use.",), parts, {"model": "tiny"}, {"kitsattn": "?"}))
    return folder / "page.html"


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The browser, with the page just opened."""
    browser.get(page.as_uri())
    return browser


def cases(browser: Any) -> list[str]:
    """Return the headings of the first table's rows, from top to bottom."""
    return [row.text for row in browser.find_elements("css selector", "section:first-of-type tbody th")]


def headings(browser: Any) -> dict[str, Any]:
    """Return the headings of the first table's columns by what they say."""
    return {
        heading.text: heading for heading in browser.find_elements("css selector", "section:first-of-type thead th")
    }


def click(heading: Any) -> None:
    """Click the button in a heading."""
    heading.find_element("tag name", "button").click()


def press(key: str) -> Callable[[Any], None]:
    """Return what presses a key on the button in a heading."""
    return lambda heading: heading.find_element("tag name", "button").send_keys(getattr(webdriver.Keys, key))


@pytest.mark.parametrize("column", list(ORDERS))
@pytest.mark.parametrize("act", [click, press("ENTER"), press("SPACE")], ids=["click", "enter", "space"])
def test_headings_sort_and_reverse(opened: Any, column: str, act: Callable[[Any], None]) -> None:
    """Numbers sort by value, text in natural order, and again the other way round; `aria-sort` says which."""
    heading = headings(opened)[column]

    act(heading)
    assert cases(opened) == ORDERS[column]
    assert heading.get_attribute("aria-sort") == "ascending"

    act(heading)
    assert cases(opened) == REVERSED[column]
    assert heading.get_attribute("aria-sort") == "descending"


def test_one_heading_at_a_time_sorts(opened: Any) -> None:
    """A click on another heading takes `aria-sort` from the first, and begins with ascending order."""
    found = headings(opened)
    click(found["Case"])
    click(found["Dice"])

    marked = {name: heading.get_attribute("aria-sort") for name, heading in found.items()}
    assert marked == {"Case": None, "Dice": "ascending", "Difference, ml": None, "Remark": None}


def test_summaries_stay_below(opened: Any) -> None:
    """Mean and median are no cases: they are last in every order."""
    click(headings(opened)["Dice"])

    rows = opened.find_elements("css selector", "section:first-of-type table tr > th:first-child")
    assert [row.text for row in rows] == ["Case", *ORDERS["Dice"], "Mean", "Median"]


def test_headings_are_reached_with_the_keyboard(opened: Any) -> None:
    """The Tab key leads from one heading to the next."""
    reached = []
    for _ in range(12):
        opened.switch_to.active_element.send_keys(webdriver.Keys.TAB)
        focused = opened.switch_to.active_element
        reached += [focused.text] if focused.tag_name == "button" else []

    assert reached == list(ORDERS)


def test_only_sortable_tables_have_buttons(opened: Any) -> None:
    """A table that is not sortable has none, and the others one for each column."""
    assert len(opened.find_elements("tag name", "button")) == len(ORDERS)


def test_page_is_read_without_javascript(browser: Any, page: Path) -> None:
    """Where scripts are switched off there are no dead buttons, and the table is whole."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        assert browser.find_elements("tag name", "button") == []
        assert list(headings(browser)) == list(ORDERS)
        assert cases(browser) == [row[0] for row in ROWS]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_pictures_are_shown(opened: Any) -> None:
    """The browser can draw every picture: SVG plots and the WebP that are leafed through."""
    decode = """
        const done = arguments[0], images = [...document.images];
        for (const image of images) image.loading = "eager";
        Promise.allSettled(images.map((image) => image.decode())).then(() => done(images.map((i) => i.naturalWidth)));
    """
    widths = opened.execute_async_script(decode)

    assert len(widths) == 5
    assert all(width > 0 for width in widths)


def test_page_is_silent_and_fetches_nothing(opened: Any) -> None:
    """Sorting and leafing through cause no message in the console, and nothing but the file itself is loaded."""
    opened.get_log("browser")
    opened.refresh()
    for heading in headings(opened).values():
        click(heading)
    opened.find_element("tag name", "body").send_keys(webdriver.Keys.ARROW_RIGHT)

    assert opened.get_log("browser") == []
    assert opened.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []


def test_arrow_keys_leaf_through(opened: Any) -> None:
    """The right arrow key leads to the next picture, the left one back."""
    tops = "return [...document.querySelectorAll('.leaf')].map((leaf) => leaf.getBoundingClientRect().top)"
    keys = webdriver.Keys
    shown = []
    for key in (keys.ARROW_RIGHT, keys.ARROW_RIGHT, keys.ARROW_LEFT):
        opened.find_element("tag name", "body").send_keys(key)
        shown.append([abs(top) < 20 for top in opened.execute_script(tops)].index(True))

    assert shown == [0, 1, 0]


@pytest.mark.parametrize("width", [390, 1280])
def test_page_does_not_overflow(browser: Any, page: Path, width: int) -> None:
    """On a phone and on a desk nothing reaches beyond the right edge: what is wider scrolls by itself."""
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(page.as_uri())
        root = "document.documentElement"
        shown, needed = browser.execute_script(f"return [{root}.clientWidth, {root}.scrollWidth]")
        assert needed == shown <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
