"""The Celery application of a worker: two tasks, and the process that they work on."""

import logging
import threading

from celery import Celery
from celery.signals import setup_logging, worker_ready, worker_shutdown, worker_shutting_down

from contracts.errors import UnavailableError
from contracts.settings import Settings
from storage.broker import TICK, TICK_QUEUE, TICKET, Tickets, celery_app, queue
from storage.database import Database
from worker import maintenance
from worker.hardware import Hardware
from worker.leaving import Departure
from worker.process import WorkerProcess
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)


def build(settings: Settings, database: Database, hardware: Hardware, departure: Departure) -> Celery:
    """The application, ready to consume the tickets of the pool and the ticks.

    Raises:
        ConfigurationError: A setting is wrong.
        SchemaMismatch: The database is at another revision.
        DatabaseUnavailable: It does not answer.
    """
    app = celery_app(str(settings.broker_url))
    app.conf.task_queues = [queue(settings.pool), TICK_QUEUE]
    app.conf.worker_consumer = "worker.consumer:TicketConsumer"
    tickets = Tickets(str(settings.broker_url), app)
    process = WorkerProcess(settings, database, tickets, hardware)
    process.start()
    ticking = threading.Lock()

    def guarded_tick() -> None:
        # One at a time: ticks that pile up while the database is slow would only do the same again.
        if not ticking.acquire(blocking=False):
            return
        try:
            maintenance.tick(settings, database, tickets)
        finally:
            ticking.release()

    watchdog = Watchdog(process, settings.tick_seconds, guarded_tick, departure.ask)

    @app.task(name=TICKET)  # type: ignore[untyped-decorator]
    def ticket(pool: str) -> None:
        try:
            process.serve(pool)
        except UnavailableError as error:
            log.warning("a ticket was not served: %s", error)

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
        if settings.ready_file is not None:
            settings.ready_file.touch()
        log.info("%s serves pool %s", process.name, settings.pool)

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def shutting_down(**_: object) -> None:
        departure.begin(process.give_back)
        watchdog.stop()
        process.drain()

    @worker_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def shutdown(**_: object) -> None:
        process.stop()

    return app
