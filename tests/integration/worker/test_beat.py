"""Beat seen from outside: its lines, and whether it says that it sends ticks."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.conftest import Mill, wait_until


class Beat:
    """A beat that ticks five times a second."""

    def __init__(self, mill: Mill, **settings: str) -> None:
        self._mill = mill
        home = mill.folder / "beat"
        home.mkdir()
        told = {"LOG_FORMAT": "json", "METRICS_PORT": "0", "TICK_SECONDS": "0.2"}
        environment = {f"BATCHMILL_{name}": value for name, value in told.items()}
        self.process: subprocess.Popen[bytes] = mill._start("worker.beat", home, **environment, **settings)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._mill.log(self.process).splitlines()]

    def address(self) -> str | None:
        found = re.search(r"http://[\d.:]+(?=/metrics)", self._mill.log(self.process))
        return found and found[0]

    def get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"{self.address()}{path}", timeout=300) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


def test_it_is_healthy_while_it_sends_ticks_and_every_line_is_an_object(mill: Mill) -> None:
    beat = Beat(mill)
    wait_until(beat.address, 30)
    wait_until(lambda: beat.get("/readyz") == 200)
    assert (beat.get("/healthz"), beat.get("/metrics")) == (200, 200)
    beat.process.terminate()
    assert beat.process.wait(20) == 0
    assert [line["level"] for line in beat.lines] == ["info", "info"]  # where it answers, and how often it ticks


def test_it_is_not_healthy_when_no_broker_takes_its_ticks(mill: Mill) -> None:
    beat = Beat(mill, BATCHMILL_BROKER_URL="redis://127.0.0.1:1")
    wait_until(beat.address, 30)
    assert beat.get("/readyz") == 503
    wait_until(lambda: beat.get("/healthz") == 503)
    with pytest.raises(subprocess.TimeoutExpired):
        beat.process.wait(0)
