"""Words for messages."""

from collections.abc import Iterable

_NAMED_AT_MOST = 3


def plural(count: int, noun: str) -> str:
    """Count something: `1 case`, `2 cases`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def name_some(names: Iterable[str]) -> str:
    """Name the first few of many: `a, b, c, …`."""
    every = list(names)
    return ", ".join(every[:_NAMED_AT_MOST]) + (", …" if len(every) > _NAMED_AT_MOST else "")
