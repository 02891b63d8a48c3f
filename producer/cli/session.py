"""What the parts of one run of the command line share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from producer.client import Client


@dataclass
class Session:
    """How to reach the servers, and what to say when it goes wrong."""

    open_client: Callable[[], "Client"]
    """A client of the configured servers, or of the embedded stack, which is started when it does not run."""
    find_database: Callable[[], str | None] = lambda: None
    """The database's address, where servers are configured or known to run; nothing is started."""
    verbose: bool = False
    """Show where in the code an error comes from."""
    farewell: str = "interrupted"
    """What Ctrl-C leaves behind."""


def session_of(context: typer.Context) -> Session:
    """The session that the command was started with."""
    session = context.obj
    assert isinstance(session, Session)
    return session
