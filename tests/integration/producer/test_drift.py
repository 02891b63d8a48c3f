"""What is told of a run beside the one before it, of jobs that a worker computed by real models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import fsspec
import numpy as np
import pytest
from sqlalchemy import text

from benchmarks.heads import labelled
from contracts.errors import ConfigurationError, InvalidRequest, JobNotFound, WrongState
from contracts.runs import Drift, RunInfo, RunProgress, Thresholds
from producer import Client
from producer.drift import changes, measure, read_samples, report, write_report
from producer.job import Job
from storage import runs
from storage.database import Database
from tests.pages import Page

STRICT = Thresholds(psi=0.2, ks=0.3, cosine=0.05)


@pytest.fixture
def database(client: Client) -> Database:
    return client._database


def score(client: Client, model: str, rows: Mapping[str, str] | list[str], **params: Any) -> Job:
    lines = list(rows.items()) if isinstance(rows, Mapping) else rows
    return client.submit(model, lines, params=params or None).wait(timeout=300)


def run_of(database: Database, job: Job, *, bad: int = 0) -> RunInfo:
    """A run as its row is while the sink is written."""
    spec = {"source": {"kind": "files", "url": "in.csv"}, "sink": {"kind": "file", "url": "out.csv"}, "model": "m"}
    statement = text("""
        INSERT INTO runs (id, state, spec, job_id, progress, started_at)
        VALUES (:id, 'succeeded', :spec, :job_id, :progress, now() - interval '1 second')
    """)
    values = {"id": uuid4(), "spec": json.dumps(spec), "job_id": job.id}
    with database.transaction() as connection:
        connection.execute(statement, values | {"progress": RunProgress(bad=bad).model_dump_json()})
        return runs.get(connection, values["id"])


def drift(database: Database, job_id: UUID, before: UUID | None, thresholds: Thresholds) -> Drift | None:
    return measure(read_samples(database, job_id, before), thresholds)


def told(database: Database, run: RunInfo, before: RunInfo | None) -> dict[str, Any]:
    with database.transaction() as connection:
        return changes(connection, run, before).model_dump()


def test_changes_between_two_nights(client: Client, database: Database) -> None:
    client.models.add("nights", "fake:?fail=poison")
    first = run_of(database, score(client, "nights", {f"id{i}": f"changes {i}" for i in range(50)}))
    assert told(database, first, None) == {
        "rows": 50, "new": 50, "changed": 0, "removed": 0, "cached": 0, "computed": 50, "failed": 0, "bad": 0,
        "since": None,
    }  # fmt: skip
    rows = {f"id{i}": f"changes {i}" for i in range(3, 50)} | {"id7": "poison", "id8": "changes 9", "x": "poison"}
    second = run_of(database, score(client, "nights", rows | {"y": "changes new"}), bad=4)
    assert told(database, second, first) == {
        "rows": 49, "new": 2, "changed": 2, "removed": 3, "cached": 45, "computed": 1, "failed": 2, "bad": 4,
        "since": first.id,
    }  # fmt: skip


def test_a_run_whose_predecessor_was_purged_is_as_a_first_one(client: Client, database: Database) -> None:
    client.models.add("nights", "fake:?fail=poison")
    job = score(client, "nights", ["purged 1", "purged 2"])
    first, second = run_of(database, job), run_of(database, score(client, "nights", ["purged 1"]))
    with database.transaction() as connection:
        connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job.id})
    found = told(database, second, first)
    assert (found["new"], found["removed"], found["since"]) == (1, 0, None)
    assert second.job_id is not None
    assert drift(database, second.job_id, first.job_id, STRICT) is None
    with pytest.raises(JobNotFound):
        drift(database, job.id, second.job_id, STRICT)
    with pytest.raises(WrongState, match="has no job"):
        told(database, second.model_copy(update={"job_id": None}), None)


def test_labels_of_a_classifier(client: Client, database: Database, classifier: Path, tmp_path: Path) -> None:
    client.models.add("packages", str(classifier), task="classify")
    texts = [one.text for one in labelled()[:200]]
    first = score(client, "packages", {str(i): text for i, text in enumerate(texts)})
    best = [result.output[0]["label"] for result in first.results()]
    rarest = min(set(best), key=best.count)
    of_one_label = [text for text, label in zip(texts, best, strict=True) if label == rarest]
    second = score(client, "packages", {str(i): text for i, text in enumerate(of_one_label)})
    same = drift(database, first.id, first.id, STRICT)
    assert same is not None
    assert (same.psi, same.ks, same.cosine, same.rows, same.over) == (0, 0, None, 200, ())
    moved = drift(database, second.id, first.id, STRICT)
    assert moved is not None
    assert moved.psi is not None
    assert moved.psi > 1
    assert moved.rows == len(of_one_label)
    assert "psi" in moved.over
    nothing_asked = drift(database, second.id, first.id, Thresholds(psi=None))
    assert nothing_asked is not None
    assert (nothing_asked.psi, nothing_asked.over) == (moved.psi, ())
    # Exactly what the results give.
    labels = [[result.output[0]["label"] for result in job.results()] for job in (first, second)]
    shares = [{name: max(of.count(name) / len(of), 1e-4) for name in set(labels[0] + labels[1])} for of in labels]
    expected = sum((shares[1][n] - shares[0][n]) * np.log(shares[1][n] / shares[0][n]) for n in shares[0])
    assert moved.psi == pytest.approx(expected)
    # And the page shows it.
    run, before = run_of(database, second), run_of(database, first)
    with database.transaction() as connection:
        found = changes(connection, run, before)
    file = tmp_path / "report.html"
    assert write_report(
        database, run, found, moved, [run, before], read_samples(database, second.id, first.id), str(file)
    ) == str(file)
    page = Page(file.read_text())
    assert "classify by packages@1" in page.text
    assert "results moved too far: PSI" in page.text
    assert rarest in page.text
    assert page.plots[0] == "Share of each label before and now"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_embeddings(client: Client, database: Database, encoder: Path) -> None:
    client.models.add("sentences", str(encoder))
    rows = {str(i): one.text for i, one in enumerate(labelled()[:40])}
    first = score(client, "sentences", rows)
    second = score(client, "sentences", rows | {"0": rows["1"], "2": "The cat sat on the mat.", "new": rows["3"]})
    moved = drift(database, second.id, first.id, STRICT)
    vectors = [{result.custom_id: result.output for result in job.results()} for job in (first, second)]
    expected = np.mean([1 - vectors[0][i] @ vectors[1][i] for i in rows])
    assert moved is not None
    assert moved.cosine == pytest.approx(expected, abs=1e-5)
    assert (moved.psi, moved.ks, moved.rows, moved.over) == (None, None, 40, ())
    again = drift(database, second.id, first.id, Thresholds(cosine=0.01))
    assert again is not None
    assert again.over == ("cosine",)
    bits = score(client, "sentences", rows, precision="ubinary")
    assert drift(database, bits.id, first.id, STRICT) is None  # packed bits are not compared with floats


def test_another_version_of_the_model_moves_every_row_a_little(
    client: Client, database: Database, encoder: Path
) -> None:
    client.models.add("moving", str(encoder))
    rows = [one.text for one in labelled()[:20]]  # without ids
    first = score(client, "moving", rows)
    client.models.add("moving", str(encoder), quantization="int8")  # bf16 may be computed in float32, and move nothing
    moved = drift(database, score(client, "moving", rows[::-1]).id, first.id, STRICT)
    assert moved is not None
    assert moved.cosine is not None
    assert 0 < moved.cosine < 0.01
    assert moved.rows == 20


def test_jobs_of_different_tasks_are_not_compared(client: Client, database: Database) -> None:
    client.models.add("vectors", "fake:")
    client.models.add("labels", "fake:", task="classify")
    vectors, labels = score(client, "vectors", ["a"]), score(client, "labels", ["a"])
    assert drift(database, vectors.id, labels.id, STRICT) is None
    assert drift(database, labels.id, vectors.id, STRICT) is None
    assert drift(database, labels.id, None, STRICT) is None


def test_a_page_goes_to_any_filesystem_whole_or_not_at_all(client: Client, database: Database, tmp_path: Path) -> None:
    client.models.add("labels", "fake:", task="classify")
    run = run_of(database, score(client, "labels", [f"page {i}" for i in range(10)]))
    with database.transaction() as connection:
        found = changes(connection, run, None)
    url = f"memory://{uuid4().hex}/report.html"
    samples = read_samples(database, run.job_id or uuid4(), None)
    assert write_report(database, run, found, None, [], samples, url) == url
    with fsspec.open(url, "rt") as stream:
        assert "First run 10 rows were scored" in Page(stream.read()).text
    (tmp_path / "report.html").write_text("of the night before")
    with pytest.raises(WrongState):
        jobless = run.model_copy(update={"job_id": None})
        write_report(database, jobless, found, None, [], samples, str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text() == "of the night before"
    with pytest.raises(InvalidRequest, match="there is no folder"):
        write_report(database, run, found, None, [], samples, str(tmp_path / "nowhere" / "report.html"))
    gone = found.model_copy(update={"since": UUID(int=1), "new": 2})  # a run that is no more
    page = Path(write_report(database, run, gone, None, [], samples, str(tmp_path / "other.html"))).read_text()
    assert "0 of 10 rows changed, 2 new." in Page(page).text


def test_what_draws_the_page_has_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.check_report(str(tmp_path / "report.html"))
    monkeypatch.setattr(report, "_NEEDED", ("jinja2", "no_such_library"))
    with pytest.raises(ConfigurationError, match=r"no_such_library.*pip install 'batchmill\[reports\]'"):
        report.check_report(str(tmp_path / "report.html"))
