import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from uuid import UUID

import pytest

from contracts import logs
from contracts.settings import Settings

NAMES = ("", *logs.OURS)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in NAMES}
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def fail(secret: str) -> None:
    hidden = [secret]
    raise ValueError(len(hidden))


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_of_json_says_who_what_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"), worker="host:1")
    with logs.bound(job="j", shard="s"):
        logging.getLogger("worker.process").info("%d of %s", 3, "many")
    logging.getLogger("storage.database").warning("äh\nzwei")
    first, second = map(json.loads, said(capsys))
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "3 of many",
        "level": "info",
        "logger": "worker.process",
        "worker": "host:1",
        "job": "j",
        "shard": "s",
    }
    assert second["event"] == "äh\nzwei"
    assert "job" not in second


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_shows_where_and_no_variables(capsys: pytest.CaptureFixture[str], form: str) -> None:
    logs.configure(Settings(log_format=form))
    try:
        fail("CANARY".lower())
    except ValueError:
        logging.getLogger("worker").exception("it failed")
    text = capsys.readouterr().err
    assert "in fail" in text
    assert "ValueError: 1" in text
    assert "canary" not in text
    if form == "json":
        assert json.loads(text)["exception"].startswith("Traceback")


def test_of_libraries_one_hears_only_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_level="debug"))
    logging.getLogger("worker.x").debug("ours")
    logging.getLogger("celery").info("theirs")
    logging.getLogger("celery").warning("wrong")
    lines = said(capsys)
    assert [("ours" in line, "wrong" in line) for line in lines] == [(True, False), (False, True)]


def test_the_level_holds_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_level="error"))
    logging.getLogger("worker.x").warning("ours")
    logging.getLogger("celery").warning("theirs")
    assert said(capsys) == []


@pytest.mark.parametrize(("form", "shown"), [("json", '"shard": "{},{}"'), ("console", "shard={},{}")])
def test_ids_stand_once(capsys: pytest.CaptureFixture[str], form: str, shown: str) -> None:
    logs.configure(Settings(log_format=form))
    one, other = UUID(int=1), UUID(int=2)
    with logs.bound(shard=logs.Ids([one, other, one])):
        logging.getLogger("worker").info("it")
    assert shown.format(one, other) in capsys.readouterr().err


def test_whoever_logs_nothing_does_not_import_structlog() -> None:
    script = "import sys; from producer import Client; assert not {'structlog', 'opentelemetry'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
