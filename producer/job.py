"""A job as its caller holds it."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self
from uuid import UUID

from contracts.errors import JobCancelled, JobExpired, JobFailed, WaitTimeout, WrongState
from contracts.jobs import JobCounts, JobInfo
from contracts.models import TargetSpec
from contracts.states import JobState
from producer.progress import Silent, choose_progress
from producer.publisher import Publisher
from producer.retry import retry_failed
from producer.submission import Accepted
from producer.waiting import wait_for_all
from storage import claims, control, jobs, models
from storage.database import Database

if TYPE_CHECKING:  # Arrow takes a fifth of a second to import: whoever reads results pays for it
    import pandas
    import pyarrow as pa

    from producer.results import Result, ResultReader


class Job:
    """A handle on a job; what it says is as fresh as the last `refresh` or `wait`.

    >>> job = client.submit("minilm", ["one text", "another"])  # doctest: +SKIP
    >>> for result in job.wait().results():  # doctest: +SKIP
    ...     print(result.custom_id, result.output[:3])
    """

    def __init__(self, database: Database, publisher: Publisher, info: JobInfo) -> None:
        self._database = database
        self._publisher = publisher
        self.info = info

    @property
    def id(self) -> UUID:
        """The job's id."""
        return self.info.id

    @property
    def state(self) -> JobState:
        """Where it stands."""
        return self.info.state

    @property
    def counts(self) -> JobCounts:
        """How far it is."""
        return self.info.counts

    def refresh(self) -> Self:
        """Read the row again.

        Raises:
            JobNotFound: The job was removed.
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.transaction() as connection:
            self.info = jobs.get(connection, self.id)
        return self

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> Self:
        """Wait until the job is terminal; one that is paused is waited for until somebody resumes or ends it.

        Args:
            timeout: Seconds to wait at most; as long as it takes when not given.
            progress: Show a bar: in a notebook, on a terminal, or else a line on stderr now and then.

        Raises:
            JobFailed: The job as a whole could not run; the message says why.
            JobCancelled: Somebody cancelled it. Like the next a `JobFailed`: what was computed can be read.
            JobExpired: It was not done by the time that it was given.
            WaitTimeout: It was not done in time; it goes on all the same.
            DatabaseUnavailable: Postgres does not answer for a minute.
        """
        if not wait_for_all([self], choose_progress() if progress else Silent(), timeout):
            raise WaitTimeout(
                f"job {self.id} is {self.state} after {timeout:g} s, "
                f"{self.counts.waiting:,} of {self.counts.distinct:,} inputs are left; it goes on"
            )
        self.check_success()
        return self

    def check_success(self) -> None:
        """Nothing when the job succeeded, as far as is known.

        Raises:
            JobFailed: It is in another state; of its kinds the one that says how it ended.
        """
        if self.state is not JobState.SUCCEEDED:
            raise self._unsuccessful()

    def _unsuccessful(self) -> JobFailed:
        if self.state is JobState.FAILED:
            return JobFailed(f"job {self.id} failed ({self.info.error_code}): {self.info.error_message}")
        kind = JobCancelled if self.state is JobState.CANCELLED else JobExpired
        return kind(
            f"job {self.id} is {self.state}, {self.counts.waiting:,} of {self.counts.distinct:,} inputs were not "
            f"computed; `batchmill jobs results {self.id}` gives what was"
        )

    def cancel(self) -> Self:
        """End the job; again is no error.

        Workers let go of it within about a second, at the end of a micro-batch. What was computed stays in the cache,
        and what was done of the job can be read.

        Raises:
            WrongState: It has ended in another way.
            JobNotFound: The job was removed.
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.transaction() as connection:
            control.cancel(connection, self.id)
        return self.refresh()

    def pause(self) -> Self:
        """Hold the job until it is resumed; again is no error.

        What workers hold of it they finish, a second's work; nothing more of it is begun. Its time to expire goes on.

        Raises:
            WrongState: It has ended.
            JobNotFound: The job was removed.
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.transaction() as connection:
            control.pause(connection, self.id)
        return self.refresh()

    def resume(self) -> Self:
        """Go on with a job that is paused, whoever paused it; one that is not is left as it is.

        Raises:
            WrongState: It has ended.
            JobNotFound: The job was removed.
            DatabaseUnavailable: Postgres does not answer.
        """
        self._publisher.prepare()
        with self._database.transaction() as connection:
            resumed = control.resume(connection, self.id)
            waiting = claims.claimable(connection, self._publisher.window) if resumed else {}
        self._publisher.wake(self.id, self.info.pool, waiting.get(self.info.pool, 0))
        return self.refresh()

    def retry_failed(self) -> "Job":
        """A new job of the items that this one has no output for: failed ones, and those that it never came to.

        It has the same model, at its present epoch, parameters, priority, metadata and callback; custom ids and the
        order are kept, and positions begin at 0. Called again, it gives the same new job.

        Raises:
            WrongState: The job is not terminal yet.
            NothingToRetry: All of its items have an output.
            UnknownModel: Its model was removed.
            JobNotFound: The job was removed.
            DatabaseUnavailable: Postgres does not answer.
        """
        self._publisher.prepare()
        accepted = self._retry()
        with self._database.transaction() as connection:
            retry = self._handle(jobs.get(connection, accepted.job_id))
        self._publisher.wake(retry.id, retry.info.pool, accepted.shards)
        return retry

    def _retry(self) -> Accepted:
        return retry_failed(self._database, self.id)

    def _handle(self, info: JobInfo) -> "Job":
        return Job(self._database, self._publisher, info)

    def results(self) -> "Iterator[Result]":
        """What became of each item, in input order, read as you go.

        Raises:
            WrongState: The job is not terminal yet.
        """
        return self._reader().items()

    def to_arrow(self) -> "pa.Table":
        """All results as a table: position, custom_id, output, error_code, error_message, cached, truncated.

        Raises:
            WrongState: The job is not terminal yet.
        """
        import pyarrow as pa

        reader = self._reader()
        schema = reader.schema()
        return pa.Table.from_batches(reader.batches(schema), schema)

    def to_pandas(self) -> "pandas.DataFrame":
        """The same as a data frame; needs pandas.

        Raises:
            WrongState: The job is not terminal yet.
        """
        frame: pandas.DataFrame = self.to_arrow().to_pandas()
        return frame

    def write(self, path: str | Path) -> Path:
        """All results as a file: `.parquet`, `.jsonl` or `.csv` (also `.gz`, `.zst`); it appears whole or not at all.

        Raises:
            InvalidRequest: No such format, or no such folder.
            SinkUnavailable: The disk takes no more.
            WrongState: The job is not terminal yet.
        """
        from producer.writing.file import check_path, write_results

        path = Path(path)
        check_path(path)
        reader = self._reader()
        schema = reader.schema()
        write_results(reader.batches(schema), schema, path)
        return path

    def write_jsonl(self, stream: IO[bytes]) -> None:
        """All results as JSON Lines, into a stream that is open: the lines are those of a `.jsonl` file.

        Raises:
            WrongState: The job is not terminal yet.
        """
        from producer.writing.jsonl_file import write_jsonl

        reader = self._reader()
        schema = reader.schema()
        write_jsonl(reader.batches(schema), schema, stream)

    def _reader(self) -> "ResultReader":
        from producer.results import ItemError, ResultReader

        if not self.state.terminal and not self.refresh().state.terminal:
            raise WrongState(f"job {self.id} is {self.state}: wait for it with job.wait() before reading its results")
        unfinished = None
        if self.state is not JobState.SUCCEEDED:
            ended = "expired" if self.state is JobState.EXPIRED else f"was {self.state}"
            reason = self.info.error_message or f"the job {ended} before this was computed"
            unfinished = ItemError(self.info.error_code or str(self.state), reason)
        return ResultReader(self._database, self.id, self._target(), self.counts, unfinished)

    def _target(self) -> TargetSpec:
        with self._database.transaction() as connection:
            return models.get_target(connection, jobs.target_id(connection, self.id))

    def _repr_html_(self) -> str:
        from producer.notebook import job_html

        return job_html(self.info)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.state} {self.info.model} {self.counts.items:,} items>"

    def to_dict(self) -> dict[str, Any]:
        """Everything that is known of the job, as JSON values."""
        return self.info.model_dump(mode="json")


class JobList(list[Job]):
    """Jobs; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        from producer.notebook import jobs_html

        return jobs_html(job.info for job in self)
