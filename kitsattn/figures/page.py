"""Self-contained one-page HTML: warnings, tables and pictures in one file that needs nothing from elsewhere."""

import base64
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from kitsattn.files import write_text

_MEDIA_TYPES = {b"\x89PNG": "png", b"RIFF": "webp", b"\xff\xd8\xff": "jpeg", b"<": "svg+xml"}


@dataclass(frozen=True)
class Link:
    """A cell that leads to another place on the page.

    Attributes:
        text: What it says.
        anchor: The `Leaf` or `Table` of that anchor.
    """

    text: str
    anchor: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        caption: What it holds.
        columns: The heading of every column.
        rows: The cells, as many a row as there are columns. A float is a share in [0, 1], shown with a bar; other
            numbers are text, such as "12.31".
        summaries: The last rows, set off from the others.
        notes: Sentences below the table, or in its place where there are no rows.
        numbers: The columns that are aligned to the right.
        anchor: What links to it name; empty if there are none.
        sortable: Whether a click on a column's heading sorts the rows by it, and a second one reverses them: numbers
            by value, text in natural order, and text among numbers last. The last rows stay.

    Raises:
        ValueError: If a float is not from 0 to 1; undefined values are text.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | Link, ...], ...]
    summaries: tuple[tuple[str | float, ...], ...] = ()
    notes: tuple[str, ...] = ()
    numbers: frozenset[str] = frozenset()
    anchor: str = ""
    sortable: bool = False

    def __post_init__(self) -> None:
        for value in itertools.chain(*self.rows, *self.summaries):
            # Rounded as it is shown: a mean of ones may be a little above 1.
            if isinstance(value, float) and not 0.0 <= round(value, 3) <= 1.0:
                msg = f"{self.caption!r}: {value} is not a fraction from 0 to 1; write other numbers, and NaN, as text"
                raise ValueError(msg)


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        image: PNG, WebP, JPEG or SVG, or the file that holds it; its bytes become part of the page.
        caption: What everybody reads below it.
        description: What people hear who cannot see it.
    """

    image: Path | bytes
    caption: str
    description: str


@dataclass(frozen=True)
class Gallery:
    """Pictures under a heading.

    Attributes:
        caption: The heading.
        pictures: One below the other, or side by side where they are plots.
        side_by_side: Whether two stand in a row where there is room.
    """

    caption: str
    pictures: tuple[Picture, ...]
    side_by_side: bool = False


@dataclass(frozen=True)
class Leaf:
    """A picture among many that are leafed through.

    Attributes:
        anchor: What links to it name, without spaces.
        heading: Its own heading.
        picture: The picture.
        remarks: Sentences below its caption that are set off from it.
    """

    anchor: str
    heading: str
    picture: Picture
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leaves:
    """Pictures of one size that are leafed through: by links, by scrolling, and with the arrow keys.

    Attributes:
        caption: The heading.
        leaves: In the order in which they are leafed through.
        size: Width and height of the pictures in pixels, so that a browser keeps room for those it has not drawn yet.
        overview: Where every leaf leads back to.
    """

    caption: str
    leaves: tuple[Leaf, ...]
    size: tuple[int, int]
    overview: Link


@dataclass(frozen=True)
class Page:
    """What a page says, from top to bottom.

    Attributes:
        title: The headline.
        warnings: Sentences in the box below it.
        parts: Tables and pictures of results.
        provenance: What the results were made with, by name.
        next_steps: What to type next: command to purpose.
    """

    title: str
    warnings: tuple[str, ...] = ()
    parts: tuple[Table | Gallery | Leaves, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    next_steps: Mapping[str, str] = field(default_factory=dict)


def write_page(path: Path, page: Page) -> None:
    """Write `page` as HTML with inline styles and pictures; atomically, replacing an existing one.

    There are scripts only where they are needed: one turns `Leaves` at the arrow keys, one makes buttons of the
    headings of sortable tables. Without JavaScript the page reads the same, and has no such buttons.

    Raises:
        KitsattnError: If the file cannot be written.
        OSError: If a picture cannot be read.
        ValueError: If a picture is of another format.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = _data_uri
    environment.tests["link"] = lambda cell: isinstance(cell, Link)
    for kind in (Table, Gallery, Leaves):
        environment.tests[kind.__name__.lower()] = lambda part, kind=kind: isinstance(part, kind)
    source = resources.files("kitsattn.figures").joinpath("page.html.jinja").read_text(encoding="utf-8")
    write_text(path, environment.from_string(source).render(page=page))


def _data_uri(image: Path | bytes) -> str:
    content = image if isinstance(image, bytes) else image.read_bytes()
    kind = next((kind for start, kind in _MEDIA_TYPES.items() if content.startswith(start)), None)
    if kind is None:
        msg = f"a picture that is neither PNG, WebP, JPEG nor SVG: {image!r:.60}"
        raise ValueError(msg)
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
