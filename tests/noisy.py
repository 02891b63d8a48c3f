"""`NOISY=worker python -m tests.noisy`: a program of ours that logs all that the libraries beneath it have to say."""

import logging
import os
import runpy
from typing import Any

from contracts import logs


def main(module: str) -> None:
    """Run a module as a program, with every logger at its most talkative.

    SQLAlchemy's is at INFO, which shows statements: at DEBUG it shows rows, which is what DEBUG there is for.
    """
    configure = logs.configure

    def noisily(*arguments: Any, **always: str) -> None:
        configure(*arguments, **always)
        logging.getLogger().setLevel(logging.DEBUG)
        logging.getLogger("sqlalchemy.engine").setLevel(logging.INFO)

    logs.configure = noisily
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(os.environ["NOISY"])
