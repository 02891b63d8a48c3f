"""What a compression is asked, how far it is, and what comes of it: rows, guarded by leases."""

import math
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import IntegrityError

from contracts.compression import CompressionSpec, StepProgress, Training, TrainingPoint
from contracts.errors import InvalidRequest, ItemFailed, JobNotFound, LeaseLost, UnknownModel
from contracts.models import ArtifactFile
from contracts.names import COMPRESSION_POOL
from contracts.params import COMPRESS
from contracts.recipes import Accept, Evaluation, parse_recipe
from contracts.states import JobState, Priority
from producer.retry import retry_failed
from storage import compressions, inputs, jobs, models, retention, shards
from storage.counting import ShardOutcome
from storage.database import Database
from storage.jobs import Listener
from storage.retention import Retention
from tests.compressions import ROWS, claim, close, complete, report, result
from tests.jobs import as_lines, execute, make_model, make_target, open_job, query, seal, submit

RECIPE = parse_recipe([{"step": "distill", "student": [0, 2], "data": ROWS}, {"step": "quantize", "method": "nf4"}])
SPEC = CompressionSpec(
    name="small",
    recipe=RECIPE,
    evaluate=Evaluation(data=ROWS),
    accept=Accept(fidelity=0.9),
    teachers={ROWS.file.sha256: uuid4()},
)
PROGRESS = StepProgress(position=1, title="distill into 2 layers", fraction=0.25, seconds_left=90.0, message="epoch 1")


def compress(database: Database, spec: CompressionSpec = SPEC, listener: Listener | None = None) -> UUID:
    """A compression that waits, of the model `model`."""
    with database.transaction() as connection:
        target_id = models.make_target(connection, make_model(connection), COMPRESS)
        job_id = jobs.open_job(
            connection,
            target_id=target_id,
            pool=COMPRESSION_POOL,
            priority=Priority.NORMAL,
            metadata={},
            listener=listener,
        )
        compressions.create(connection, job_id, spec)
        lines = as_lines([{"compress": 1}, {"compress": [1, 2]}, {"finish": str(job_id)}])
        jobs.count_received(connection, job_id, len(lines))
        inputs.append(connection, job_id, lines)
    seal(database, job_id, target_id)
    return job_id


def test_what_was_asked_comes_back(database: Database) -> None:
    bare = CompressionSpec(name="bare", recipe=RECIPE[1:])
    for spec in (SPEC, bare):
        job_id = compress(database, spec)
        with database.transaction() as connection:
            assert compressions.get(connection, job_id) == spec
            found = compressions.info(connection, job_id)
        assert (found.job, found.spec) == (job_id, spec)
        assert (found.progress, found.verdict, found.model, found.report, found.html) == (None,) * 5


def test_other_jobs_compress_nothing(database: Database) -> None:
    job_id = open_job(database, make_target(database))
    with database.transaction() as connection:
        with pytest.raises(InvalidRequest, match="compresses nothing: it computes embed by model@1"):
            compressions.get(connection, job_id)
        with pytest.raises(JobNotFound):
            compressions.info(connection, uuid4())


def test_progress_is_told_with_the_job_while_the_lease_is_held(database: Database) -> None:
    job_id = compress(database)
    stale = claim(database)
    with database.transaction() as connection:
        assert compressions.note_progress(connection, stale, PROGRESS)
        assert compressions.info(connection, job_id).progress == PROGRESS
        assert jobs.get(connection, job_id).progress == PROGRESS
        assert jobs.list_newest(connection)[0].progress == PROGRESS
        shards.release(connection, [stale.token])
    claim(database)
    with database.transaction() as connection:
        assert not compressions.note_progress(connection, stale, PROGRESS.model_copy(update={"fraction": 0.9}))
        assert compressions.info(connection, job_id).progress == PROGRESS


def test_the_result_is_registered_with_parent_recipe_and_report(database: Database) -> None:
    job_id = compress(database)
    lease = claim(database)
    html = ArtifactFile(path="report.html", sha256="ef" * 32, size=5)
    with database.transaction() as connection:
        compressions.note_progress(connection, lease, PROGRESS)
        spec = compressions.finish(connection, lease, report=report(job_id), html=html, **result())
        found = compressions.info(connection, job_id)
    assert (spec.reference, spec.parent, spec.rejected) == ("small@1", "model@1", False)
    assert parse_recipe(spec.recipe or []) == RECIPE
    assert (found.verdict, found.model, found.progress, found.html) == ("accepted", "small@1", None, html)
    assert found.report == report(job_id, model="small@1")
    with database.transaction() as connection:
        assert models.get(connection, "small") == spec == models.list_versions(connection, "small")[0]
        target = models.get_target(connection, models.make_target(connection, spec, {}))
    assert target.model == spec


def test_finishing_again_gives_the_same_model_and_announces_nothing_more(database: Database) -> None:
    job_id = compress(database)
    first = claim(database)
    with database.transaction() as connection:
        spec = compressions.finish(connection, first, report=None, **result())
        shards.release(connection, [first.token])
    again = claim(database)
    with database.transaction() as connection:
        assert compressions.finish(connection, again, report=report(job_id), **result(digest="other")) == spec
        assert compressions.info(connection, job_id).verdict == "not evaluated"
        assert len(models.list_versions(connection, "small")) == 1


def test_a_stale_lease_registers_nothing(database: Database) -> None:
    job_id = compress(database)
    stale = claim(database)
    with database.transaction() as connection:
        shards.release(connection, [stale.token])
    with pytest.raises(LeaseLost), database.transaction() as connection:
        compressions.finish(connection, stale, report=None, **result())
    with database.transaction() as connection:
        assert compressions.info(connection, job_id).model is None
        with pytest.raises(UnknownModel):
            models.get(connection, "small")


def test_a_rejected_model_is_served_only_by_its_version(database: Database) -> None:
    compress(database)
    assert complete(database, rejected=True) == "small@1"
    with database.transaction() as connection:
        with pytest.raises(UnknownModel, match=r"'small' was rejected.*name the version \(small@1\)"):
            models.get(connection, "small")
        assert models.get(connection, "small@1").rejected
    compress(database)
    assert complete(database, digest="better") == "small@2"
    compress(database)
    assert complete(database, digest="worse", rejected=True) == "small@3"
    with database.transaction() as connection:
        assert models.get(connection, "small").reference == "small@2"
        assert models.get(connection, "small@3").rejected
        assert [spec.rejected for spec in models.list_all(connection) if spec.name == "small"] == [True, False, True]


def test_equal_files_are_one_version_unless_their_verdicts_differ(database: Database) -> None:
    for rejected, version in ((False, 1), (False, 1), (True, 2), (False, 3)):
        compress(database)
        assert complete(database, rejected=rejected) == f"small@{version}"


def test_a_listener_hears_of_the_model_once_and_of_the_job(database: Database) -> None:
    [(endpoint_id,)] = query(
        database, "INSERT INTO webhook_endpoints (url, secret) VALUES ('https://a.example/', '') RETURNING id"
    )
    job_id = compress(database, listener=Listener("https://a.example/", endpoint_id))
    complete(database)
    rows = query(database, "SELECT event, body FROM deliveries WHERE job_id = :id ORDER BY id", id=job_id)
    assert [row.event for row in rows] == ["model.created", "job.completed"]
    created = rows[0].body["data"]
    assert created["created"] == {"model": "small@1", "digest": "digest of the result", "verdict": "accepted"}
    assert (created["id"], created["state"], created["model"]) == (str(job_id), "running", "model@1")
    assert rows[1].body["data"]["created"] is None


def test_the_model_outlives_its_job(database: Database) -> None:
    job_id = compress(database)
    complete(database)
    retention.purge(database, Retention(jobs=timedelta(0), results=timedelta(0)))
    assert query(database, "SELECT count(*) FROM compressions") == [(0,)]
    assert query(database, "SELECT count(*) FROM results") == [(0,)]
    with database.transaction() as connection:
        with pytest.raises(JobNotFound):
            jobs.get(connection, job_id)
        spec = models.get(connection, "small")
    assert (spec.parent, len(spec.recipe or [])) == ("model@1", 2)


def test_who_teaches_stays_until_the_student_is_done(database: Database) -> None:
    teacher = submit(database, make_target(database), ["a", "b"])
    execute(database, "UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE id = :id", id=teacher)
    job_id = compress(database, SPEC.model_copy(update={"teachers": {ROWS.file.sha256: teacher}}))
    retention.purge(database, Retention(jobs=timedelta(0), results=timedelta(0)))
    assert query(database, "SELECT id FROM jobs WHERE id = :id", id=teacher) == [(teacher,)]
    execute(database, "UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE id = :id", id=job_id)
    retention.purge(database, Retention(jobs=timedelta(0), results=timedelta(0)))
    assert query(database, "SELECT count(*) FROM jobs") == [(0,)]


def test_a_model_that_a_job_made_cannot_vanish_under_it(database: Database) -> None:
    compress(database)
    complete(database)
    with pytest.raises(IntegrityError):
        execute(database, "DELETE FROM models WHERE name = 'small'")


def test_losses_that_are_no_numbers_are_kept(database: Database) -> None:
    point = TrainingPoint(update=1, epoch=0.5, loss=math.nan, held_out_loss=math.inf, learning_rate=0.1)
    training = Training(points=[point], stopped="diverged", kept_update=0)
    job_id = compress(database)
    lease = claim(database)
    found = report(job_id)
    results = [found.results[0].model_copy(update={"training": training})]
    with database.transaction() as connection:
        said = found.model_copy(update={"results": results})
        compressions.finish(connection, lease, report=said, **result())
        back = compressions.info(connection, job_id).report
    assert back is not None
    assert back.results[0].training is not None
    (kept,) = back.results[0].training.points
    assert math.isnan(kept.loss)
    assert kept.held_out_loss == math.inf


def test_a_retry_is_the_whole_recipe_with_what_was_done_in_the_cache(database: Database) -> None:
    job_id = compress(database)
    lease = claim(database)
    _, *failed = sorted(lease.input_ids)
    close(database, lease, ShardOutcome({input_id: ItemFailed("compression", "diverged") for input_id in failed}))
    accepted = retry_failed(database, job_id)
    assert accepted.shards == 1
    with database.transaction() as connection:
        retry = jobs.get(connection, accepted.job_id)
        assert compressions.get(connection, accepted.job_id) == SPEC
    assert (retry.counts.items, retry.counts.cached, retry.operation, retry.pool) == (3, 1, "compress", "compression")
    assert retry_failed(database, job_id).job_id == accepted.job_id
    complete(database)
    with database.transaction() as connection:
        assert jobs.get(connection, accepted.job_id).state is JobState.SUCCEEDED


def test_a_recipe_is_one_shard_however_long_it_is(database: Database) -> None:
    target_id = make_target(database)
    long = [{"compress": ["x" * 10_000 * number]} for number in range(1, 17)]
    assert submit(database, target_id, long, tokens=10_000)
    [(count,)] = query(database, "SELECT count(*) FROM shards")
    assert count > 1  # which is what is avoided
    job_id = open_job(database, target_id)
    with database.transaction() as connection:
        jobs.count_received(connection, job_id, 17)
        inputs.append(connection, job_id, as_lines([*({"compress": ["y" * 10_000 * n]} for n in range(1, 17)), "end"]))
    assert seal(database, job_id, target_id, tokens=None) == 1
    [(input_ids,)] = query(database, "SELECT input_ids FROM shards WHERE job_id = :id", id=job_id)
    assert len(input_ids) == 17
