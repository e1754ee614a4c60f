"""Results of a command, on stdout: text and tables, or one JSON document."""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kitsattn.cli.console import say

if TYPE_CHECKING:
    from rich.table import Table

_WIDEST = 1_000
"""Columns of a table that is printed whole, at most."""


@dataclass(frozen=True)
class Output:
    """Where a command's results go.

    Attributes:
        json: Whether they are printed as bare JSON, as --json asks for.
    """

    json: bool

    def show(self, content: Any, lines: "Iterable[str | Table]", *, whole: bool = False) -> None:  # noqa: ANN401
        """Print a result.

        Args:
            content: The result for JSON, anything that `json` takes.
            lines: The same as lines and tables for people. A generator is not run under --json.
            whole: Whether tables are never broken or cut where the terminal is narrow; their lines are then.
        """
        if self.json:
            sys.stdout.write(json.dumps(content, indent=2) + "\n")
            return
        for line in lines:
            self.print(line, whole=whole)

    def print(self, *lines: "str | Table", whole: bool = False) -> None:
        """Print lines and tables that are shown before the result is complete; not under --json."""
        if self.json:
            return
        for line in lines:
            if isinstance(line, str):
                sys.stdout.write(line + "\n")
            else:
                _print_table(line, whole=whole)

    def say(self, message: str) -> None:
        """Print something that is not a result on stderr; not under --json."""
        if not self.json:
            say(message)


def _print_table(table: "Table", *, whole: bool) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    # The name of a file may look like markup.
    console = Console(width=width, markup=False, emoji=False)
    if whole:
        needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
        console.width = max(console.width, needed)
    console.print(table)
