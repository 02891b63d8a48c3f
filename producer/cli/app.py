"""The application `batchmill` and how a run of it ends."""

import os
import sys
import traceback
from importlib.metadata import version
from typing import Annotated

import typer

from contracts.errors import BatchmillError, describe
from producer.cli import compress, jobs, models, purge, run, schedules, submit, top, webhooks
from producer.cli.output import emit, fail, say
from producer.cli.session import Session, session_of

FAILED, INTERRUPTED = 1, 130
WORK = "Work"

app = typer.Typer(
    help="Offline inference on a message queue: hand over files and a model, get results.",
    epilog="Without BATCHMILL_DATABASE_URL and BATCHMILL_BROKER_URL, servers start by themselves under ~/.batchmill.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command(rich_help_panel=WORK)(run.run)
app.command("submit", rich_help_panel=WORK)(submit.submit)
app.add_typer(compress.app, name="compress", rich_help_panel=WORK)
app.add_typer(jobs.app, name="jobs", rich_help_panel=WORK)
app.add_typer(models.app, name="models", rich_help_panel=WORK)
app.add_typer(schedules.app, name="schedules", rich_help_panel=WORK)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=WORK)
app.command("top", rich_help_panel=WORK)(top.top)
app.command("purge", rich_help_panel=WORK)(purge.purge)


def _version(wanted: bool) -> None:
    if wanted:
        emit(f"batchmill {version('batchmill')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show where in the code an error comes from.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    session_of(context).verbose = verbose


def execute(session: Session) -> int:
    """Run the command of `sys.argv`; the exit code: 0, 1 for an error of ours, 2 for wrong usage, 130 for Ctrl-C."""
    code = FAILED
    try:
        app(obj=session, prog_name="batchmill")
    except SystemExit as end:  # typer always ends in it
        code = end.code if isinstance(end.code, int) else FAILED
        if code == INTERRUPTED:
            say(session.farewell)
    except Exception as error:
        if session.verbose:
            traceback.print_exc()
        fail(_explained(error))
    return _flushed(code)


def _explained(error: Exception) -> str:
    """What ended the command, and what to do about it."""
    if isinstance(error, BatchmillError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:  # the machine's say, not a mistake in here
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    return f"this is a bug of batchmill: {describe(error)} (`batchmill --verbose …` shows where)"


def _flushed(code: int) -> int:
    """The code, once stdout has taken everything or nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    return code
