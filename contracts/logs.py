"""Logging of all programs: each line says when, how bad, which job, shard and worker, for people or as JSON.

Modules log through the standard library alone. Here its records get their form: what is bound around a piece of work
(`bound`) stands in each line that is logged meanwhile by the same thread, in libraries too.
"""

import logging
import sys
from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from contracts.settings import Settings

if TYPE_CHECKING:
    from structlog.typing import Processor

OURS = ("contracts", "storage", "producer", "worker", "stack")
"""Loggers that the setting speaks of; of libraries one hears what is wrong, and no more: they may quote inputs."""


def configure(settings: Settings | None = None, **always: str) -> None:
    """Give every logger of this process its level and form; a second call replaces what the first one did.

    Args:
        settings: Say the form and the level; before they are read, lines are for people.
        always: Stands in each line, say `worker="host:17"`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter("console" if settings is None else settings.log_format, **always))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = logging.getLevelNamesMapping()["INFO" if settings is None else settings.log_level.upper()]
    root.setLevel(max(level, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)


def formatter(form: str, **always: str) -> logging.Formatter:
    """What makes a line of a record: `console` or `json`.

    An exception is one field of a JSON line. No form shows the variables of its frames, which may hold inputs.
    """
    import structlog  # here: a client that logs nothing has no use for it

    def add_always(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**always, **event}

    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        add_always,
    ]
    rendering: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        common.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        rendering += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        common.append(structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False))
        rendering.append(
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                pad_level=False,
                exception_formatter=structlog.dev.plain_traceback,
            )
        )
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=common, processors=rendering)


class Ids:
    """Ids of jobs or shards as a field: each once, with commas between; written out only if a line is."""

    def __init__(self, values: Sequence[UUID]) -> None:
        self._values = values

    def __repr__(self) -> str:
        return ",".join(dict.fromkeys(map(str, self._values)))


def bound(**fields: Any) -> AbstractContextManager[None]:
    """What stands in each line that this thread logs within the block."""
    import structlog

    return structlog.contextvars.bound_contextvars(**fields)
