"""A worker process of the pool that compresses: a ticket becomes a claimed job, done step by step in subprocesses."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection

from contracts import logs
from contracts.errors import (
    ArtifactsUnavailable,
    BatchmillError,
    DatabaseUnavailable,
    JobNotFound,
    LeaseLost,
)
from contracts.models import TargetSpec
from contracts.names import COMPRESSION_POOL
from contracts.settings import Settings
from contracts.tracing import Span, Tracing
from storage import claims, jobs, models, schema, shards
from storage.artifacts import ArtifactStore
from storage.broker import Tickets
from storage.claims import Capacity
from storage.database import Database
from storage.shards import Lease
from storage.workers import WorkerReport
from worker.compression import room, supervision
from worker.compression.held import Held, Means
from worker.compression.patience import PatientDatabase
from worker.compression.scratch import remove_stale, scratch
from worker.compression.supervision import REST, Interrupted, Postponed, StepFailed
from worker.compression.work import Compression, Paused
from worker.heartbeat import Heartbeat
from worker.leases import Leases
from worker.observing import WorkerMetrics
from worker.reporting import Reporter
from worker.serving import Served, patiently, worker_name

log = logging.getLogger(__name__)


class CompressionProcess:
    """Everything that a process holds that compresses; it imports no library that runs models.

    Args:
        settings: Of the process.
        database: Where its work is.
        tickets: Wake others of its pool.
        metrics: Counts what it does.
        tracing: Takes spans of its jobs.
        command: What starts the process of a step.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        tickets: Tickets,
        metrics: WorkerMetrics | None = None,
        tracing: Tracing | None = None,
        command: Sequence[str] = supervision.COMMAND,
    ) -> None:
        self.name = worker_name()
        self.claimed_at = time.monotonic()
        self._settings = settings
        self._database = database
        self._metrics = metrics or WorkerMetrics()
        self._tracing = tracing or Tracing("batchmill-worker")
        self._means = Means(settings, database, ArtifactStore(settings.artifacts_url), _environment(settings), command)
        self._leases = Leases(database, tickets, self._metrics)
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._heartbeat = Heartbeat(database, self._lease, self._interrupt)
        self._reporter = Reporter(database, self._report)
        self._claiming = threading.Lock()
        self._held: Lease | None = None
        self._interrupted = threading.Event()
        self._draining = threading.Event()
        self._jobs = 0

    @property
    def _root(self) -> Path:
        """Where jobs keep files while they are worked on."""
        return self._settings.cache / "compression"

    def start(self) -> None:
        """Begin to work; what dead jobs left on this host is removed.

        Raises:
            SchemaMismatch: The database is at another revision.
            DatabaseUnavailable: It does not answer.
        """
        with self._database.transaction() as connection:
            schema.check(connection)
        remove_stale(self._root, self._unfinished)
        self._heartbeat.start()
        self._reporter.start()
        self._metrics.serves(COMPRESSION_POOL, 1, lambda: int(not self.idle), 0, self._database)

    def drain(self) -> None:
        """Claim nothing new, end the subprocess, and give the lease back."""
        self._draining.set()
        self._interrupted.set()

    def stop(self) -> None:
        """End after `drain`."""
        self._reporter.stop()
        self._heartbeat.stop()

    def give_back(self) -> None:
        """Release the lease at once: the process is about to end, and its subprocess with it.

        Raises:
            DatabaseUnavailable: Postgres does not answer; then the lease expires.
        """
        if (held := self._held) is not None:
            with self._database.transaction() as connection:
                shards.release(connection, [held.token])

    def stalled_for(self) -> float:
        """0: a step that hangs is ended when its time is over."""
        return 0.0

    @property
    def idle(self) -> bool:
        """Whether it works on no job."""
        return self._held is None

    def starves(self) -> bool:
        """Whether it is idle while the database holds a job that it could claim.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        if self._draining.is_set() or not self.idle:
            return False
        with self._database.transaction() as connection:
            return claims.could_claim(connection, pool=COMPRESSION_POOL, capacity=Capacity())

    def serve(self, pool: str) -> Served | None:
        """Serve one ticket: claim a job and work on it; None when there was none, or one is being worked on.

        Raises:
            DatabaseUnavailable: Postgres does not answer; a lease that was taken is left to expire.
        """
        began = time.time_ns()
        with self._claimed(pool) as claimed:
            if claimed is None:
                return None
            lease, target = claimed
            with self._observed(lease, target, began) as span, self._heartbeat.keeping(lease):
                self._work(lease, target, span)
        with suppress(DatabaseUnavailable):  # what ended elsewhere meanwhile; the next job looks again
            remove_stale(self._root, self._unfinished)
        if not self._draining.is_set():
            self._leases.wake(pool, 1)
        return Served(lease.job_id, lease.shard_id, len(lease.input_ids), target.model.reference)

    @contextmanager
    def _claimed(self, pool: str) -> Iterator[tuple[Lease, TargetSpec] | None]:
        with self._claiming:
            claimed = None
            if self.idle and not self._draining.is_set():
                with self._database.transaction() as connection:
                    claimed = self._claim(connection, pool)
                self._metrics.claimed(claimed is not None)
            if claimed is not None:
                self._held = claimed[0]
                self._interrupted.clear()
                if self._draining.is_set():
                    self._interrupted.set()
                self.claimed_at = time.monotonic()
        try:
            yield claimed
        finally:
            if claimed is not None:
                self._held = None

    def _claim(self, connection: Connection, pool: str) -> tuple[Lease, TargetSpec] | None:
        lease = claims.claim(connection, pool=pool, worker=self.name, lease=self._lease)
        if lease is None:
            return None
        shards.loaded(connection, lease)  # no model is: a death has another cause
        return lease, models.get_target(connection, lease.target_id)

    @contextmanager
    def _observed(self, lease: Lease, target: TargetSpec, began: int) -> Iterator[Span]:
        attributes: dict[str, str | int] = {
            "job": str(lease.job_id),
            "shard": str(lease.shard_id),
            "model": target.model.reference,
            "task": str(target.model.task),
            "pool": COMPRESSION_POOL,
            "worker": self.name,
            "attempt": lease.attempt,
        }
        with (
            logs.bound(job=attributes["job"], shard=attributes["shard"]),
            self._tracing.span("compression", attributes, parent=lease.traceparent, began=began) as span,
        ):
            yield span

    def _work(self, lease: Lease, target: TargetSpec, span: Span) -> None:
        try:
            with scratch(self._root, lease.job_id) as place:
                try:
                    database = PatientDatabase(self._database, self._lease, self._draining)
                    held = database.transact(lambda connection: Held.of(connection, lease, target))
                    Compression(self._means, held, place, self._interrupted, self._draining, span).run()
                    self._jobs += 1
                    self._metrics.lease_ended("closed")
                except LeaseLost as error:
                    log.warning("%s; what its steps left stays", error)
                    self._metrics.lease_ended("lost")
                except (Interrupted, Paused) as error:
                    self._release(lease)
                    log.info("%s: what its steps left stays", type(error).__name__.lower())
                except (ArtifactsUnavailable, DatabaseUnavailable, Postponed):
                    raise
                except (StepFailed, BatchmillError) as error:
                    failed = StepFailed.of(error)
                    self._patiently(lambda: self._leases.fail(lease, failed.code, str(failed)))
                finally:
                    if self._has_ended(lease.job_id):
                        place.remove()
        except (ArtifactsUnavailable, Postponed) as error:
            log.log(
                logging.INFO if isinstance(error, Postponed) else logging.WARNING, "%s; it rests for a while", error
            )
            self._release(lease, REST)

    def _release(self, lease: Lease, rest: timedelta | None = None) -> None:
        self._patiently(lambda: self._leases.release(lease, rest))

    def _patiently(self, function: Callable[[], None]) -> None:
        patiently(function, self._lease, self._draining, log)

    def _unfinished(self, job_ids: list[UUID]) -> set[UUID]:
        with self._database.transaction() as connection:
            return jobs.unfinished(connection, job_ids)

    def _has_ended(self, job_id: UUID) -> bool:
        try:
            with self._database.transaction() as connection:
                return jobs.get(connection, job_id).state.terminal
        except JobNotFound:
            return True
        except DatabaseUnavailable:  # the next start looks again
            return False

    def _interrupt(self, lost: set[UUID]) -> None:
        if (held := self._held) is not None and held.token in lost:
            self._interrupted.set()

    def _report(self) -> WorkerReport:
        return WorkerReport(
            name=self.name,
            pool=COMPRESSION_POOL,
            device=self._settings.device,
            slots=1,
            held=int(not self.idle),
            models=[],
            model_bytes=0,
            memory_limit=room.all_memory(),
            inputs=self._jobs,
            tokens=0,
            disk_free=room.free_disk(self._root),
        )


def _environment(settings: Settings) -> dict[str, str]:
    """Of a subprocess: it reaches no server of ours, asks no hub, and takes the device and the threads of the pool."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHMILL_")}
    for name in ("device", "threads", "model_memory"):
        if (value := getattr(settings, name)) is not None:
            kept[f"BATCHMILL_{name.upper()}"] = str(value)
    if settings.threads is not None:
        kept["OMP_NUM_THREADS"] = str(settings.threads)
    return {**kept, "HF_HUB_OFFLINE": "1"}
