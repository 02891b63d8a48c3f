"""How a program of ours begins and ends: settings are read once, and an error of ours is one line."""

import logging
from collections.abc import Callable

from contracts import logs
from contracts.errors import BatchmillError
from contracts.settings import Settings, load_settings


def enter(name: str, run: Callable[[Settings], int | None]) -> int:
    """Run a program with the settings of its environment; the exit code: what it returns, 0 for nothing.

    An error of ours is one line of its log, and exit code 1.
    """
    logs.configure()
    try:
        return run(load_settings()) or 0
    except BatchmillError as error:
        logging.getLogger(name).error("%s: %s", error.code, error)
        return 1
