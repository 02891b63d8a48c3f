"""`batchmill top`: the whole system on one screen."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from contracts.errors import DatabaseUnavailable
from producer.cli.options import Json
from producer.cli.output import emit_json
from producer.cli.session import session_of

if TYPE_CHECKING:
    from producer.client import Client
    from producer.rates import Rate, Rates
    from storage.overview import Overview

REFRESH_SECONDS = 1.0
_SECOND_LOOK_SECONDS = 2.5
"""Workers report every two seconds: then there is a difference to tell."""
_MOST_JOBS = 200


def top(
    context: typer.Context,
    once: Annotated[
        bool,
        typer.Option("--once", help="One frame, after the moment that measuring rates takes; as without terminal."),
    ] = False,
    json: Json = False,
) -> None:
    """Watch pools, workers and jobs on one screen; q or Ctrl-C ends it."""
    from producer.rates import Rates

    with session_of(context).open_client() as client:
        if json or once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            overview, rates = _measured(client)
            if json:
                emit_json(_document(overview, rates))
            else:
                _print(overview, rates)
            return
        _live(client, Rates())


def _measured(client: "Client") -> "tuple[Overview, Rates]":
    """Two looks, where there is a worker whose rates show in the difference."""
    from producer.rates import Rates

    rates = Rates()
    overview = client.overview(most_jobs=_MOST_JOBS)
    rates.look(overview.workers, overview.at)
    if overview.workers:
        time.sleep(_SECOND_LOOK_SECONDS)
        overview = client.overview(most_jobs=_MOST_JOBS)
        rates.look(overview.workers, overview.at)
    return overview, rates


def _print(overview: "Overview", rates: "Rates") -> None:
    from producer.cli.dashboard import Frame

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=160)
    console.print(Frame(overview, rates))


def _live(client: "Client", rates: "Rates") -> None:
    from rich.live import Live

    from producer.cli.dashboard import Frame

    overview = client.overview(most_jobs=_MOST_JOBS)
    rates.look(overview.workers, overview.at)
    console = Console(highlight=False, emoji=False)
    live = Live(Frame(overview, rates, keys=True), console=console, screen=True, auto_refresh=False)
    with _keys() as ended:
        try:
            live.start()
            stale = False
            while True:
                live.update(Frame(overview, rates, stale=stale, keys=True), refresh=True)
                if ended(REFRESH_SECONDS):
                    return
                try:
                    overview = client.overview(most_jobs=_MOST_JOBS)
                    rates.look(overview.workers, overview.at)
                    stale = False
                except DatabaseUnavailable:  # what is shown is the last that was known, until it is back
                    stale = True
        finally:
            live.stop()  # also after a Ctrl-C within its start, which a `with` would leave on the other screen


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Keys as they are pressed; the function waits for one and says whether it was a `q`."""
    import select
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def ended(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([terminal], [], [], left)
            if ready and (not (pressed := os.read(terminal, 64)) or b"q" in pressed.lower()):
                return True
        return False

    try:
        tty.setcbreak(terminal)
        yield ended
    except KeyboardInterrupt:
        pass
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _document(overview: "Overview", rates: "Rates") -> dict[str, Any]:
    total = rates.total if rates.known else None
    workers = [{**vars(worker), **_rate(rates.of(worker.name))} for worker in overview.workers]
    return {
        "at": overview.at,
        "pools": [{**vars(pool), "jobs": {str(s): n for s, n in pool.jobs.items()}} for pool in overview.pools],
        "workers": workers,
        "jobs": [info.model_dump(mode="json") for info in overview.jobs],
        **_rate(total),
    }


def _rate(rate: "Rate | None") -> dict[str, float | None]:
    return {
        "inputs_per_second": rate.inputs if rate else None,
        "tokens_per_second": rate.tokens if rate else None,
    }
