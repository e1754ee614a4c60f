"""The terminal: what is not a result goes to stderr and to log files; standard streams that are closed or go away."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from kitsattn.errors import KitsattnError

_logger = logging.getLogger("kitsattn")


def configure_logging(*, verbose: bool, quiet: bool) -> None:
    """Send the package's log to stderr: INFO and above, DEBUG when verbose, WARNING when quiet."""
    handler = _Terminal()
    handler.setFormatter(_Formatter("%(message)s"))
    handler.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    _logger.handlers = [handler]
    _logger.setLevel(logging.DEBUG)
    _logger.propagate = False


def say(message: str) -> None:
    """Tell the user something that is not a result; goes to stderr and to the log file."""
    _logger.info(message)


def command_line(*words: str | Path, workspace: Path | None = None) -> str:
    """Return a command of this program as it can be typed; the workspace is named if the user named one."""
    place = [] if workspace is None else ["--workspace", workspace]
    return shlex.join(map(str, ["kitsattn", *words, *place]))


def warn(message: str) -> None:
    """Tell the user something that must not be missed, under -q neither; goes to stderr and to the log file."""
    _logger.warning(message)


def open_standard_streams() -> None:
    """Open to nowhere what is closed of stdin, stdout and stderr, as under pythonw and some supervisors.

    The descriptors are opened too: else the next file that is opened has the number of stdout or stderr, and what a
    library prints goes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends


def drop_stream(stream: TextIO) -> None:
    """Send to nowhere what a stream could not write: at its end the interpreter would try again, and complain."""
    with suppress(OSError), Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Write the package's log to a file as well, with times; an existing file is added to.

    Raises:
        KitsattnError: If the file cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror or error}): choose another --workspace, or fix this one"
        raise KitsattnError(msg) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _logger.addHandler(handler)
    _logger.debug("command: %s", " ".join(["kitsattn", *sys.argv[1:]]))
    try:
        yield
    except BaseException:
        _logger.debug("the command ended early", exc_info=True)
        raise
    finally:
        _logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()


def stderr_is_drawn_on() -> bool:
    """Return whether bars and tables are drawn: stderr is a terminal, and -q was not given."""
    return sys.stderr.isatty() and _logger.handlers[0].level <= logging.INFO


@contextmanager
def leave_out(name: str) -> Iterator[None]:
    """Keep the messages of one logger from the terminal; they go to the log file all the same."""

    def is_of_another(record: logging.LogRecord) -> bool:
        return record.name != name

    terminal = _logger.handlers[0]
    terminal.addFilter(is_of_another)
    try:
        yield
    finally:
        terminal.removeFilter(is_of_another)


class _Terminal(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at that moment: a progress bar takes its place, to keep itself below the messages."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Go on unheard where the terminal has gone."""
        if isinstance(sys.exception(), OSError):
            drop_stream(sys.stderr)
        else:
            super().handleError(record)


class _LogFile(logging.FileHandler):
    """A log file; where it cannot be written, a full disk for example, the command goes on and says so itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        del record


class _Formatter(logging.Formatter):
    """Plain text for information, the level in front of anything worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno > logging.INFO else text
