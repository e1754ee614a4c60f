"""Frozen settings classes, strictly to and from JSON and TOML.

Settings are frozen dataclasses that check their values in `__post_init__`. They are read with the standard library
alone, so that reading a checkpoint's header or a plan needs nothing else.
"""

import dataclasses
import json
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from kitsattn.errors import KitsattnError
from kitsattn.files import read_json
from kitsattn.words import suggest

Settings = TypeVar("Settings")


def to_json(settings: object) -> dict[str, Any]:
    """Return a settings dataclass as JSON-ready values; tuples become lists, nested settings become objects."""
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        msg = f"{settings!r} is not a settings dataclass"
        raise TypeError(msg)
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings), default=os.fspath))
    return content


def from_json(cls: type[Settings], content: object, where: str) -> Settings:
    """Make a settings dataclass from parsed JSON or TOML.

    Args:
        cls: A dataclass whose fields are bool, int, float, str, Path, Literal, tuples and mappings of these, nested
            dataclasses, or any of them or None.
        content: The parsed object.
        where: The file or section that is named in errors.

    Returns:
        The settings; fields that `content` lacks take their defaults.

    Raises:
        KitsattnError: If a key is unknown or missing, a value has the wrong type, or the class refuses a value.
    """
    if not isinstance(content, Mapping):
        msg = f"{where}: expected an object with keys, got {content!r}"
        raise KitsattnError(msg)
    assert dataclasses.is_dataclass(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(content) - set(fields))
    if unknown:
        known = ", ".join(fields)
        msg = f"{where}: unknown key {unknown[0]!r}{suggest(unknown[0], fields)}; known keys are {known}"
        raise KitsattnError(msg)
    hints = typing.get_type_hints(cls)
    values = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in content.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        msg = f"{where}: the key {missing[0]!r} is missing"
        raise KitsattnError(msg)
    try:
        return cls(**values)
    except ValueError as error:
        msg = f"{where}: {error}"
        raise KitsattnError(msg) from error


def read_settings(cls: type[Settings], path: Path) -> Settings:
    """Read a settings file; `.toml` is TOML, anything else JSON.

    Raises:
        KitsattnError: If the file is missing, malformed or refused.
    """
    return from_json(cls, read_mapping(path), str(path))


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Read the keys of a TOML or JSON file.

    Raises:
        KitsattnError: If the file is missing or malformed.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8")) if path.suffix == ".toml" else read_json(path)
    except FileNotFoundError as error:
        msg = f"{path} does not exist"
        raise KitsattnError(msg) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"{path} cannot be read as TOML: {error}"
        raise KitsattnError(msg) from error
    if not isinstance(content, Mapping):
        msg = f"{path}: expected keys with values, got {content!r}"
        raise KitsattnError(msg)
    return content


def _convert(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - any type a field can have
    """Return `value` as the type `hint` asks for, or raise."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {Union, types.UnionType}:
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None and types.NoneType in arguments else _convert(inner, value, where)
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin is not None and origin is not Literal:
        return _convert_mapping(arguments, value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[Any]", hint), value, where)
    return _check_scalar(hint, value, where)


def _check_scalar(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - see above
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            msg = f"{where} must be one of {', '.join(map(repr, choices))}, got {value!r}"
            raise KitsattnError(msg)
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not hint:
        msg = f"{where} must be of type {hint.__name__}, got {value!r}"
        raise KitsattnError(msg)
    return value


def _convert_mapping(arguments: tuple[Any, ...], value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401 - see above
    if not isinstance(value, Mapping):
        msg = f"{where} must be an object, got {value!r}"
        raise KitsattnError(msg)
    return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:  # noqa: ANN401 - see above
    if not isinstance(value, list | tuple):
        msg = f"{where} must be a list, got {value!r}"
        raise KitsattnError(msg)
    if len(arguments) == 2 and arguments[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
        hints = (arguments[0],) * len(value)
    elif len(value) == len(arguments):
        hints = arguments
    else:
        msg = f"{where} must have {len(arguments)} values, got {value!r}"
        raise KitsattnError(msg)
    return tuple(_convert(hint, item, where) for hint, item in zip(hints, value, strict=True))
