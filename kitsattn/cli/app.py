"""The application: its commands, its global options, and how it ends."""

import logging
import signal
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from kitsattn.cli import demo, doctor, download, evaluate, models, predict, preprocess, train
from kitsattn.cli.console import configure_logging, drop_stream, open_standard_streams
from kitsattn.cli.options import Application
from kitsattn.errors import Interrupted, KitsattnError
from kitsattn.notices import RESEARCH_NOTICE
from kitsattn.version import __version__

_BY_SIGNAL = 128
"""Added to the number of the signal that ended a command, as shells do."""

_log = logging.getLogger(__name__)


class _Commands(TyperGroup):
    """The commands in the order of the work, and what their errors become."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # typer has its own click
        """Return the names in the order of the usual work, not of their registration."""
        del ctx
        return ["download", "preprocess", "train", "predict", "evaluate", "models", "demo", "doctor"]

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run a command; a mistake the user can fix is one line and exit code 1, Ctrl-C exit code 130."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KitsattnError as error:
            sys.stderr.write(f"error: {error}\n")
            raise typer.Exit(1) from None
        except BrokenPipeError:
            raise  # the reader of a pipe has gone: typer ends without a word
        except OSError as error:
            drop_stream(sys.stdout)
            _log.debug("where this came from", exc_info=True)
            where = "" if error.filename is None else f"{error.filename}: "
            sys.stderr.write(f"error: {where}{error.strerror or error} (kitsattn -v shows where this came from)\n")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as error:
            sys.stderr.write("interrupted: whatever was finished is kept, run the same command to go on\n")
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            raise typer.Exit(_BY_SIGNAL + number) from None
        return result


app = Application(
    name="kitsattn",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=RESEARCH_NOTICE,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"kitsattn {__version__}\n")
        raise typer.Exit


@app.callback()
def kitsattn(
    *,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Verbose output.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show only warnings and errors, and no progress bars.")
    ] = False,
) -> None:
    """Segment kidneys and kidney tumours in CT with an attention DeepLabv3+ on 2.5D input.

    The usual order is preprocess, train, predict, evaluate; each works without paths on ./kitsattn-workspace.
    New here? `kitsattn demo` segments a real CT, then runs all of it on made-up scans in about two minutes.
    """
    configure_logging(verbose=verbose, quiet=quiet)


app.add_typer(download.app, name="download")
app.command("preprocess")(preprocess.preprocess)
app.command("train")(train.train)
app.command("predict")(predict.predict)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(models.app, name="models")
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the application and exit.

    The exit code is 0 on success, 1 on a mistake the user can fix, 2 on wrong usage, 130 on Ctrl-C, 143 on SIGTERM in
    training.
    """
    open_standard_streams()
    configure_logging(verbose=False, quiet=False)
    app()
