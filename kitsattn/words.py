"""Words for messages."""

from collections.abc import Iterable
from difflib import get_close_matches

_NAMED_AT_MOST = 3


def plural(count: int, noun: str) -> str:
    """Count something: `1 case`, `2 cases`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def number(value: float, limit: float) -> str:
    """Write a number in three digits, or as many as it takes to see that it is not `limit`."""
    digits = 3
    while float(text := f"{value:.{digits}g}") == limit and value != limit:
        digits += 1
    return text


def name_some(names: Iterable[str]) -> str:
    """Name the first few of many: `a, b, c, …`."""
    every = list(names)
    return ", ".join(every[:_NAMED_AT_MOST]) + (", …" if len(every) > _NAMED_AT_MOST else "")


def count_rest(names: Iterable[str], shown: int) -> str:
    """Name the first few of many in their order, and count the others: `a, b, c and 2 more`."""
    every = list(names)
    return ", ".join(every[:shown]) + (f" and {len(every) - shown} more" if len(every) > shown else "")


def readable(name: str) -> str:
    """Return a file's name with `?` for what is no UTF-8, which can neither be written nor drawn."""
    return name.encode(errors="replace").decode()


def suggest(name: str, names: Iterable[str]) -> str:
    """Return a question that names what was probably meant, to be put behind an error; nothing if nothing is near."""
    near = get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
