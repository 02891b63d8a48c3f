"""What people look at, asked of the database: listings of jobs, the overview, measurements, names for completion."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from contracts.errors import InvalidRequest
from contracts.states import JobState
from producer.cli.app import app
from producer.cli.session import Session
from storage import control, glimpse, overview, plans, workers
from storage.database import Database
from storage.plans import Plan, Rate
from storage.workers import WorkerReport
from tests.conftest import Mill
from tests.jobs import claimed, execute, finish, make_model, make_target, open_job, submit

LONG_AGO = "UPDATE jobs SET created_at = now() - interval '2 days' WHERE id = :id"


def invoke(mill: Mill, *arguments: str) -> Any:
    done = CliRunner().invoke(app, arguments, obj=Session(mill.client), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def report(name: str, pool: str = "default", **changes: Any) -> WorkerReport:
    values = {"device": "cpu", "slots": 4, "held": 1, "models": [], "model_bytes": 5, "memory_limit": 10}
    return WorkerReport(**{"name": name, "pool": pool, "inputs": 0, "tokens": 0, **values, **changes})


def test_jobs_are_listed_by_what_is_asked_for(mill: Mill, database: Database) -> None:
    first, second = make_target(database), make_target(database, digest="other")
    scores = make_target(database, "scorer", task="score", pool="gpus")
    old, newer = submit(database, first, ["a"]), submit(database, second, ["b"])
    scored = submit(database, scores, ["c"], pool="gpus")
    execute(database, LONG_AGO, id=old)
    with database.transaction() as connection:
        control.cancel(connection, newer)

    def listed(*options: str) -> list[UUID]:
        return [UUID(job["id"]) for job in invoke(mill, "jobs", "list", "--json", *options)]

    assert listed() == [scored, newer, old]
    assert listed("--model", "model") == [newer, old]
    assert listed("--model", "model@1") == [old]
    assert listed("--task", "score") == listed("--pool", "gpus") == [scored]
    assert listed("--since", "1d") == [scored, newer]
    assert listed("--until", "1d") == [old]
    assert listed("--since", "3d", "--until", "12h", "--state", "queued", "--pool", "default") == [old]
    assert listed("--state", "cancelled", "--state", "queued", "--limit", "2") == [scored, newer]
    assert listed("--model", "other") == []
    with mill.client() as client, pytest.raises(InvalidRequest):
        client.jobs(task="translate")


def test_the_overview_has_what_is_open_and_who_works(mill: Mill, database: Database) -> None:
    target_id = make_target(database)
    running = submit(database, target_id, ["a"])
    assert claimed(database).job_id == running
    queued, paused = (submit(database, target_id, [name]) for name in "bc")
    open_job(database, target_id)
    make_target(database, "idle", pool="gpus")
    with database.transaction() as connection:
        control.pause(connection, paused)
        workers.report(connection, report("host:1", models=[1]))
        workers.report(connection, report("gone:2"))
    execute(database, "UPDATE workers SET seen_at = now() - interval '2 minutes' WHERE name = 'gone:2'")
    execute(database, "UPDATE jobs SET queued_at = now() - interval '1 hour' WHERE id = :id", id=queued)

    with mill.client() as client:
        found = client.overview()
        few = client.overview(most_jobs=2)
    assert [job.id for job in found.jobs[:2]] == [running, queued]
    assert [job.state for job in found.jobs] == ["running", "queued", "paused", "receiving"]
    assert [job.id for job in few.jobs] == [running, queued]
    default, gpus = found.pools
    assert (default.pool, default.claimable, gpus.pool, gpus.claimable) == ("default", 1, "gpus", 0)
    assert default.jobs == dict.fromkeys([JobState.RUNNING, JobState.QUEUED, JobState.PAUSED, JobState.RECEIVING], 1)
    assert (gpus.jobs, gpus.oldest) == ({}, None)
    assert default.oldest is not None
    assert timedelta(minutes=59) < found.at - default.oldest < timedelta(minutes=61)
    assert [(worker.name, worker.models) for worker in found.workers] == [("host:1", ["model@1"])]
    assert found.models == 2


def test_top_once_is_a_frame_or_a_document(mill: Mill, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.cli.top._SECOND_LOOK_SECONDS", 0.0)
    assert "batchmill models add" in invoke(mill, "top", "--once")
    submit(database, make_target(database), ["a"])
    with database.transaction() as connection:
        workers.report(connection, report("host:1"))

    found = invoke(mill, "top", "--json")
    assert found["pools"][0] | {"oldest": None} == {
        "pool": "default",
        "claimable": 1,
        "oldest": None,
        "jobs": {"queued": 1},
    }
    assert (found["workers"][0]["name"], found["workers"][0]["inputs_per_second"]) == ("host:1", None)
    assert (found["jobs"][0]["state"], found["inputs_per_second"]) == ("queued", None)
    text = invoke(mill, "top")  # no terminal
    assert "host:1" in text
    assert "\x1b" not in text


def test_a_model_is_shown_with_each_of_its_versions(mill: Mill, database: Database) -> None:
    with database.transaction() as connection:
        plain = make_model(connection, memory_bytes=91_000_000)
        nf4 = make_model(connection, quantization="nf4", memory_bytes=28_000_000)
        rates = (
            Rate("nf4", "float32", 1, 2, 512, 300.0),
            Rate("nf4", "bfloat16", 1, 2, 512, 350.0),
            Rate("nf4", "bfloat16", 1, 2, 2048, 390.0),
            Rate("nf4", "bfloat16", 2, 1, 2048, 400.0),
        )
        for device, speed, tried in (("cpu", 400.0, rates), ("cuda", 9000.0, ())):
            plan = Plan(2048, speed, quantization="nf4", dtype="bfloat16", lanes=2, threads=1, rates=tried)
            plans.put(connection, nf4.id, device, plan)
        connection.execute(text("UPDATE batch_budgets SET memory_bytes = 30000000, load_seconds = 1.5"))
        assert [one.device for one in overview.measurements(connection, [plain.id, nf4.id])] == ["cpu", "cuda"]

    *shown, _, tried = invoke(mill, "models", "show", "model").splitlines()
    assert tried == (
        "model@2 on cpu: nf4 in float32, 1 × 2: 300 tokens/s; nf4 in bfloat16, 1 × 2: 390 tokens/s; "
        "nf4 in bfloat16, 2 × 1: 400 tokens/s"
    )
    lines = [line.split() for line in shown]
    assert ["model", "model@2"] in lines
    assert lines[-3][:2] == ["model@1", "none"]
    assert lines[-3][-1] == "–"
    end = ["2,048", "9,000", "1.50", "s"]
    assert lines[-1] == [
        "model@2",
        "nf4",
        "0",
        "B",
        "28.0",
        "MB",
        "30.0",
        "MB",
        "cuda",
        "bfloat16,",
        "2",
        "×",
        "1",
        *end,
    ]
    alone = invoke(mill, "models", "show", "model@1", "--json")
    assert (alone["reference"], alone["disk_bytes"], len(alone["versions"])) == ("model@1", 0, 1)
    both = invoke(mill, "models", "show", "model", "--json")["versions"]
    assert [len(version["measured"]) for version in both] == [0, 2]
    assert both[1]["measured"][0]["load_seconds"] == 1.5


def test_names_are_looked_up_for_completion(database: Database, database_url: str) -> None:
    target_id = make_target(database, "minilm")
    make_target(database, "minilm", quantization="nf4", pool="gpus")
    make_target(database, "other")
    job_id = submit(database, target_id, ["a"])

    def words(what: glimpse.What, begin: str) -> list[str]:
        return [word for word, _ in glimpse.words(database_url, what, begin)]

    assert words("models", "") == ["minilm", "other"]
    assert glimpse.words(database_url, "models", "mini") == [("minilm", "embed, nf4")]
    assert words("versions", "minilm@") == ["minilm@2", "minilm@1"]
    assert glimpse.words(database_url, "jobs", str(job_id)[:9]) == [(str(job_id), "queued, minilm@1")]
    assert (words("jobs", "x"), words("models", "%")) == ([], [])
    assert words("pools", "") == ["default", "gpus"]
    assert words("endpoints", "") == words("urls", "") == []


def test_watching_ends_with_0_only_where_each_job_succeeded(mill: Mill, database: Database) -> None:
    target_id = make_target(database)
    good, other = (submit(database, target_id, [name]) for name in "ab")
    for _ in (good, other):
        finish(database, claimed(database))
    cancelled = submit(database, target_id, ["c"])
    with database.transaction() as connection:
        control.cancel(connection, cancelled)

    def watch(*jobs: UUID) -> Any:
        arguments = ["jobs", "watch", *map(str, jobs), "--json"]
        return CliRunner().invoke(app, arguments, obj=Session(mill.client), catch_exceptions=False)

    both = watch(good, other)
    assert (both.exit_code, [job["state"] for job in json.loads(both.stdout)]) == (0, ["succeeded", "succeeded"])
    mixed = watch(good, cancelled)
    assert (mixed.exit_code, json.loads(mixed.stdout)[1]["state"]) == (1, "cancelled")
    assert f"error: job {cancelled} is cancelled" in mixed.stderr
    alone = watch(cancelled)
    assert (alone.exit_code, json.loads(alone.stdout)["state"]) == (1, "cancelled")
