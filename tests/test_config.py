"""Strict reading of settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from kitsattn.config import from_json, read_settings, to_json
from kitsattn.errors import KitsattnError


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    size: tuple[int, int] = (3, 4)
    rates: tuple[float, ...] = (0.5,)
    kind: Literal["a", "b"] = "a"
    limit: float | None = None
    inner: Inner = Inner()
    table: Mapping[str, int] = field(default_factory=dict)
    anything: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            msg = f"size must be positive, got {self.size}"
            raise ValueError(msg)


def test_settings_survive_json_and_back() -> None:
    """What is written is read back as the same settings, tuples and nested settings included."""
    settings = Outer("x", (5, 6), (1.5, 2.0), "b", 0.25, Inner(7), {"k": 1}, {"list": [1, "a"]}, (Inner(2), Inner()))
    assert from_json(Outer, to_json(settings), "here") == settings


def test_missing_keys_take_their_defaults_and_whole_numbers_become_floats() -> None:
    """A partial file is filled up; 2 is a good float."""
    settings = from_json(Outer, {"name": "x", "limit": 2}, "here")
    assert settings == Outer("x", limit=2.0)
    assert type(settings.limit) is float


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "x", "siez": [1, 2]}, "here: unknown key 'siez' (did you mean 'size'?); known keys are name, size"),
        ({}, "here: the key 'name' is missing"),
        ({"name": 3}, "here: name must be of type str, got 3"),
        ({"name": "x", "size": [1]}, "here: size must have 2 values, got"),
        ({"name": "x", "size": 1}, "here: size must be a list, got 1"),
        ({"name": "x", "size": [True, 1]}, "here: size must be of type int, got True"),
        ({"name": "x", "size": [0, 1]}, "here: size must be positive, got (0, 1)"),
        ({"name": "x", "kind": "c"}, "here: kind must be one of 'a', 'b', got 'c'"),
        ({"name": "x", "inner": {"deep": 1}}, "here: inner: unknown key 'deep'"),
        ({"name": "x", "layers": [{"deep": 1}]}, "here: layers: unknown key 'deep'"),
        ({"name": "x", "layers": [1]}, "here: layers: expected an object with keys, got 1"),
        ({"name": "x", "table": [1]}, "here: table must be an object, got"),
        ({"name": "x", "table": {"k": "1"}}, "here: table.k must be of type int, got '1'"),
        ([1], "here: expected an object with keys, got"),
    ],
)
def test_anything_else_is_refused_by_name(content: object, message: str) -> None:
    """An unknown key, a wrong type or a refused value is named with its place."""
    with pytest.raises(KitsattnError) as caught:
        from_json(Outer, content, "here")
    assert str(caught.value).startswith(message)


def test_toml_and_json_files_are_read_alike(tmp_path: Path) -> None:
    """The suffix decides the format."""
    (tmp_path / "a.toml").write_text('name = "x"\nsize = [1, 2]\n[inner]\ndepth = 5\n')
    (tmp_path / "a.json").write_text('{"name": "x", "size": [1, 2], "inner": {"depth": 5}}')
    expected = Outer("x", (1, 2), inner=Inner(5))
    assert read_settings(Outer, tmp_path / "a.toml") == read_settings(Outer, tmp_path / "a.json") == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "name = ", "cannot be read as TOML"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", "[1]", "expected keys with values"),
        ("gone.toml", None, "does not exist"),
        ("gone.json", None, "does not exist"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    """A malformed or missing file is named."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(KitsattnError, match=message) as caught:
        read_settings(Outer, tmp_path / name)
    assert name in str(caught.value)
