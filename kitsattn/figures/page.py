"""Self-contained one-page HTML: warnings, tables and pictures in one file that needs nothing from elsewhere."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from kitsattn.files import write_text


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        caption: What it holds.
        columns: The heading of every column.
        rows: The cells, as many a row as there are columns. A float is a share in [0, 1], shown with a bar.
        summary: The last row, set off from the others; empty if there is none.
        notes: Sentences below the table.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]
    summary: tuple[str | float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption.

    Attributes:
        path: The PNG; its bytes become part of the page.
        caption: What everybody reads below it.
        description: What people hear who cannot see it.
    """

    path: Path
    caption: str
    description: str


@dataclass(frozen=True)
class Page:
    """What a page says, from top to bottom.

    Attributes:
        title: The headline.
        warnings: Sentences in the box below it.
        tables: Tables of results.
        pictures: Pictures of results.
        provenance: What the results were made with, by name.
        next_steps: What to type next: command to purpose.
    """

    title: str
    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    next_steps: Mapping[str, str] = field(default_factory=dict)


def write_page(path: Path, page: Page) -> None:
    """Write `page` as HTML with inline styles and pictures, without scripts; atomically, replacing an existing one.

    Raises:
        KitsattnError: If the file cannot be written.
        OSError: If a picture cannot be read.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = _data_uri
    source = resources.files("kitsattn.figures").joinpath("page.html.jinja").read_text(encoding="utf-8")
    write_text(path, environment.from_string(source).render(page=page))


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
