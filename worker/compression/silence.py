"""Libraries that tell of themselves what nobody here can do anything about."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO


@contextmanager
def silence() -> Iterator[None]:
    """No stages on standard output, no warnings, and no records of less than an error, in the whole process."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
