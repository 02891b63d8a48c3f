"""A supervisor whose worker is a stand-in; STANDIN says what goes wrong: `upgrade`, or `stubborn`."""

import logging
import os
import sys
from pathlib import Path

import psycopg

from stack.layout import Layout
from stack.processes import Program
from stack.state import StackAddresses
from stack.supervisor import supervise

MODE = os.environ.get("STANDIN", "")
# A stubborn worker ignores the polite signal, and so does what it starts.
WORKER = """
import os, signal, subprocess, sys, time
if os.environ.get("STANDIN") == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.argv[1:] != ["below"]:
        subprocess.Popen([sys.executable, "-c", os.environ["WORKER"], "below"])
time.sleep(600)
"""


def programs(addresses: StackAddresses) -> list[Program]:
    environment = {**os.environ, "WORKER": WORKER}
    command = (sys.executable, "-c", WORKER)
    return [
        Program("worker", command, environment, layout.home, stop_seconds=0.5),
        Program("beat", command, environment, layout.home, stop_seconds=0.5),
    ]


def upgrade(url: str) -> None:
    if MODE == "upgrade":
        raise RuntimeError("the schema cannot be brought up to date")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS notes (note text)")


logging.basicConfig(level=logging.INFO, format="%(message)s")
layout = Layout.of(Path(os.environ["BATCHMILL_HOME"]))
supervise(layout, programs, upgrade, detach="--detach" in sys.argv)
