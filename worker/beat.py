"""`python -m worker.beat`: sends ticks; any number of beats is harmless."""

import logging
import sys

from celery.beat import Scheduler

from contracts.errors import BatchmillError
from contracts.settings import Settings, load_settings
from storage.broker import TICK, TICK_QUEUE, celery_app

log = logging.getLogger("worker.beat")


def run(settings: Settings) -> None:
    """Send a tick every few seconds until SIGTERM or SIGINT."""
    app = celery_app(str(settings.broker_url))
    app.conf.beat_schedule = {
        "tick": {
            "task": TICK,
            "schedule": settings.tick_seconds,
            # Ticks that pile up while no worker runs are worth one. Hosts' clocks may differ, so not too soon.
            "options": {"queue": TICK_QUEUE, "expires": 600},
        }
    }
    # The clock is in memory: what is due, the database says.
    app.Beat(scheduler_cls=Scheduler, max_interval=settings.tick_seconds, loglevel="WARNING").run()


def main() -> int:
    """Run beat; an error that is ours is one line and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        run(load_settings())
    except BatchmillError as error:
        log.error("%s: %s", error.code, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
