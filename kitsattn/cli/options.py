"""Options that several commands share, with the same name, type and help everywhere."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from kitsattn.files import expand_path
from kitsattn.jobs import Workers
from kitsattn.labels import KITS19, KITS23, ScoringProtocol
from kitsattn.machine import available_cores

Command = TypeVar("Command", bound=Callable[..., None])

AUTO = "auto"
"""The batch size that is chosen by memory."""


Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Protocol = Literal["auto", "kits19", "kits23"]


def named_protocol(choice: Protocol) -> ScoringProtocol | None:
    """Return the protocol that was named; None leaves it to the data."""
    return next((protocol for protocol in (KITS19, KITS23) if protocol.key == choice), None)


def batch_size_check(least: int) -> Callable[[str | None], str | None]:
    """Return what refuses a --batch-size that is neither auto nor a number from `least` on."""

    def check(value: str | None) -> str | None:
        if value is None or value == AUTO or (value.isdecimal() and int(value) >= least):
            return value
        msg = f"{value!r} is neither {AUTO} nor a number from {least} on"
        raise typer.BadParameter(msg)

    return check


def choose_workers(processes: int | None, scheduler: str | None = None) -> Workers:
    """Return who works on cases: the processes or the cluster that were asked for, else one process a core."""
    return Workers(processes or available_cores(), scheduler=scheduler)


class Application(typer.Typer):
    """Commands whose arguments and options expand `~` and `$VARIABLES` in paths."""

    def command(self, *arguments: Any, **settings: Any) -> Callable[[Command], Command]:  # noqa: ANN401 - typer's own
        """Return a decorator that adds a command, as typer does."""
        add = super().command(*arguments, **settings)

        def decorate(function: Command) -> Command:
            add(_expand_paths(function))
            return function

        return decorate


def _expand_paths(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command that gets its paths expanded."""

    @wraps(function)
    def run(**values: object) -> None:
        function(**{name: _expanded(value) for name, value in values.items()})

    return run


def _expanded(value: Any) -> Any:  # noqa: ANN401 - what an option can hold
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return expand_path(value) if isinstance(value, Path) else value


WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="DIR",
        help="Folder for all default paths. (default: $KITSATTN_WORKSPACE, else ./kitsattn-workspace)",
        show_default=False,
    ),
]
AssumeHuOption = Annotated[
    bool,
    typer.Option(
        "--assume-hu", help="Take the values of every scan as HU without a check; the output records that it was given."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
DeviceOption = Annotated[
    Device, typer.Option(help="Where to run; auto uses a CUDA GPU, else an Apple GPU, else the CPU.")
]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Number format; auto uses bf16 if the device supports it in hardware.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Worker processes. (default: one a core)", show_default=False)
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        metavar="tcp://HOST:PORT",
        help="Run on the workers of a Dask cluster; all of them must see the same folders.",
        show_default=False,
    ),
]
