"""How the failed items of a job become a job of their own."""

from collections.abc import Mapping
from uuid import UUID

from contracts.errors import WrongState
from contracts.params import compresses
from contracts.states import JobState
from producer.submission import Accepted, seal
from storage import compressions, jobs, locks, models, retries
from storage.database import Database


def is_to_be_retried(database: Database, job_id: UUID) -> bool:
    """Whether `retry_failed` would store a new job.

    Raises:
        JobNotFound: There is none of that id.
    """
    with database.transaction() as connection:
        found = jobs.get(connection, job_id)
        has_all = found.state is JobState.SUCCEEDED and not found.counts.failed
        return found.state.terminal and not has_all and retries.find(connection, job_id) is None


def retry_failed(database: Database, job_id: UUID, teachers: Mapping[str, UUID] | None = None) -> Accepted:
    """Store a new job of the items that a job has no output for, or find the one that stands.

    Args:
        database: Where jobs are.
        job_id: The job.
        teachers: Of a compression, the jobs that it learns from; those of the job itself when not given.

    Raises:
        JobNotFound: There is none of that id.
        WrongState: The job is not terminal.
        NothingToRetry: All of its items have an output.
        UnknownModel: Its model was removed.
        DatabaseUnavailable: Postgres does not answer.
    """
    with database.transaction() as connection:
        locks.share_with_purge(connection)
        state = jobs.lock(connection, job_id)
        if not state.terminal:
            raise WrongState(f"job {job_id} is {state}: wait until it is done, or cancel it, to retry what failed")
        standing = retries.find(connection, job_id)
        if standing is not None:
            return Accepted(standing, 0)
        target = models.get_target(connection, jobs.target_id(connection, job_id))
        model = models.get(connection, target.model.reference)
        target_id = models.make_target(connection, model, target.params)
        compression = compresses(target.params)
        retry_id = retries.receive(connection, job_id, target_id, whole=compression)
        if compression:
            spec = compressions.get(connection, job_id)
            changed = {} if teachers is None else {"teachers": dict(teachers)}
            compressions.create(connection, retry_id, spec.model_copy(update=changed))
        return Accepted(retry_id, seal(connection, retry_id, target_id, model, target.params))
