"""The client: register models, submit inputs, follow jobs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from contracts.errors import InvalidInput, InvalidRequest, JobNotFound, RunNotFound
from contracts.events import SCHEME
from contracts.jobs import JobInfo
from contracts.models import ModelSpec
from contracts.names import COMPRESSION_POOL
from contracts.params import compresses, parse_params, parse_task
from contracts.recipes import Accept, Dataset
from contracts.runs import OnBad, RunInfo
from contracts.settings import Settings, load_settings
from contracts.states import JobState, Priority
from contracts.tracing import Tracing
from producer import addresses, terms
from producer.check import Check, check
from producer.compression.job import CompressionJob
from producer.compression.submission import Terms
from producer.incoming import entries, lines
from producer.job import Job, JobList
from producer.publisher import Publisher
from producer.registry import Models
from producer.schedules import Schedules
from producer.submission import Submission, submit
from producer.webhooks import Webhooks
from storage import jobs, models, overview, schema
from storage.database import Database
from storage.jobs import JobFilter
from storage.overview import Overview

if TYPE_CHECKING:
    from producer.compression.calls import Compressions
    from producer.compression.plan import Preflight
    from producer.runs.bench import Bench
    from producer.runs.watcher import Watcher

_COUNT_SHARDS = 10_000


class Client:
    """The way in, for programs.

    It talks to `BATCHMILL_DATABASE_URL` and `BATCHMILL_BROKER_URL`, or to the embedded stack under
    `BATCHMILL_HOME` when neither is set, which is started when it does not run (`batchmill down` ends it).

    Examples:
        >>> with Client() as client:  # doctest: +SKIP
        ...     client.models.add("minilm", "models/all-MiniLM-L6-v2", task="embed", quantization="nf4")
        ...     job = client.submit("minilm", ["one text", "another"])
        ...     table = job.wait(progress=True).to_arrow()

    Args:
        database_url: Instead of the setting.
        broker_url: Instead of the setting.
        home: Instead of the setting.
        artifacts: Instead of the setting.

    Raises:
        ConfigurationError: A setting is wrong, or the database's schema is at another revision.
        DatabaseUnavailable: Postgres does not answer.
        StackError: The embedded stack cannot be started.
    """

    def __init__(
        self,
        *,
        database_url: str | None = None,
        broker_url: str | None = None,
        home: str | Path | None = None,
        artifacts: str | None = None,
    ) -> None:
        settings: Settings = addresses.resolve(
            load_settings(database_url=database_url, broker_url=broker_url, home=home, artifacts=artifacts)
        )
        self.settings = settings
        self._tracing = Tracing("batchmill-client")
        self._database = Database(str(settings.database_url))
        self._publisher = Publisher(settings)
        self.models = Models(self._database, settings.artifacts_url)
        self.webhooks = Webhooks(self._database, settings)
        self.schedules = Schedules(self._database)
        try:
            with self._database.transaction() as connection:
                schema.check(connection)
        except BaseException:
            self.close()
            raise

    def submit(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        params: Mapping[str, Any] | None = None,
        priority: str = Priority.NORMAL,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_in: timedelta | float | None = None,
        callback_url: str | None = None,
        progress_at: Sequence[int] = (),
        on_bad: Callable[[InvalidInput], None] | None = None,
    ) -> Job:
        """Hand over inputs; the job stands, whole, when this returns.

        Args:
            model: `name`, for its newest version, or `name@version`.
            inputs: Strings, lists, mappings, or `(custom_id, input)` pairs, or the lines of a file as `producer.read`
                gives them; any iterable, read once and in chunks.
            params: Of the model's task, as `contracts.params` has them: `truncate` for most, `precision` for `embed`,
                `top_k` for `classify` and `rerank`, `max_new_tokens` for `generate`, …
            priority: `interactive`, `normal` or `bulk`: a higher class is always served first.
            idempotency_key: The same key and content give the same job, however often they are submitted.
            metadata: Kept with the job, and sent with its webhooks: JSON values under string keys, up to 8 kB.
            expires_in: How long the job may take, from now: a timedelta, or seconds. What is not done by then is not
                computed any more.
            callback_url: Where webhooks of the job go; an endpoint must be registered for it.
            progress_at: Percentages from 1 to 99 at which the callback hears of progress, say `[25, 50, 75]`.
            on_bad: Told of each input that cannot be taken, which is then left out; without it the first one ends
                the submission.

        Raises:
            UnknownModel: No such model.
            InvalidParams: No such parameter, or no such value.
            RefusedUrl: The callback's URL is none that webhooks are sent to.
            UnknownEndpoint: No endpoint is registered for it, or it is disabled.
            InvalidRequest: Another argument cannot be carried out.
            InvalidInput: An item cannot be taken; the message names it. Nothing was submitted.
            DuplicateCustomId: Two items share an id.
            EmptyJob: There is no item.
            IdempotencyConflict: The key belongs to a job with other content.
            DatabaseUnavailable: Postgres does not answer. Nothing was submitted, unless it went away at the very end:
                with an idempotency key it is safe to try again.
        """
        _check_iterable(inputs)
        submission = Submission(
            model=(spec := self.models.get(model)),
            params=parse_params(spec.task, params),
            priority=terms.check_priority(priority),
            metadata=terms.check_metadata(metadata),
            idempotency_key=terms.check_idempotency_key(idempotency_key),
            expires_in=terms.check_expires_in(expires_in),
            callback_url=callback_url,
            progress_at=terms.check_progress_at(progress_at, callback_url),
        )
        self._publisher.prepare()
        about = {"model": spec.reference, "task": str(spec.task), "pool": spec.pool}
        with self._tracing.span("submit", about) as span:
            accepted = submit(
                self._database,
                replace(submission, traceparent=span.traceparent),
                lines(entries(inputs), spec, on_bad, self.settings.max_input_bytes),
            )
            span.set("job", str(accepted.job_id))
        self._publisher.wake(accepted.job_id, spec.pool, accepted.shards)
        return self.job(accepted.job_id)

    def run(
        self,
        source: Any,
        model: str,
        sink: Any,
        *,
        params: Mapping[str, Any] | None = None,
        task: str | None = None,
        priority: str = Priority.BULK,
        on_bad: OnBad = "stop",
        report: str | Path | None = None,
        callback_url: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_in: timedelta | float | None = None,
        progress_at: Sequence[int] = (),
        progress: "bool | Watcher" = False,
    ) -> RunInfo:
        """Score the rows of a source into a sink; everything is written when this returns.

        What was cut, by Ctrl-C or because a server went away, `resume` goes on with; there is neither a row too many in
        the sink then, nor one too few.

        Args:
            source: A path, a pattern, a folder or a URL of files; or a mapping, as `contracts.sources` has them:
                `{"url": "postgresql://…", "query": "SELECT …"}`.
            model: `name`, for its newest version, or `name@version`.
            sink: A path or URL of a file, or with `/` at its end of a folder; or a mapping, as `contracts.sinks` has
                them: `{"url": "postgresql://…", "table": "scores"}`.
            params: As `submit` has them.
            task: What the model has to compute.
            priority: As `submit` has it.
            on_bad: What a row does that cannot be taken: `stop` ends the run before anything is computed, with `skip`
                it is left out.
            report: A path or URL that an HTML report is written to.
            callback_url: Hears `run.completed` or `run.failed`; an endpoint must be registered for it.
            metadata: As `submit` has it.
            expires_in: How long the job may take once everything is read: a timedelta, or seconds.
            progress_at: Percentages from 1 to 99 of the job at which the callback hears of it, and of the job's end.
            progress: Show how far it is: a bar on a terminal, else a line on stderr now and then; or who is told.

        Raises:
            UnknownModel: No such model.
            InvalidParams: No such parameter, or no such value.
            RefusedUrl: The callback's URL is none that webhooks are sent to.
            UnknownEndpoint: No endpoint is registered for it, or it is disabled.
            InvalidRequest: The source, the sink or another argument cannot be carried out; the sink has other columns.
            InvalidInput: A row cannot be taken, two share an id, or the source cannot be read or changed meanwhile.
            EmptyJob: The source has no row.
            JobFailed: The job did not succeed, or somebody cancelled it or the run; nothing was written.
            UnavailableError: A server does not answer, or the sink is full; `resume` goes on with the run.
        """
        from producer.runs.following import begin
        from producer.runs.spec import check_spec

        spec = check_spec(
            self._database,
            source=source,
            model=model,
            sink=sink,
            task=task,
            params=params,
            priority=priority,
            metadata=metadata,
            callback_url=callback_url,
            on_bad=on_bad,
            report=report,
            expires_in=expires_in,
            progress_at=progress_at,
        )
        return begin(self._bench(), spec, self._watcher(progress))

    def resume(self, run_id: str | UUID, *, progress: "bool | Watcher" = False) -> RunInfo:
        """Go on with a run of `run` that was cut; one that has succeeded is returned as it is.

        Raises:
            RunNotFound: There is none of that id.
            WrongState: It is of a schedule, has ended in another way, or another process is at it.
            BatchmillError: As `run` raises them.
        """
        from producer.runs.following import resume

        return resume(self._bench(), _run_id(run_id), self._watcher(progress))

    def _bench(self) -> "Bench":
        from producer.runs.bench import Bench

        return Bench(self._database, self._publisher, self.settings)

    def _watcher(self, progress: "bool | Watcher") -> "Watcher":
        from producer.runs.showing import choose_watcher
        from producer.runs.watcher import Watcher

        if isinstance(progress, Watcher):
            return progress
        return choose_watcher() if progress else Watcher()

    def compress(
        self,
        model: str,
        recipe: Iterable[Any],
        *,
        name: str | None = None,
        evaluate: Any = None,
        accept: Mapping[str, float] | Accept | None = None,
        callback_url: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_in: timedelta | float | None = None,
        idempotency_key: str | None = None,
    ) -> CompressionJob:
        """Make a model smaller; the job stands when this returns, and ends in a model that can be scored with.

        Workers of the pool `compression` run it, step by step. What a distillation's teacher gives is scored first, by
        jobs of the model's own pool.

        Args:
            model: `name`, for its newest version, or `name@version`.
            recipe: Steps, as the reference of recipes has them: dicts, or the objects of `contracts.recipes`. The
                `data` of a distillation is whatever `evaluate` may be.
            name: The result becomes the next version of it; the model's own name with `-small` by default.
            evaluate: What the result is measured on, beside its parent: a `.jsonl`, `.csv`, `.parquet`, `.arrow` or
                `.txt` file, `.gz` and the like too, or a pattern, a folder or an fsspec URL of these; a list of inputs,
                or of `{"input": …, "label": …}`; or a job whose inputs are taken: its handle, or `job:<id>`. Without
                it nothing is measured.
            accept: What the result must reach: `fidelity`, `size_ratio`, `speedup`. One that misses is kept as
                rejected, with its report, and only `name@version` names it.
            callback_url: Where webhooks of the job go, `model.created` among them.
            metadata: As `submit` has it.
            expires_in: As `submit` has it.
            idempotency_key: As `submit` has it.

        Raises:
            UnknownModel: No such model.
            InvalidRequest: A step is unknown, or cannot be done to this model or after the one before; data is of the
                wrong kind; or another argument cannot be carried out.
            DoesNotFit: No worker that compresses has the memory that a step needs, and the disk that all write.
            InvalidInput: A row of the data cannot be taken; the message names it.
            JobNotFound: There is no job whose inputs are to be taken.
            RefusedUrl: The callback's URL is none that webhooks are sent to.
            UnknownEndpoint: No endpoint is registered for it, or it is disabled.
            IdempotencyConflict: The key belongs to a job with other content.
            DatabaseUnavailable: Postgres does not answer.
        """
        asked = Terms(
            metadata=terms.check_metadata(metadata),
            idempotency_key=terms.check_idempotency_key(idempotency_key),
            expires_in=terms.check_expires_in(expires_in),
            callback_url=callback_url,
        )
        self._publisher.prepare()
        with self._tracing.span("compress", {"model": model, "pool": COMPRESSION_POOL}) as span:
            accepted = self._compressions().submit(
                model,
                recipe,
                name=name,
                evaluate=evaluate,
                accept=accept,
                asked=asked,
                score=self._score,
                traceparent=span.traceparent,
            )
            span.set("job", str(accepted.job_id))
        self._publisher.wake(accepted.job_id, COMPRESSION_POOL, accepted.shards)
        return self.compression(accepted.job_id)

    def preflight(self, model: str, recipe: Iterable[Any], *, evaluated: bool = True) -> "Preflight":
        """What the steps of a recipe need of memory and disk; nothing is read and nothing submitted.

        Args:
            model: `name`, for its newest version, or `name@version`.
            recipe: As `compress` takes it.
            evaluated: Whether the result is to be measured.

        Raises:
            UnknownModel: No such model.
            InvalidRequest: A step is unknown, or cannot be done to this model or after the one before.
            DoesNotFit: No worker that compresses has the memory that a step needs, and the disk that all write.
        """
        return self._compressions().plan(model, recipe, evaluated=evaluated).preflight

    def dataset(self, model: str, data: Any) -> Dataset:
        """Rows for a recipe that is written in objects of `contracts.recipes`.

        Args:
            model: What is to compute them.
            data: As `compress` takes it to evaluate.

        Raises:
            UnknownModel: No such model.
            InvalidRequest: It is nothing that has rows, has none, or only some of them have labels.
            InvalidInput: A row cannot be taken; the message names it.
        """
        return self._compressions().dataset(model, data)

    def _compressions(self) -> "Compressions":
        from producer.compression.calls import Compressions  # reads files by Arrow, which takes a while to import

        return Compressions(self._database, self.settings.artifacts_url, self.settings.max_input_bytes)

    def check(self, model: str, inputs: Iterable[Any], *, params: Mapping[str, Any] | None = None) -> Check:
        """A dry run: bad items, duplicates, cache hits, estimated tokens and time; nothing is written.

        Raises:
            UnknownModel: No such model.
            InvalidParams: No such parameter, or no such value.
            EmptyJob: There is no item.
        """
        _check_iterable(inputs)
        spec: ModelSpec = self.models.get(model)
        parsed = parse_params(spec.task, params)
        with self._database.transaction() as connection:
            target_id = models.find_target(connection, spec, parsed)
        return check(self._database, spec, parsed, target_id, entries(inputs), self.settings.max_input_bytes)

    def job(self, job_id: str | UUID) -> Job:
        """A handle on a job that exists.

        Args:
            job_id: Its id, or its link as webhooks give it: `batchmill://jobs/…`.

        Raises:
            JobNotFound: There is none of that id.
        """
        try:
            parsed = job_id if isinstance(job_id, UUID) else UUID(job_id.removeprefix(SCHEME))
        except ValueError:
            raise JobNotFound(f"{job_id!r} is no job's id; `batchmill jobs list` shows those that exist") from None
        with self._database.transaction() as connection:
            return self._handle(jobs.get(connection, parsed))

    def compression(self, job_id: str | UUID) -> CompressionJob:
        """A handle on a job that makes a model smaller.

        Raises:
            JobNotFound: There is none of that id.
            InvalidRequest: It computes results.
        """
        job = self.job(job_id)
        if not isinstance(job, CompressionJob):
            raise InvalidRequest(
                f"job {job.id} makes no model smaller: it computes {job.info.task} by {job.info.model}"
            )
        return job

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        model: str | None = None,
        task: str | None = None,
        pool: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
    ) -> JobList:
        """The newest jobs first, of those that are asked for.

        Args:
            states: Only jobs in one of these.
            model: Only jobs of `name`, whatever its version, or of `name@version`.
            task: Only jobs that compute it.
            pool: Only jobs of its workers.
            since: Only jobs submitted then or later; a time without a zone is this machine's.
            until: Only jobs submitted before.
            limit: How many at most.

        Raises:
            InvalidRequest: No such state or task, or no name of a model.
        """
        unknown = [state for state in states if state not in list(JobState)]
        if unknown:
            raise InvalidRequest(f"state {unknown[0]!r}: choose among {', '.join(JobState)}")
        wanted = JobFilter(
            states=[JobState(state) for state in states],
            model=model,
            task=None if task is None else parse_task(task),
            pool=pool,
            since=since and since.astimezone(),
            until=until and until.astimezone(),
        )
        with self._database.transaction() as connection:
            found = jobs.list_newest(connection, wanted, limit=limit)
        return JobList(self._handle(info) for info in found)

    def overview(self, *, most_jobs: int = 50) -> Overview:
        """The system now: pools and their waiting work, workers, and the jobs that are open.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.transaction() as connection:
            return overview.look(connection, most_jobs=most_jobs, most_shards=_COUNT_SHARDS)

    def _handle(self, info: JobInfo) -> Job:
        if not compresses(info.params):
            return Job(self._database, self._publisher, info)
        return CompressionJob(self._database, self._publisher, info, self.settings.artifacts_url, self._score)

    def _score(self, reference: str, inputs: Iterable[Any]) -> UUID:
        return self.submit(reference, inputs).id

    def close(self) -> None:
        """Give connections back; jobs go on."""
        self._tracing.close()
        self._publisher.close()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _run_id(run_id: str | UUID) -> UUID:
    try:
        return run_id if isinstance(run_id, UUID) else UUID(run_id)
    except ValueError:
        raise RunNotFound(f"{run_id!r} is no run's id; a run's first line on stderr names it") from None


def _check_iterable(inputs: Any) -> None:
    if isinstance(inputs, str | bytes | Mapping):
        raise InvalidRequest(f"inputs is one {type(inputs).__name__}: give a list of inputs, [input] for a single one")
    if not isinstance(inputs, Iterable):
        raise InvalidRequest(f"inputs is of type {type(inputs).__name__}: give a list of inputs, or any iterable")
