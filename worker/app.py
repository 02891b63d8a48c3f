"""The Celery application of a worker: two tasks, and the process that they work on."""

import logging
import threading
from importlib.util import find_spec

from celery import Celery
from celery.signals import setup_logging, worker_ready, worker_shutdown, worker_shutting_down

from contracts.errors import UnavailableError
from contracts.leaving import Departure
from contracts.names import COMPRESSION_POOL
from contracts.settings import Settings
from contracts.tracing import Tracing
from storage.broker import TICK, TICK_QUEUE, TICKET, Tickets, celery_app, queue
from storage.database import Database
from storage.health import Health, Stage
from worker import maintenance
from worker.observing import WorkerMetrics
from worker.serving import Process
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)


def build(
    settings: Settings,
    database: Database,
    departure: Departure,
    metrics: WorkerMetrics,
    health: Health,
    tracing: Tracing,
) -> Celery:
    """The application, ready to consume the tickets of the pool and the ticks.

    Args:
        settings: Of the process.
        database: Where its work is.
        departure: How the process ends.
        metrics: Counts what it does.
        health: Is told how far it has come.
        tracing: Takes spans of its shards.

    Raises:
        ConfigurationError: A setting is wrong.
        SchemaMismatch: The database is at another revision.
        DatabaseUnavailable: It does not answer.
    """
    app = celery_app(str(settings.broker_url))
    app.conf.task_queues = [queue(settings.pool), TICK_QUEUE]
    app.conf.worker_consumer = "worker.consumer:TicketConsumer"
    tickets = Tickets(str(settings.broker_url), app)
    process = _process(settings, database, tickets, metrics, tracing)
    process.start()
    health.watch(process.stalled_for, settings.stall_seconds)
    ticking = threading.Lock()

    def guarded_tick() -> None:
        # One at a time: ticks that pile up while the database is slow would only do the same again.
        if not ticking.acquire(blocking=False):
            return
        try:
            maintenance.tick(settings, database, tickets, metrics.rescued)
            health.ticked()
        finally:
            ticking.release()

    watchdog = Watchdog(process, settings.tick_seconds, guarded_tick, departure.ask)

    @app.task(name=TICKET)  # type: ignore[untyped-decorator]
    def ticket(pool: str) -> dict[str, str | int]:
        # Nobody waits for what it returns: it is what Flower shows of a ticket.
        try:
            served = process.serve(pool)
        except UnavailableError as error:
            log.warning("a ticket was not served: %s", error)
            return {"unavailable": error.code}
        if served is None:
            return {"claimed": "nothing"}
        return {"model": served.model, "items": served.items, "job": str(served.job), "shard": str(served.shard)}

    @app.task(name=TICK)  # type: ignore[untyped-decorator]
    def tick() -> None:
        watchdog.ticked()
        guarded_tick()

    @setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def keep_logging(**_: object) -> None:
        """Celery leaves logging alone when somebody answers this signal."""

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def ready(**_: object) -> None:
        guarded_tick()
        watchdog.start()
        health.stage = Stage.WORKING
        if settings.ready_file is not None:
            settings.ready_file.touch()
        log.info("%s serves pool %s", process.name, settings.pool)

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def shutting_down(**_: object) -> None:
        departure.begin(process.give_back)
        health.stage = Stage.LEAVING
        watchdog.stop()
        process.drain()

    @worker_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def shutdown(**_: object) -> None:
        process.stop()

    return app


def _process(
    settings: Settings, database: Database, tickets: Tickets, metrics: WorkerMetrics, tracing: Tracing
) -> Process:
    """What serves the pool; a process that compresses imports nothing that runs models."""
    if settings.pool == COMPRESSION_POOL:
        if find_spec("torch") is None:  # its subprocesses need it
            raise ModuleNotFoundError("torch is not installed", name="torch")
        from worker.compression.process import CompressionProcess

        return CompressionProcess(settings, database, tickets, metrics, tracing)
    from worker import hardware
    from worker.process import WorkerProcess

    return WorkerProcess(settings, database, tickets, hardware.detect(settings), metrics, tracing)
