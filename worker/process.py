"""A worker process: a ticket becomes a claimed shard, computed, stored and closed."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from datetime import timedelta

import numpy as np

from contracts.errors import ArtifactError, BatchmillError, BrokerUnavailable, LeaseLost, ModelError, ModelLoadFailed
from contracts.models import ModelSpec, TargetSpec
from contracts.params import parse_params
from contracts.settings import Settings
from contracts.states import Priority
from storage import budgets, control, inputs, models, results, schema, shards
from storage.artifacts import ArtifactStore
from storage.broker import Tickets
from storage.budgets import Budget
from storage.database import Database
from storage.shards import Lease
from worker import budget as budget_measure
from worker.batcher import Block
from worker.device import Computed, Device
from worker.engines.base import Engine
from worker.engines.registry import engine_class
from worker.hardware import Hardware
from worker.heartbeat import Heartbeat
from worker.persister import Persister
from worker.residency import ModelCache, Resident
from worker.shards import HeldShard

log = logging.getLogger(__name__)


class WorkerProcess:
    """Everything that one worker process holds; `serve` is called by the slots, each on a thread of its own."""

    def __init__(self, settings: Settings, database: Database, tickets: Tickets, hardware: Hardware) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._settings = settings
        self._database = database
        self._tickets = tickets
        self._hardware = hardware
        self._artifacts = ArtifactStore(settings.artifacts_url)
        self._cache = ModelCache(hardware.model_memory, self._load)
        self._device = Device(self._deliver)
        self._persister = Persister(database, self._device.settle)
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._heartbeat = Heartbeat(database, self._device, self._lease)
        self._claiming = threading.Lock()
        self._busy = 0
        self._draining = False

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

    def drain(self) -> None:
        """Claim nothing new, and let go what is held: slots give their leases back and return."""
        self._draining = True
        self._device.abandon(lambda _: True)

    def stop(self) -> None:
        """End after `drain`: what was computed is stored first."""
        self._heartbeat.stop()
        self._device.stop()
        self._persister.stop()

    def serve(self, pool: str) -> bool:
        """Serve one ticket: claim a shard, compute, store and close it; whether there was one."""
        with self._claimed(pool) as claimed:
            if claimed is None:
                return False
            lease, target, resident = claimed
            try:
                self._work(lease, target, resident)
            except (ModelError, ArtifactError) as error:
                self._fail(lease, error)
            except CancelledError:  # the process ends before the model was measured
                with self._database.transaction() as connection:
                    shards.release(connection, [lease.token])
        self._succeed(pool)
        return True

    @contextmanager
    def _claimed(self, pool: str) -> Iterator[tuple[Lease, TargetSpec, Resident] | None]:
        """A claimed shard with its model pinned, on a slot; one slot is kept for interactive work."""
        with self._claiming:
            claimed = None if self._draining else self._claim(pool)
            self._busy += claimed is not None and claimed[0].priority is not Priority.INTERACTIVE
        try:
            yield claimed
        finally:
            if claimed is not None:
                self._cache.unpin(claimed[2])
                with self._claiming:
                    self._busy -= claimed[0].priority is not Priority.INTERACTIVE

    def _claim(self, pool: str) -> tuple[Lease, TargetSpec, Resident] | None:
        lowest = Priority.BULK if self._busy < self._settings.slots - 1 else Priority.INTERACTIVE
        with self._database.transaction() as connection:
            lease = shards.claim(
                connection,
                pool=pool,
                worker=self.name,
                lease=self._lease,
                lowest=lowest,
                capacity=self._cache.capacity(),
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
            shard = self._prepare(lease, target, engine)
            self._device.submit(shard, budget.tokens)
            if self._draining:
                self._device.abandon(lambda held: held is shard)
            shard.finished.wait()
            self._close(shard)

    def _prepare(self, lease: Lease, target: TargetSpec, engine: Engine) -> HeldShard:
        """Fetch and tokenize the inputs that have no result by now."""
        with self._database.transaction() as connection:
            known = results.known(connection, target.id, lease.input_ids)
            missing = [input_id for input_id in lease.input_ids if input_id not in known]
            payloads = inputs.payloads(connection, missing)
        try:
            prepared = engine.prepare(payloads, target.params)
        except Exception as error:  # an engine says by item what it cannot take: anything else is its own fault
            raise ModelError(f"{target.model.reference} cannot prepare inputs: {_describe(error)}") from error
        good = [place for place in range(len(missing)) if place not in prepared.errors]
        return HeldShard(
            lease=lease,
            target=target,
            engine=engine,
            input_ids=np.array(missing, dtype=np.int64)[good],
            rows=[prepared.rows[place] for place in good],
            truncated=prepared.truncated[good],
            block=Block(target.id, lease.priority.rank, prepared.lengths[good]),
            errors={missing[place]: error for place, error in prepared.errors.items()},
        )

    def _close(self, shard: HeldShard) -> None:
        try:
            with self._database.transaction() as connection:
                if shard.abandoned:
                    shards.release(connection, [shard.lease.token])
                elif shards.close(connection, shard.lease, shard.outcome()):
                    log.info("job %s succeeded", shard.lease.job_id)
        except LeaseLost as error:
            log.warning("%s; its results stay", error)

    def _fail(self, lease: Lease, error: BatchmillError) -> None:
        with self._database.transaction() as connection:
            if shards.held(connection, lease) and control.fail(connection, lease.job_id, error.code, str(error)):
                log.error("job %s fails: %s", lease.job_id, error)

    def _succeed(self, pool: str) -> None:
        """Publish a successor ticket while claimable work remains; one that is lost is made up for by the tick."""
        if self._draining:
            return
        with self._database.transaction() as connection:
            more = shards.any_claimable(connection, pool)
        if more:
            try:
                self._tickets.publish(pool, 1)
            except BrokerUnavailable as error:
                log.warning("%s; the next tick makes up for it", error)

    def _deliver(self, computed: list[Computed]) -> None:
        self._persister.put(computed)

    def _load(self, model: ModelSpec) -> tuple[Engine, Budget]:
        try:
            folder = self._artifacts.fetch(model.files, self._settings.cache)
            engine = engine_class(model.engine).load(model, folder, self._hardware.device)
        except BatchmillError:
            raise
        except Exception as error:  # whatever a library raises, the job hears of it
            raise ModelLoadFailed(f"{model.reference} cannot be loaded: {_describe(error)}") from error
        with self._database.transaction() as connection:
            budget = budgets.get(connection, model.id, self._hardware.kind)
        if budget is None:
            params = parse_params(model.task, {})
            budget = self._device.call(lambda: budget_measure.measure(engine, params))
            with self._database.transaction() as connection:
                budgets.put(connection, model.id, self._hardware.kind, budget)
            log.info(
                "%s on %s: %d tokens a micro-batch, %.0f tokens/s",
                model.reference,
                self._hardware.kind,
                budget.tokens,
                budget.tokens_per_second,
            )
        return engine, budget


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
