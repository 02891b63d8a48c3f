"""A worker process: a ticket becomes a claimed shard, computed, stored and closed."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

from contracts import logs
from contracts.errors import (
    ArtifactError,
    DatabaseUnavailable,
    JobNotFound,
    LeaseLost,
    ModelError,
    UnavailableError,
)
from contracts.models import ModelSpec, TargetSpec
from contracts.params import pass_tokens
from contracts.settings import Settings
from contracts.states import Priority
from contracts.tracing import Span, Tracing
from storage import claims, models, schema, shards
from storage.broker import Tickets
from storage.database import Database
from storage.plans import Plan
from storage.shards import Lease
from storage.workers import WorkerReport
from worker import preparing
from worker.device import Computed, Device
from worker.engines.base import Engine
from worker.hardware import Hardware
from worker.heartbeat import Heartbeat
from worker.leases import Leases
from worker.loader import ModelLoader
from worker.measurer import Measurer
from worker.observing import WorkerMetrics
from worker.persister import Persister
from worker.reporting import Reporter
from worker.residency import ModelCache, Resident
from worker.serving import Served, patiently, worker_name
from worker.shards import HeldShard

log = logging.getLogger(__name__)
T = TypeVar("T")

REST = timedelta(seconds=15)
"""How long a shard rests that this host could not serve for want of a server, a disk or a file."""


class WorkerProcess:
    """Everything that one worker process holds; `serve` is called by the slots, each on a thread of its own."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        tickets: Tickets,
        hardware: Hardware,
        metrics: WorkerMetrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.name = worker_name()
        self._metrics = metrics or WorkerMetrics()
        self._tracing = tracing or Tracing("batchmill-worker")
        self._settings = settings
        self._database = database
        self._device = Device(
            lambda computed: self._persister.put(computed), self._metrics.passed, hardware.cores, hardware.enter_lane
        )
        self._persister = Persister(database, self._settle)
        self._loader = ModelLoader(settings, database, hardware, self._device)
        self._cache = ModelCache(
            hardware.model_memory, self._load, left=self._metrics.model_left, divisible=self._loader.divisible
        )
        self._leases = Leases(database, tickets, self._metrics)
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._heartbeat = Heartbeat(database, self._lease, self._lose, self._device.stalled_for, settings.stall_seconds)
        self._reporter = Reporter(database, self._report)
        self._hardware = hardware
        self._measurer = Measurer(database, settings.pool, hardware.kind, self._measure)
        self._claiming = threading.Condition()
        self._held: list[Lease] = []
        self._pausing = False
        """Whether nothing is claimed for a while, because a model is measured."""
        self._draining = threading.Event()
        self.claimed_at = time.monotonic()
        """When it last claimed a shard."""

    def start(self) -> None:
        """Begin to work.

        Raises:
            SchemaMismatch: The database is at another revision.
            DatabaseUnavailable: It does not answer.
        """
        with self._database.transaction() as connection:
            schema.check(connection)
        self._device.start()
        self._persister.start()
        self._heartbeat.start()
        self._reporter.start()
        self._measurer.start()
        self._metrics.serves(
            self._settings.pool, self._settings.slots, lambda: len(self._held), self._cache.limit, self._database
        )

    def drain(self) -> None:
        """Claim nothing new, and let go what is held: slots give their leases back and return."""
        self._draining.set()
        self._measurer.drain()
        self._device.drain()

    def stop(self) -> None:
        """End after `drain`: what was computed is stored first."""
        self._measurer.stop()
        self._reporter.stop()
        self._heartbeat.stop()
        self._device.stop()
        self._persister.stop()

    def give_back(self) -> None:
        """Release every lease at once, whatever the slots are busy with: the process is about to end.

        Raises:
            DatabaseUnavailable: Postgres does not answer; then the leases expire.
        """
        with self._database.transaction() as connection:
            shards.release(connection, [lease.token for lease in list(self._held)])

    def stalled_for(self) -> float:
        """Seconds since the pass in flight began; 0 when there is none."""
        return self._device.stalled_for()

    @property
    def idle(self) -> bool:
        """Whether it holds no shard."""
        return not self._held

    def starves(self) -> bool:
        """Whether it is idle while the database holds work that it could claim.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        if self._draining.is_set() or not self.idle:
            return False
        with self._database.transaction() as connection:
            capacity = self._cache.capacity(idle=True)
            return claims.could_claim(connection, pool=self._settings.pool, capacity=capacity)

    def _report(self) -> WorkerReport:
        models, model_bytes = self._cache.contents()
        return WorkerReport(
            name=self.name,
            pool=self._settings.pool,
            device=self._hardware.kind,
            slots=self._settings.slots,
            held=len(self._held),
            models=models,
            model_bytes=model_bytes,
            memory_limit=self._cache.limit,
            inputs=self._device.inputs,
            tokens=self._device.tokens,
        )

    def serve(self, pool: str) -> Served | None:
        """Serve one ticket: claim a shard, compute, store and close it; None when there was none.

        Raises:
            DatabaseUnavailable: Postgres does not answer; a lease that was taken is left to expire.
        """
        began = time.time_ns()
        with self._claimed(pool) as claimed:
            self._metrics.claimed(claimed is not None)
            if claimed is None:
                return None
            lease, target, resident = claimed
            with self._observed(lease, target, began) as span:
                try:
                    self._work(lease, target, resident, span)
                except (ModelError, ArtifactError) as error:
                    self._leases.fail(lease, error.code, str(error))
                except CancelledError:  # the process ends before the model was measured
                    self._leases.release(lease)
                except DatabaseUnavailable:
                    raise
                except UnavailableError as error:
                    log.warning("%s; another worker may fare better", error)
                    self._leases.release(lease, REST)
        # While it ran alone, or models took turns, other slots found nothing to do.
        if not self._draining.is_set():
            self._leases.wake(pool, self._settings.slots if lease.alone or lease.loading else 1)
        return Served(lease.job_id, lease.shard_id, len(lease.input_ids), target.model.reference)

    @contextmanager
    def _observed(self, lease: Lease, target: TargetSpec, began: int) -> Iterator[Span]:
        """Lines that are logged meanwhile name the shard and its job, and the job's trace has a span of it."""
        attributes: dict[str, str | int] = {
            "job": str(lease.job_id),
            "shard": str(lease.shard_id),
            "model": target.model.reference,
            "task": str(target.model.task),
            "pool": self._settings.pool,
            "worker": self.name,
            "inputs": len(lease.input_ids),
            "attempt": lease.attempt,
        }
        with (
            logs.bound(job=attributes["job"], shard=attributes["shard"]),
            self._tracing.span("shard", attributes, parent=lease.traceparent, began=began) as span,
        ):
            span.past("claim", began, time.time_ns())
            yield span

    @contextmanager
    def _claimed(self, pool: str) -> Iterator[tuple[Lease, TargetSpec, Resident] | None]:
        """A claimed shard with its model pinned, on a slot; one slot is kept for interactive work."""
        with self._claiming:
            alone = any(lease.alone for lease in self._held)
            claimed = None if alone or self._pausing or self._draining.is_set() else self._claim(pool)
            if claimed is not None:
                self._held.append(claimed[0])
                self.claimed_at = time.monotonic()
        try:
            yield claimed
        finally:
            if claimed is not None:
                self._cache.unpin(claimed[2])
                with self._claiming:
                    self._held.remove(claimed[0])
                    self._claiming.notify_all()

    def _claim(self, pool: str) -> tuple[Lease, TargetSpec, Resident] | None:
        busy = sum(lease.priority is not Priority.INTERACTIVE for lease in self._held)
        lowest = Priority.BULK if busy < self._settings.slots - 1 else Priority.INTERACTIVE
        with self._database.transaction() as connection:
            if lowest is Priority.INTERACTIVE and not claims.any_interactive(connection, pool):
                return None
            lease = claims.claim(
                connection,
                pool=pool,
                worker=self.name,
                lease=self._lease,
                lowest=lowest,
                capacity=self._cache.capacity(idle=self.idle),
            )
            target = None if lease is None else models.get_target(connection, lease.target_id)
        if lease is None or target is None:
            return None
        try:
            return lease, target, self._cache.pin(target.model)
        except ModelError as error:
            with logs.bound(job=str(lease.job_id), shard=str(lease.shard_id)):
                self._leases.fail(lease, error.code, str(error))
            return self._claim(pool)  # the ticket is good for another job

    def _measure(self, model: ModelSpec) -> None:
        """Load a model anew and measure it, while nothing else is computed; its tickets find nothing meanwhile.

        Raises:
            ModelError: It cannot be loaded.
            ArtifactError: Its files cannot be had.
            CancelledError: The process ends.
        """
        with self._claiming:
            self._pausing = True
            # Shards take about a second; what is abandoned lets its slot go as well.
            self._claiming.wait_for(lambda: not self._held or self._draining.is_set())
        try:
            self._cache.forget(model.id)
            resident = self._cache.pin(model)
            try:
                self._cache.load(resident)
            finally:
                self._cache.unpin(resident)
        finally:
            self._pausing = False
            if not self._draining.is_set():
                self._leases.wake(self._settings.pool, self._settings.slots)

    def _load(self, model: ModelSpec, grow: Callable[[int], bool]) -> tuple[Engine, Plan]:
        engine, plan = self._loader.load(model, grow)
        self._metrics.model_loaded(model, engine.memory_bytes, plan)
        return engine, plan

    def _lose(self, tokens: set[UUID]) -> None:
        # Some were closed meanwhile; the device knows only those that are still being worked on.
        self._device.abandon(lambda shard: shard.lease.token in tokens)

    def _settle(self, computed: list[Computed]) -> None:
        self._device.settle(computed)
        self._metrics.stored(computed)

    def _work(self, lease: Lease, target: TargetSpec, resident: Resident, span: Span) -> None:
        with self._heartbeat.keeping(lease):
            with span.step("load") if lease.loading else nullcontext():
                engine, plan = self._cache.load(resident)
            if lease.loading:
                with self._database.transaction() as connection:
                    shards.loaded(connection, lease)
            with span.step("prepare"):
                shard = self._patiently(lambda: preparing.hold(self._database, lease, target, engine))
            refused = len(shard.errors)
            submitted = time.time_ns()
            tokens = pass_tokens(plan.tokens, target.model.task, target.params)
            self._device.submit(shard, tokens, plan.pass_seconds, plan.lanes, plan.threads)
            self._metrics.dealt_with(
                target.model,
                cached=len(lease.input_ids) - len(shard.input_ids) - refused,
                failed=refused,
                followed=shard.followed,
            )
            shard.finished.wait()
            if shard.computed_at is not None:
                span.past("compute", submitted, shard.computed_at)
                span.past("persist", shard.computed_at, time.time_ns())
            with span.step("close"):
                self._patiently(lambda: self._close(shard, span))

    def _close(self, shard: HeldShard, span: Span) -> None:
        if shard.ceiling_tokens is not None:
            self._loader.lower_ceiling(shard.target.model, shard.ceiling_tokens)
        try:
            with self._database.transaction() as connection:
                if shard.abandoned:
                    if shards.release(connection, [shard.lease.token]) == 0:
                        raise LeaseLost(f"shard {shard.lease.shard_id} was taken away: its job ended, or its lease did")
                    last = False
                else:
                    last = shards.close(connection, shard.lease, shard.outcome())
        except (LeaseLost, JobNotFound) as error:  # or it was closed, and the answer was lost
            log.warning("%s; its results stay", error)
            self._metrics.lease_ended("lost")
            return
        self._metrics.lease_ended("released" if shard.abandoned else "closed")
        if last:
            span.event("job succeeded")
            log.info("job %s succeeded", shard.lease.job_id)

    def _patiently(self, function: Callable[[], T]) -> T:
        """Call it again while Postgres is away, for as long as a lease lasts."""
        return patiently(function, self._lease, self._draining, log)
