"""What the shell offers for arguments that name something: asked of a database that runs, or nothing at all.

Nothing is started for it, nothing is said, and little is imported: a person waits between two keys.
"""

from typing import TYPE_CHECKING

import typer

from producer.cli.session import session_of

if TYPE_CHECKING:
    from storage.glimpse import What

Words = list[tuple[str, str]]
"""What may be typed, each with what it means."""


def model_references(context: typer.Context, incomplete: str) -> Words:
    """Names of registered models; their versions once there is an `@`."""
    return _look(context, "versions" if "@" in incomplete else "models", incomplete)


def job_ids(context: typer.Context, incomplete: str) -> Words:
    """The newest jobs."""
    return _look(context, "jobs", incomplete)


def endpoints(context: typer.Context, incomplete: str) -> Words:
    """Numbers of the receivers of webhooks; their URLs once one is begun."""
    return _look(context, "urls" if incomplete[:1].isalpha() else "endpoints", incomplete)


def callback_urls(context: typer.Context, incomplete: str) -> Words:
    """URLs that webhooks may go to."""
    return _look(context, "urls", incomplete)


def schedule_names(context: typer.Context, incomplete: str) -> Words:
    """Names of schedules."""
    return _look(context, "schedules", incomplete)


def pools(context: typer.Context, incomplete: str) -> Words:
    """Pools that models belong to."""
    return _look(context, "pools", incomplete)


def _look(context: typer.Context, what: "What", incomplete: str) -> Words:
    try:
        url = session_of(context).find_database()
        if url is None:
            return []
        from storage import glimpse

        return glimpse.words(url, what, incomplete)
    except Exception:
        return []  # an error here would land in the middle of a line that somebody types
