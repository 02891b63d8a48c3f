"""What `batchmill run` prints, and what it refuses before anything is started."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import typer
from typer.testing import CliRunner

from contracts.errors import InvalidRequest
from contracts.runs import RunInfo, RunProgress, RunSpec
from contracts.sinks import parse_sink
from contracts.states import RunState
from producer.cli import places
from producer.cli import run as command
from producer.cli.app import app
from producer.cli.session import Session

SPEC = {
    "source": {"kind": "sql", "url": "postgresql://me:hush@host/name", "query": "SELECT 1"},
    "model": "m",
    "sink": {"kind": "sql", "url": "postgresql://me:hush hush@host/name", "table": "scores"},
}


def made(**more: Any) -> RunInfo:
    now = datetime.now(UTC)
    known = {"schedule": None, "due_at": None, "job_id": None, "progress": RunProgress(), "changes": None}
    known |= {"drift": None, "error_code": None, "error_message": None, "started_at": now, "finished_at": now}
    known |= {"id": uuid4(), "state": RunState.SUCCEEDED, "spec": RunSpec.model_validate(SPEC), "created_at": now}
    return RunInfo.model_validate({"report": "s3://key:hush@bucket/r.html"} | known | more)


def test_passwords_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    command._show(None, made(), json=True)  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert json.loads(printed.out)["run"]["spec"]["sink"]["url"] == "postgresql://me:***@host/name"
    assert "s3://key:***@bucket/r.html" in printed.err
    assert "hush" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["in.jsonl"], "SOURCE"),
        (["--table", "t"], "--table"),
        (["--report", "r.html"], "--report"),
        (["--param", "a=1"], "--param"),
        (["--priority", "normal"], "--priority"),
        (["--skip-bad"], "--skip-bad"),
        (["-m", "m"], "--model"),
    ],
)
def test_a_run_that_goes_on_is_given_nothing_else(more: list[str], said: str) -> None:
    session = Session(open_client=lambda: pytest.fail("nothing is started for it"))
    arguments = ["run", "--resume", str(uuid4()), *more]
    done = CliRunner().invoke(app, arguments, obj=session, env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert f"the run knows what it is to do: leave out {said}" in done.output


def test_a_source_or_a_sink_as_a_json_object() -> None:
    source = {"url": "pairs.parquet", "columns": {"template": {"query": "{q}", "documents": "{a}"}}}
    assert places.source_of(json.dumps(source), None, None, None, None) == source
    sink = {"url": "sqlite:///x.db", "table": "t", "columns": {"review": "id"}, "rows_per_transaction": 100}
    assert places.sink_of(f" {json.dumps(sink)}", None) == sink
    for call in (
        lambda: places.source_of("{}", "SELECT 1", None, None, None),
        lambda: places.source_of("{}", None, None, None, None, openai=True),
        lambda: places.sink_of("{}", "t"),
    ):
        with pytest.raises(typer.BadParameter, match="a JSON object says everything of the s"):
            call()
    with pytest.raises(typer.BadParameter, match="not JSON"):
        places.sink_of('{"url": ', None)
    with pytest.raises(InvalidRequest, match="sink: "):
        parse_sink(places.sink_of('{"path": "x"}', None))
