"""The documentation and what it speaks of agree."""

import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]


def test_cli_reference_is_fresh() -> None:
    """docs/reference/cli.md is what the command line's own help says now."""
    constraints = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if f"typer=={importlib.metadata.version('typer')}" not in constraints:
        pytest.skip("typer words its help differently from release to release; the page follows constraints.txt")
    script = PROJECT / "docs" / "generate_cli_reference.py"
    run = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")


def test_navigation_lists_every_page_once() -> None:
    """Each page of docs/ stands in the navigation, and the navigation names no page that is not there."""
    settings = tomllib.loads((PROJECT / "zensical.toml").read_text(encoding="utf-8"))
    listed = sorted(_pages(settings["project"]["nav"]))
    docs = PROJECT / "docs"
    assert listed == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))


def _pages(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for target in [entry] if isinstance(entry, str) else entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from _pages(target)
