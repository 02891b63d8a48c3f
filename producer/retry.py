"""How the failed items of a job become a job of their own."""

from uuid import UUID

from contracts.errors import WrongState
from contracts.params import compresses
from producer.submission import Accepted, seal
from storage import compressions, jobs, locks, models, retries
from storage.database import Database


def retry_failed(database: Database, job_id: UUID) -> Accepted:
    """Store a new job of the items that a job has no output for, or find the one that stands.

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
            compressions.create(connection, retry_id, compressions.get(connection, job_id))
        return Accepted(retry_id, seal(connection, retry_id, target_id, model, target.params))
