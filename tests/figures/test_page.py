import base64
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kitsattn.figures.page import Gallery, Leaf, Leaves, Link, Page, Picture, Table, write_page

PNG = bytes.fromhex("89504e470d0a1a0a") + b"any bytes"


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, and checks that all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element named `tag`."""
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """A page with something of everything."""
    (tmp_path / "sheet.png").write_bytes(PNG)
    table = Table(
        caption="Scores",
        columns=("Case", "Dice", "Remark"),
        rows=(("case_00001", 0.8125, "good"), ("case_00002", 0.0, "bad")),
        summaries=(("Mean", 0.40625, ""), ("Highest", 0.8125, "")),
        notes=("Higher is better.",),
    )
    return Page(
        title="A fold",
        warnings=("Research use.",),
        parts=(table, Gallery("Pictures", (Picture(tmp_path / "sheet.png", "case_00001", "Slices of case_00001"),))),
        provenance={"model": "attention-deeplab-tiny"},
        next_steps={"kitsattn demo": "Run it again."},
    )


def render(path: Path, page: Page) -> str:
    """Write the page and return its text."""
    write_page(path, page)
    return path.read_text(encoding="utf-8")


def test_page_needs_nothing_from_elsewhere(tmp_path: Path, page: Page) -> None:
    """Styles and pictures are inside, there is no script, and nothing is fetched."""
    text = render(tmp_path / "page.html", page)

    elements = Elements(text)
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "link", "iframe", "object", "base"}
    assert "url(" not in text
    assert "@import" not in text
    assert "://" not in text
    (image,) = elements.all("img")
    assert image["src"] == "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_page_can_be_read_aloud(tmp_path: Path, page: Page) -> None:
    """The page names its language, pictures have descriptions, and headings say which cells they belong to."""
    elements = Elements(render(tmp_path / "page.html", page))

    assert elements.all("html") == [{"lang": "en"}]
    assert elements.all("img")[0]["alt"] == "Slices of case_00001"
    assert [th["scope"] for th in elements.all("th")] == ["col"] * 3 + ["row"] * 4 + ["row"]
    headings = {heading.get("id") for heading in elements.all("h2")}
    assert {table["aria-labelledby"] for table in elements.all("table")} <= headings


def test_shares_are_shown_with_three_decimals_and_a_bar(tmp_path: Path, page: Page) -> None:
    """A float is a number with a bar of its length; text stays text."""
    text = render(tmp_path / "page.html", page)

    assert '<td class="share" style="--share: 81.2%"><span>0.812</span></td>' in text
    assert '<td class="share" style="--share: 0.0%"><span>0.000</span></td>' in text
    assert "<td>good</td>" in text
    assert text.index("case_00002") < text.index("<tfoot>") < text.index("0.406") < text.index("Highest")


def test_text_is_never_markup(tmp_path: Path, page: Page) -> None:
    """Names from files and headers cannot add elements to the page."""
    evil = '"><script>alert(1)</script>'
    table = Table(caption=evil, columns=(evil, evil), rows=((evil, evil),), summaries=((evil, evil),), notes=(evil,))
    picture = Picture(PNG, evil, evil)
    hostile = Page(evil, (evil,), (table, Gallery(evil, (picture,))), {evil: evil}, {evil: evil})

    text = render(tmp_path / "page.html", hostile)

    assert "<script" not in text
    assert Elements(text).all("img")[0]["alt"] == evil


def test_parts_that_are_empty_are_left_out(tmp_path: Path) -> None:
    """A page of a title alone has no empty boxes, tables or headings."""
    elements = Elements(render(tmp_path / "page.html", Page("Nothing")))

    assert not {tag for tag, _ in elements.found} & {"h2", "table", "figure", "dl", "div"}


def test_table_without_rows_is_its_notes(tmp_path: Path) -> None:
    """Where nothing was found there is a sentence, not an empty table."""
    elements = Elements(render(tmp_path / "page.html", Page("A page", parts=(Table("Findings", ("Case",), ()),))))

    assert len(elements.all("h2")) == 1
    assert elements.all("table") == []


def test_numbers_are_aligned_to_the_right(tmp_path: Path) -> None:
    """Heading and cells of such a column carry the class, those of other columns do not."""
    table = Table("Sizes", ("Case", "Slices", "Remark"), (("a", "12", "odd"),), numbers=frozenset(["Slices"]))

    elements = Elements(render(tmp_path / "page.html", Page("A page", parts=(table,))))

    assert [th.get("class") for th in elements.all("th")] == [None, "number", None, None]
    assert [td.get("class") for td in elements.all("td")] == ["number", None]


def test_a_share_that_is_none_is_refused() -> None:
    """NaN has no bar, and neither have numbers in mm; a mean of ones may lie a little above 1 all the same."""
    for value in (math.nan, math.inf, 12.31, -0.1):
        with pytest.raises(ValueError, match=r"'Scores': \S+ is not a fraction from 0 to 1; write .* as text"):
            Table("Scores", ("Case", "Dice"), (("a", value),))
        with pytest.raises(ValueError, match="is not a fraction"):
            Table("Scores", ("Case", "Dice"), (("a", 0.5),), summaries=(("Mean", 0.5), ("Median", value)))

    Table("Scores", ("Case", "Dice"), (("a", 1.0000000000000002), ("b", -1e-17)))


def test_sortable_tables_bring_one_script(tmp_path: Path, page: Page) -> None:
    """However many tables sort there is one script, none for tables without rows, and no button but the script's."""
    table = page.parts[0]
    assert isinstance(table, Table)
    sortable = replace(table, sortable=True)

    elements = Elements(render(tmp_path / "page.html", replace(page, parts=(sortable, table, sortable))))
    assert elements.all("script") == [{}]
    assert elements.all("button") == []
    assert [table.get("class") for table in elements.all("table")] == ["sortable", None, "sortable", "provenance"]

    empty = replace(sortable, rows=())
    assert Elements(render(tmp_path / "page.html", replace(page, parts=(empty,)))).all("script") == []


def leaf(number: int) -> Leaf:
    """Return a leaf of a page."""
    return Leaf(f"case-{number}", f"Case {number}", Picture(PNG, "caption", f"Slices of {number}"), ("odd",))


def test_leaves_lead_to_their_neighbours(tmp_path: Path) -> None:
    """Each leaf has links to the one before, to the overview and to the next; the ends have no neighbour beyond."""
    table = Table("Cases", ("Case",), ((Link("Case 2", "case-2"),),), anchor="cases")
    leaves = Leaves("Previews", (leaf(1), leaf(2), leaf(3)), (900, 700), Link("all cases", "cases"))

    elements = Elements(render(tmp_path / "page.html", Page("A page", parts=(table, leaves))))

    assert [article["id"] for article in elements.all("article")] == ["case-1", "case-2", "case-3"]
    assert [(a.get("rel"), a["href"]) for a in elements.all("a")] == [
        (None, "#case-2"),  # in the table
        (None, "#cases"),
        ("next", "#case-2"),
        ("prev", "#case-1"),
        (None, "#cases"),
        ("next", "#case-3"),
        ("prev", "#case-2"),
        (None, "#cases"),
    ]
    places = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    assert {a["href"] for a in elements.all("a")} <= {f"#{place}" for place in places}


def test_leaves_are_drawn_when_they_are_reached(tmp_path: Path) -> None:
    """Pictures load late, with room kept for them, and the one script on the page is inside it."""
    leaves = Leaves("Previews", (leaf(1), leaf(2)), (900, 700), Link("top", "part-1"))

    elements = Elements(render(tmp_path / "page.html", Page("A page", parts=(leaves,))))

    for image in elements.all("img"):
        assert (image["loading"], image["decoding"], image["width"], image["height"]) == ("lazy", "async", "900", "700")
    assert elements.all("script") == [{}]


@pytest.mark.parametrize(
    ("content", "kind"),
    [(PNG, "png"), (b"RIFF\x00\x00\x00\x00WEBP", "webp"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"<svg/>", "svg+xml")],
    ids=["png", "webp", "jpeg", "svg"],
)
def test_pictures_say_their_format(tmp_path: Path, content: bytes, kind: str) -> None:
    """A picture from memory or from a file stands in the page with its own media type."""
    (tmp_path / "picture").write_bytes(content)
    pictures = Gallery("Plots", (Picture(content, "a", "a"), Picture(tmp_path / "picture", "b", "b")))

    elements = Elements(render(tmp_path / "page.html", Page("A page", parts=(pictures,))))

    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    assert [image["src"] for image in elements.all("img")] == [uri, uri]


def test_picture_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    """What a browser would not show is not put into a page."""
    with pytest.raises(ValueError, match="neither PNG, WebP, JPEG nor SVG"):
        write_page(tmp_path / "page.html", Page("A page", parts=(Gallery("Plots", (Picture(b"BM", "", ""),)),)))

    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_utf8_do_not_stop_the_page(tmp_path: Path) -> None:
    """Linux gives such file names with lone surrogates; they become question marks."""
    assert "case_?" in render(tmp_path / "page.html", Page("case_\udcff"))
