"""A worker process: a ticket becomes a claimed shard, computed, stored and closed."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
)

from contracts.errors import (
    ArtifactError,
    BatchmillError,
    BrokerUnavailable,
    DatabaseUnavailable,
    JobNotFound,
    LeaseLost,
    ModelError,
    UnavailableError,
)
from contracts.models import TargetSpec
from contracts.settings import Settings
from contracts.states import Priority
from storage import claims, control, models, schema, shards
from storage.broker import Tickets
from storage.database import Database
from storage.shards import Lease
from storage.workers import WorkerReport
from worker import preparing
from worker.device import Device
from worker.hardware import Hardware
from worker.heartbeat import Heartbeat
from worker.loader import ModelLoader
from worker.persister import Persister
from worker.reporting import Reporter
from worker.residency import ModelCache, Resident
from worker.shards import HeldShard

log = logging.getLogger(__name__)
T = TypeVar("T")

REST = timedelta(seconds=15)
"""How long a shard rests that this host could not serve for want of a server, a disk or a file."""


class WorkerProcess:
    """Everything that one worker process holds; `serve` is called by the slots, each on a thread of its own."""

    def __init__(self, settings: Settings, database: Database, tickets: Tickets, hardware: Hardware) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._settings = settings
        self._database = database
        self._tickets = tickets
        self._device = Device(lambda computed: self._persister.put(computed))
        self._persister = Persister(database, self._device.settle)
        self._loader = ModelLoader(settings, database, hardware, self._device)
        self._cache = ModelCache(hardware.model_memory, self._loader.load)
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._heartbeat = Heartbeat(database, self._device, self._lease, settings.stall_seconds)
        self._reporter = Reporter(database, self._report)
        self._hardware = hardware
        self._claiming = threading.Lock()
        self._held: list[Lease] = []
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

    def drain(self) -> None:
        """Claim nothing new, and let go what is held: slots give their leases back and return."""
        self._draining.set()
        self._device.drain()

    def stop(self) -> None:
        """End after `drain`: what was computed is stored first."""
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

    def serve(self, pool: str) -> bool:
        """Serve one ticket: claim a shard, compute, store and close it; whether there was one.

        Raises:
            DatabaseUnavailable: Postgres does not answer; a lease that was taken is left to expire.
        """
        with self._claimed(pool) as claimed:
            if claimed is None:
                return False
            lease, target, resident = claimed
            try:
                self._work(lease, target, resident)
            except (ModelError, ArtifactError) as error:
                self._fail(lease, error)
            except CancelledError:  # the process ends before the model was measured
                self._release(lease)
            except DatabaseUnavailable:
                raise
            except UnavailableError as error:
                log.warning("%s; another worker may fare better", error)
                self._release(lease, REST)
        # While it ran alone, or models took turns, other slots found nothing to do.
        self._succeed(pool, self._settings.slots if lease.alone or lease.loading else 1)
        return True

    @contextmanager
    def _claimed(self, pool: str) -> Iterator[tuple[Lease, TargetSpec, Resident] | None]:
        """A claimed shard with its model pinned, on a slot; one slot is kept for interactive work."""
        with self._claiming:
            alone = any(lease.alone for lease in self._held)
            claimed = None if alone or self._draining.is_set() else self._claim(pool)
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

    def _claim(self, pool: str) -> tuple[Lease, TargetSpec, Resident] | None:
        busy = sum(lease.priority is not Priority.INTERACTIVE for lease in self._held)
        with self._database.transaction() as connection:
            lease = claims.claim(
                connection,
                pool=pool,
                worker=self.name,
                lease=self._lease,
                lowest=Priority.BULK if busy < self._settings.slots - 1 else Priority.INTERACTIVE,
                capacity=self._cache.capacity(idle=self.idle),
            )
            target = None if lease is None else models.get_target(connection, lease.target_id)
        if lease is None or target is None:
            return None
        try:
            return lease, target, self._cache.pin(target.model)
        except ModelError as error:
            self._fail(lease, error)
            return self._claim(pool)  # the ticket is good for another job

    def _work(self, lease: Lease, target: TargetSpec, resident: Resident) -> None:
        with self._heartbeat.keeping(lease):
            engine, budget = self._cache.load(resident)
            if lease.loading:
                with self._database.transaction() as connection:
                    shards.loaded(connection, lease)
            shard = self._patiently(lambda: preparing.hold(self._database, lease, target, engine))
            self._device.submit(shard, budget.tokens)
            shard.finished.wait()
            self._patiently(lambda: self._close(shard))

    def _close(self, shard: HeldShard) -> None:
        if shard.ceiling_tokens is not None:
            self._loader.lower_ceiling(shard.target.model, shard.ceiling_tokens)
        try:
            with self._database.transaction() as connection:
                if shard.abandoned:
                    if shards.release(connection, [shard.lease.token]) == 0:
                        raise LeaseLost(f"shard {shard.lease.shard_id} was taken away: its job ended, or its lease did")
                elif shards.close(connection, shard.lease, shard.outcome()):
                    log.info("job %s succeeded", shard.lease.job_id)
        except (LeaseLost, JobNotFound) as error:  # or it was closed, and the answer was lost
            log.warning("%s; its results stay", error)

    def _fail(self, lease: Lease, error: BatchmillError) -> None:
        with self._database.transaction() as connection:
            if shards.held(connection, lease) and control.fail(connection, lease.job_id, error.code, str(error)):
                log.error("job %s fails: %s", lease.job_id, error)

    def _release(self, lease: Lease, rest: timedelta | None = None) -> None:
        with self._database.transaction() as connection:
            shards.release(connection, [lease.token], rest)

    def _succeed(self, pool: str, count: int) -> None:
        """Publish successor tickets while claimable work remains; those that are lost the tick makes up for."""
        if self._draining.is_set():
            return
        with suppress(DatabaseUnavailable), self._database.transaction() as connection:
            more = claims.any_claimable(connection, pool)
            if not more:
                return
        try:
            self._tickets.publish(pool, count)
        except BrokerUnavailable as error:
            log.warning("%s; the next tick makes up for it", error)

    def _patiently(self, function: Callable[[], T]) -> T:
        """Call it again while Postgres is away, for as long as a lease lasts."""
        retrying = Retrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            wait=wait_exponential(multiplier=0.1, max=2),
            sleep=sleep_using_event(self._draining),
            stop=stop_after_delay(self._lease.total_seconds()) | stop_when_event_set(self._draining),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        return retrying(function)
