"""`python -m worker`: one worker process, configured by the environment."""

import logging
import sys
from contextlib import closing
from secrets import token_hex

from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_delay, wait_exponential

from contracts import logs
from contracts.entrypoint import enter
from contracts.errors import DatabaseUnavailable
from contracts.leaving import Departure
from contracts.names import COMPRESSION_POOL
from contracts.settings import Settings
from contracts.tracing import Tracing
from storage.database import Database
from storage.health import COMPRESSING, VITAL, Health
from storage.probes import serving
from worker.app import build
from worker.observing import WorkerMetrics
from worker.serving import worker_name

log = logging.getLogger("worker")

SHORTEST = 3.0
"""Seconds that a transaction may take however short leases are."""
COMPRESSION_SLOTS = 2
"""Of a worker that compresses: a thread for the one job that it works on, and one for ticks meanwhile."""


def run(settings: Settings) -> int:
    """Work until SIGTERM or SIGINT, or until the process finds itself cut off; the exit code."""
    # The thread that drives the model gives way to Python in others; a long turn of theirs would leave it waiting.
    sys.setswitchinterval(0.0005)
    logs.configure(settings, worker=worker_name())
    compresses = settings.pool == COMPRESSION_POOL
    if compresses:
        settings = settings.model_copy(update={"slots": COMPRESSION_SLOTS})
    departure = Departure()
    metrics = WorkerMetrics()
    database = Database(
        str(settings.database_url),
        pool_size=settings.slots + 4,
        transaction_seconds=max(settings.lease_seconds, SHORTEST),
    )
    health = Health(database, COMPRESSING if compresses else VITAL)
    tracing = Tracing("batchmill-worker")
    with database, closing(tracing), serving(settings, metrics.registry, health):
        for attempt in Retrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            wait=wait_exponential(multiplier=0.2, max=3),
            stop=stop_after_delay(60),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        ):
            with attempt:
                app = build(settings, database, departure, metrics, health, tracing)
        app.worker_main(
            [
                "--quiet",
                "worker",
                "--pool=threads",
                f"--concurrency={settings.slots}",
                "--without-mingle",
                "--without-gossip",
                "--task-events",  # for Flower: published, and kept by no broker when nobody listens
                "--loglevel=WARNING",
                # Not by its number, which the next process of a container has too: RabbitMQ refuses a name twice.
                f"--hostname={settings.pool}@%h.{token_hex(4)}",
            ]
        )
    return departure.exit_code


def main() -> int:
    """Run a worker."""
    return enter("worker", run)


if __name__ == "__main__":
    sys.exit(main())
