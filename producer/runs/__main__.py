"""`python -m producer.runs`: a runner, configured by the environment."""

import logging
import signal
import sys
from contextlib import closing

from prometheus_client import CollectorRegistry, ProcessCollector
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_delay, wait_exponential

from contracts import logs
from contracts.entrypoint import enter
from contracts.errors import DatabaseUnavailable
from contracts.leaving import Departure
from contracts.settings import Settings
from producer.publisher import Publisher
from producer.runs.bench import Bench
from producer.runs.held import runner_name
from producer.runs.runner import AT_ONCE, Runner
from storage import schema
from storage.database import Database
from storage.health import Health, Stage
from storage.probes import serving

log = logging.getLogger("producer.runs")


def run(settings: Settings) -> None:
    """Carry out runs of schedules until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: An address is wrong, or the schema is at another revision.
        DatabaseUnavailable: Postgres does not answer for a minute.
    """
    logs.configure(settings, runner=runner_name())
    database = Database(str(settings.database_url), pool_size=3 * AT_ONCE)
    registry, health = CollectorRegistry(), Health(database)
    ProcessCollector(registry=registry)
    with database, closing(Publisher(settings)) as publisher, serving(settings, registry, health):
        for attempt in Retrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            wait=wait_exponential(multiplier=0.2, max=3),
            stop=stop_after_delay(60),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        ):
            with attempt, database.transaction() as connection:
                schema.check(connection)
        runner = Runner(Bench(database, publisher, settings))

        def leave(*_: object) -> None:
            health.stage = Stage.LEAVING
            runner.leave()
            Departure().begin(runner.give_back)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, leave)
        health.stage = Stage.WORKING
        log.info("carries out runs of schedules, %d at once", AT_ONCE)
        runner.run()


def main() -> int:
    """Run a runner."""
    return enter("producer.runs", run)


if __name__ == "__main__":
    sys.exit(main())
