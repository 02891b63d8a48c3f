"""`python -m worker.beat`: sends ticks; any number of beats is harmless."""

import logging
import signal
import sys
from typing import Any

from celery.beat import Scheduler
from celery.signals import after_task_publish, setup_logging

from contracts import logs
from contracts.entrypoint import enter
from contracts.leaving import Departure
from contracts.settings import Settings
from storage.broker import TICK, TICK_QUEUE, celery_app
from storage.health import Pulse
from storage.probes import serving
from worker.metrics import Registry

log = logging.getLogger("worker.beat")


def run(settings: Settings) -> None:
    """Send a tick every few seconds until SIGTERM or SIGINT."""
    logs.configure(settings)
    setup_logging.connect(_keep_logging)
    app = celery_app(str(settings.broker_url))
    app.conf.beat_schedule = {
        "tick": {
            "task": TICK,
            "schedule": settings.tick_seconds,
            # Ticks that pile up while no worker runs are worth one. Hosts' clocks may differ by far, so not too soon.
            "options": {"queue": TICK_QUEUE, "expires": 3600},
        }
    }
    # The clock is in memory: what is due, the database says.
    beat = app.Beat(
        scheduler_cls=Scheduler,
        max_interval=settings.tick_seconds,
        loglevel="WARNING",
        quiet=True,  # its banner is no line of a log
        remote_control=False,
    )
    _leave_in_time(beat)
    pulse = Pulse(settings.tick_seconds)

    def sent(**_: object) -> None:
        pulse.beat()

    after_task_publish.connect(sent, sender=TICK, weak=False)
    try:
        with serving(settings, Registry().registry, pulse):
            log.info("sending a tick every %g s", settings.tick_seconds)
            beat.run()
    finally:
        after_task_publish.disconnect(sent, sender=TICK)


def _keep_logging(**_: object) -> None:
    """Celery leaves logging alone when somebody answers its signal."""


def _leave_in_time(beat: Any) -> None:
    """A signal that comes while a broker does not answer, or inside a callback that eats it, ends it all the same."""
    install = beat.install_sync_handler

    def install_both(service: object) -> None:
        install(service)
        for number in (signal.SIGTERM, signal.SIGINT):
            orderly = signal.getsignal(number)

            def leave(*arguments: Any, orderly: Any = orderly) -> None:
                Departure().begin(lambda: None)
                orderly(*arguments)

            signal.signal(number, leave)

    beat.install_sync_handler = install_both


def main() -> int:
    """Run beat."""
    return enter("worker.beat", run)


if __name__ == "__main__":
    sys.exit(main())
