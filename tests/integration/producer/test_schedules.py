"""`client.schedules` and `batchmill schedules`."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from typer.testing import CliRunner, Result

from contracts.errors import (
    BatchmillError,
    InvalidParams,
    InvalidRequest,
    RefusedUrl,
    UnknownEndpoint,
    UnknownModel,
    UnknownSchedule,
    UnknownTask,
)
from contracts.runs import Changes, Drift, Thresholds
from contracts.sinks import FileSink, FolderSink, SqlSink
from contracts.sources import BatchFileSource, FileSource, SqlSource
from contracts.states import RunState
from producer import Client
from producer.cli.app import app
from producer.cli.session import Session
from storage import runs, schedules
from storage.database import Database
from tests.conftest import Mill
from tests.jobs import execute
from tests.receiver import KEY
from tests.runs import claimed, score

NIGHTLY: dict[str, Any] = {"source": "/in.jsonl", "model": "m", "sink": "/out/{date}.parquet"}
TABLES: dict[str, Any] = {
    "source": {"url": "postgresql://u:hush-1@db/app", "query": "SELECT id, input FROM texts ORDER BY id"},
    "model": "m",
    "sink": {"url": "postgresql://u:hu/sh-2@db/app", "table": "vectors"},
}


@pytest.fixture
def client(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("BATCHMILL_SECRET_KEY", KEY)
    with mill.client() as client:
        client.models.add("m", "fake:")
        yield client


@pytest.fixture
def batchmill(client: Client, mill: Mill) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["schedules", *arguments], obj=Session(mill.client))

    return run


def test_a_schedule_is_added_with_what_it_is_to_do(client: Client) -> None:
    client.webhooks.add("https://example.com/hook")
    made = client.schedules.add(
        "nightly",
        "30  2 * * *",
        timezone="Europe/Berlin",
        **TABLES,
        task="embed",
        params={"precision": "float16"},
        callback_url="https://example.com/hook?night=1",
        overlap="queue",
        catch_up="all",
        priority="normal",
        metadata={"team": "search"},
        on_bad="skip",
        report="s3://bucket/{date}.html",
        thresholds={"psi": None, "cosine": 0.1},
    )
    assert (made.name, made.cron, made.timezone, made.overlap, made.catch_up) == (
        *("nightly", "30 2 * * *", "Europe/Berlin", "queue", "all"),
    )
    spec = made.spec
    assert isinstance(spec.source, SqlSource)
    assert isinstance(spec.sink, SqlSink)
    assert (spec.task, spec.params, spec.priority, spec.on_bad) == ("embed", {"precision": "float16"}, "normal", "skip")
    assert (spec.metadata, spec.report) == ({"team": "search"}, "s3://bucket/{date}.html")
    assert spec.thresholds == Thresholds(psi=None, cosine=0.1)
    assert made.next_due_at is not None
    clock = made.next_due_at.astimezone(ZoneInfo("Europe/Berlin"))
    assert (clock.hour, clock.minute) == (2, 30)
    assert timedelta(0) < made.next_due_at - datetime.now(UTC) <= timedelta(hours=25)
    assert client.schedules.get("nightly") == made
    assert client.schedules.list() == [made]


def test_paths_mean_the_same_to_whoever_carries_a_run_out(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = client.schedules.add(
        "a", "0 1 * * *", source="logs/*.jsonl.gz", model="m", sink="out/", report="r.html"
    ).spec
    assert made.source == FileSource(url=f"{tmp_path}/logs/*.jsonl.gz")
    assert made.sink == FolderSink(url=f"{tmp_path}/out")
    assert made.report == f"{tmp_path}/r.html"
    made = client.schedules.add(
        "b", "0 1 * * *", source={"kind": "openai", "url": "b.jsonl"}, model="m", sink=Path("{date}.csv")
    ).spec
    assert made.source == BatchFileSource(url=f"{tmp_path}/b.jsonl")
    assert made.sink == FileSink(url=f"{tmp_path}/{{date}}.csv")


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"name": "two words"}, InvalidRequest, "schedule name 'two words'"),
        ({"cron": "0 0 30 2 *"}, InvalidRequest, "cron '0 0 30 2 \\*': it never fires"),
        ({"cron": "0 25 * * *"}, InvalidRequest, "'25' is no hour"),
        ({"timezone": "Europe/Berln"}, InvalidRequest, "did you mean 'Europe/Berlin'"),
        ({"model": "none"}, UnknownModel, "model 'none' is not registered"),
        ({"task": "classify"}, InvalidRequest, "model m@1 computes embed, and not classify"),
        ({"task": "dance"}, UnknownTask, "task 'dance'"),
        ({"params": {"top_k": 1}}, InvalidParams, "top_k"),
        ({"source": {"url": "x", "query": ""}}, InvalidRequest, "source: .*query"),
        ({"source": {"url": "db", "query": "SELECT 1"}}, InvalidRequest, "source: no URL of a database"),
        ({"source": 7}, InvalidRequest, "source: expected a path"),
        ({"sink": "/out.doc"}, InvalidRequest, "/out.doc: the suffix says how to write"),
        ({"sink": {"table": "t"}}, InvalidRequest, "sink: .*url"),
        ({"sink": "gopher://x/out.csv"}, InvalidRequest, "gopher"),
        ({"callback_url": "https://other.example/"}, UnknownEndpoint, "no webhook endpoint is registered"),
        ({"callback_url": "nowhere"}, RefusedUrl, "begins with https"),
        ({"overlap": "both"}, InvalidRequest, "overlap 'both': choose one of skip, queue, cancel"),
        ({"catch_up": "some"}, InvalidRequest, "catch_up 'some': choose one of latest, all, none"),
        ({"priority": "high"}, InvalidRequest, "priority 'high'"),
        ({"on_bad": "cry"}, InvalidRequest, "on_bad 'cry'"),
        ({"metadata": {"a": "x" * 9000}}, InvalidRequest, "metadata takes"),
        ({"thresholds": {"psi": 0}}, InvalidRequest, "thresholds: psi"),
        ({"thresholds": {"wsi": 1}}, InvalidRequest, "thresholds: wsi"),
    ],
)
def test_what_can_be_known_to_fail_is_refused(
    client: Client, changes: dict[str, Any], kind: type[BatchmillError], said: str
) -> None:
    arguments = {"name": "a", "cron": "0 1 * * *", **NIGHTLY} | changes
    with pytest.raises(kind, match=said) as refused:
        client.schedules.add(**arguments)
    assert "\n" not in str(refused.value)
    assert client.schedules.list() == []


def test_passwords_are_in_no_repr(client: Client) -> None:
    made = client.schedules.add("nightly", "30 2 * * *", **TABLES)
    assert "hush" not in repr(made)
    assert "sh-2" not in repr(client.schedules.run_now("nightly"))
    assert isinstance(made.spec.source, SqlSource)
    assert made.spec.source.url == "postgresql://u:hush-1@db/app"


def test_a_schedule_is_held_run_and_removed(client: Client) -> None:
    client.schedules.add("nightly", "30 2 * * *", **NIGHTLY)
    assert client.schedules.pause("nightly").next_due_at is None
    first = client.schedules.run_now("nightly")
    assert first.state is RunState.QUEUED
    second = client.schedules.run_now("nightly")
    assert (second.state, second.error_code) == (RunState.SKIPPED, "overlap")
    assert [run.id for run in client.schedules.history("nightly")] == [second.id, first.id]
    assert [run.id for run in client.schedules.history("nightly", limit=1)] == [second.id]
    resumed = client.schedules.resume("nightly")
    assert resumed.next_due_at is not None
    assert resumed.last is not None
    assert resumed.last.id == second.id
    client.models.remove("m")
    assert "'m' is not registered" in (client.schedules.get("nightly").problem or "")
    client.schedules.remove("nightly")
    for verb in (client.schedules.get, client.schedules.history, client.schedules.run_now, client.schedules.remove):
        with pytest.raises(UnknownSchedule):
            verb("nightly")


def test_the_command_line_adds_and_lists(batchmill: Callable[..., Result], client: Client) -> None:
    assert "no schedules yet" in batchmill("list").stderr
    source, sink = TABLES["source"], TABLES["sink"]
    added = batchmill(
        *("add", "tables", "0 3 * * mon", "--model", "m", "--timezone", "Asia/Kolkata", "--overlap", "cancel"),
        *("--source", source["url"], "--query", source["query"], "--template", "{title}: {body}", "--id-column", "key"),
        *("--sink", sink["url"], "--table", "vectors", "--catch-up", "none", "--skip-bad", "--priority", "normal"),
        *("--param", "precision=float16", "--metadata", "team=search", "--threshold", "psi=null"),
    )
    assert (added.exit_code, added.stdout) == (0, "tables\n"), added.stderr
    assert "is due next" in added.stderr
    made = client.schedules.get("tables")
    assert (made.overlap, made.catch_up, made.timezone) == ("cancel", "none", "Asia/Kolkata")
    assert isinstance(made.spec.source, SqlSource)
    assert (made.spec.source.columns.template, made.spec.source.columns.id) == ("{title}: {body}", "key")
    assert (made.spec.on_bad, made.spec.thresholds.psi, made.spec.params) == ("skip", None, {"precision": "float16"})
    listed = json.loads(batchmill("list", "--json").stdout)
    assert [one["name"] for one in listed] == ["tables"]
    for shown in ([*("list", "--json")], ["list"], ["show", "tables"], ["show", "tables", "--json"]):
        done = batchmill(*shown)
        assert done.exit_code == 0
        assert not {"hush-1", "sh-2"} & set(done.stdout.replace(":", " ").replace("@", " ").replace("/", " ").split())
    page = batchmill("show", "tables").stdout
    for part in ("u:***@db/app", "table vectors", "0 3 * * mon (Asia/Kolkata)", "template {title}: {body}", "cancel"):
        assert part in page
    client.models.remove("m")
    assert "no model" in batchmill("list").stdout
    assert "'m' is not registered" in batchmill("show", "tables").stdout


def test_the_command_line_adds_files(batchmill: Callable[..., Result], client: Client) -> None:
    add = ("add", "files", "0 3 * * *", "--model", "m")
    done = batchmill(*add, "--source", "/in/*.csv", "--input-column", "text", "--sink", "/out/", "--json")
    document = json.loads(done.stdout)
    assert document["spec"]["source"]["columns"]["input"] == "text"
    assert document["spec"]["sink"] == {"kind": "folder", "url": "/out", "rows_per_part": 250_000}
    again = batchmill(*add, "--source", "/in", "--sink", "/out/")
    assert again.exit_code == 1
    assert isinstance(again.exception, InvalidRequest)
    for wrong, said in (
        (("--source", "env:DB", "--sink", "/out/"), "--query"),
        (("--source", "/in", "--sink", "env:DB"), "--table"),
        (("--source", "/in.jsonl", "--openai", "--query", "SELECT 1", "--sink", "/o.jsonl"), "--openai"),
        (("--source", "/in", "--sink", "/out/", "--param", "x"), "--param"),
    ):
        refused = batchmill("add", "other", "0 3 * * *", "--model", "m", *wrong)
        assert (refused.exit_code, said in refused.stderr) == (2, True), refused.stderr


def test_the_command_line_holds_runs_and_removes(
    batchmill: Callable[..., Result], client: Client, database: Database
) -> None:
    client.schedules.add("nightly", "30 2 * * *", **NIGHTLY)
    assert "has no runs yet" in batchmill("history", "nightly").stderr
    assert "is paused" in batchmill("pause", "nightly").stderr
    assert "paused" in batchmill("list").stdout
    assert "due next" in batchmill("resume", "nightly").stderr
    first = batchmill("run-now", "nightly").stdout.strip()
    target_id = _target(client, database)
    job_id = score(database, claimed(database), target_id, ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    changes = Changes(rows=1234, new=34, changed=200, removed=7, cached=1000, computed=234, failed=3)
    with database.transaction() as connection:
        drift = Drift(rows=9, psi=0.4321, over=("psi",))
        runs.succeed(connection, claimed(database).token, changes, drift, "s3://u:hush@b/r.html")
    page = batchmill("show", "nightly").stdout
    table = batchmill("history", "nightly").stdout
    for part in ("succeeded", "1,234", "results moved: psi"):
        assert part in page
        assert part in table
    assert first in page
    assert "0.4321" in batchmill("history", "nightly", "--json").stdout
    assert "psi" in page
    second = batchmill("run-now", "nightly").stdout.strip()
    skipped = batchmill("run-now", "nightly")
    assert f"warning: it is skipped: run {second}" in skipped.stderr
    assert [one["state"] for one in json.loads(batchmill("history", "nightly", "--json").stdout)] == [
        *("skipped", "queued", "succeeded"),
    ]
    assert "hush" not in batchmill("history", "nightly", "--json").stdout
    assert "is removed" in batchmill("remove", "nightly").stderr
    for verb in ("show", "history", "pause", "resume", "run-now", "remove"):
        done = batchmill(verb, "nightly")
        assert (done.exit_code, isinstance(done.exception, UnknownSchedule)) == (1, True)


def _target(client: Client, database: Database) -> int:
    from contracts.params import parse_params
    from storage import models

    spec = client.models.get("m")
    with database.transaction() as connection:
        return models.make_target(connection, spec, parse_params(spec.task, {}))


def test_a_tick_makes_what_a_client_added(client: Client, database: Database) -> None:
    client.schedules.add("minutely", "* * * * *", **NIGHTLY)
    assert len(schedules.make_due(database, datetime.now(UTC) + timedelta(minutes=1))) == 1
    [run] = client.schedules.history("minutely")
    assert (run.schedule, run.state, run.spec) == ("minutely", RunState.QUEUED, client.schedules.get("minutely").spec)
