"""`NOISY=worker python -m tests.noisy`: a program of ours that logs all that the libraries beneath it have to say."""

import logging
import os
import runpy


def main(module: str) -> None:
    """Run a module as a program, with every logger at its most talkative.

    SQLAlchemy's is at INFO, which shows statements: at DEBUG it shows rows, which is what DEBUG there is for.
    """
    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("sqlalchemy.engine").setLevel(logging.INFO)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(os.environ["NOISY"])
