"""The client: register models, submit inputs, follow jobs."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from contracts.canonical import canonicalize
from contracts.errors import BrokerUnavailable, InvalidInput, InvalidRequest, JobNotFound
from contracts.models import ModelSpec
from contracts.params import parse_params
from contracts.settings import Settings, load_settings
from contracts.states import JobState, Priority
from producer import addresses
from producer.check import Check, check
from producer.job import Job
from producer.registry import Models
from producer.submission import Submission, entries, lines, submit
from storage import jobs, models, schema
from storage.database import Database

if TYPE_CHECKING:
    from storage.broker import Tickets

log = logging.getLogger(__name__)


class Client:
    """The way in, for programs.

    It talks to `BATCHMILL_DATABASE_URL` and `BATCHMILL_BROKER_URL`, or to the embedded stack under
    `BATCHMILL_HOME` when neither is set, which is started when it does not run (`batchmill down` ends it).

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
        self._database = Database(str(settings.database_url))
        self.models = Models(self._database, settings.artifacts_url)
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
        on_bad: Callable[[InvalidInput], None] | None = None,
    ) -> Job:
        """Hand over inputs; the job stands, whole, when this returns.

        Args:
            model: `name`, for its newest version, or `name@version`.
            inputs: Strings, mappings, or `(custom_id, input)` pairs, or the lines of a file as `producer.read` gives
                them; any iterable, read once and in chunks.
            params: Of the task: for `embed`, `precision` and `truncate`.
            priority: `interactive`, `normal` or `bulk`: a higher class is always served first.
            idempotency_key: The same key and content give the same job, however often they are submitted.
            metadata: Kept with the job: JSON values under string keys.
            on_bad: Told of each input that cannot be taken, which is then left out; without it the first one ends
                the submission.

        Raises:
            UnknownModel: No such model.
            InvalidParams: No such parameter, or no such value.
            InvalidInput: An item cannot be taken; the message names it. Nothing was submitted.
            DuplicateCustomId: Two items share an id.
            EmptyJob: There is no item.
            IdempotencyConflict: The key belongs to a job with other content.
            DatabaseUnavailable: Postgres does not answer. Nothing was submitted, unless it went away at the very end:
                with an idempotency key it is safe to try again.
        """
        _check_iterable(inputs)
        if priority not in list(Priority):
            raise InvalidRequest(f"priority {priority!r}: choose one of {', '.join(Priority)}")
        if idempotency_key is not None:
            _check_json("idempotency_key", idempotency_key)
            if not 0 < len(idempotency_key) <= 255:
                raise InvalidRequest("an idempotency key has 1 to 255 characters")
        _check_json("metadata", dict(metadata or {}))
        submission = Submission(
            model=(spec := self.models.get(model)),
            params=parse_params(spec.task, params),
            priority=Priority(priority),
            metadata=metadata or {},
            idempotency_key=idempotency_key,
        )
        tickets = self._tickets  # a broker's address that is none is refused before anything is stored
        accepted = submit(self._database, submission, lines(entries(inputs), spec, on_bad))
        if accepted.shards:
            try:
                tickets.top_up(spec.pool, accepted.shards, self.settings.ticket_window)
            except BrokerUnavailable as error:
                log.warning("job %s is kept and goes out when the broker is back: %s", accepted.job_id, error)
        return self.job(accepted.job_id)

    def check(self, model: str, inputs: Iterable[Any], *, params: Mapping[str, Any] | None = None) -> Check:
        """A dry run: bad items, duplicates, cache hits, estimated tokens and time; nothing is written.

        Raises:
            UnknownModel: No such model.
            InvalidParams: No such parameter, or no such value.
            EmptyJob: There is no item.
        """
        _check_iterable(inputs)
        spec: ModelSpec = self.models.get(model)
        with self._database.transaction() as connection:
            target_id = models.find_target(connection, spec, parse_params(spec.task, params))
        return check(self._database, spec, target_id, entries(inputs))

    def job(self, job_id: str | UUID) -> Job:
        """A handle on a job that exists.

        Raises:
            JobNotFound: There is none of that id.
        """
        try:
            parsed = job_id if isinstance(job_id, UUID) else UUID(job_id)
        except ValueError:
            raise JobNotFound(f"{job_id!r} is no job's id; `batchmill jobs list` shows those that exist") from None
        with self._database.transaction() as connection:
            return Job(self._database, jobs.get(connection, parsed))

    def jobs(self, *, states: Sequence[str] = (), limit: int = 50) -> list[Job]:
        """The newest jobs first; those in some states only, where any are named.

        Raises:
            InvalidRequest: No such state.
        """
        unknown = [state for state in states if state not in list(JobState)]
        if unknown:
            raise InvalidRequest(f"state {unknown[0]!r}: choose among {', '.join(JobState)}")
        with self._database.transaction() as connection:
            found = jobs.list_newest(connection, states=[JobState(state) for state in states], limit=limit)
            return [Job(self._database, info) for info in found]

    @cached_property
    def _tickets(self) -> "Tickets":
        # Made when it is first needed: Celery takes a while to import, and many clients only look at jobs.
        from storage.broker import Tickets

        return Tickets(str(self.settings.broker_url))

    def close(self) -> None:
        """Give connections back; jobs go on."""
        if "_tickets" in vars(self):
            self._tickets.close()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_iterable(inputs: Any) -> None:
    if isinstance(inputs, str | bytes | Mapping):
        raise InvalidRequest(f"inputs is one {type(inputs).__name__}: give a list of inputs, [input] for a single one")


def _check_json(name: str, value: Any) -> None:
    try:
        canonicalize(value)
    except InvalidInput as error:
        raise error.at(name) from None
