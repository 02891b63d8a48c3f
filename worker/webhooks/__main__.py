"""`python -m worker.webhooks`: the deliverer, configured by the environment."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from datetime import timedelta

from contracts import logs
from contracts.entrypoint import enter
from contracts.leaving import Departure
from contracts.settings import Settings
from contracts.states import DeliveryState
from storage.database import Database
from storage.health import Health, Stage
from storage.probes import serving
from storage.secrets import Keyring
from worker.metrics import DELIVERIES, Registry
from worker.webhooks.deliverer import Deliverer
from worker.webhooks.guard import GuardedTransport
from worker.webhooks.sender import Sender

log = logging.getLogger("worker.webhooks")


def run(settings: Settings) -> None:
    """Deliver webhooks until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: There is no key to decrypt secrets with, or the schema is at another revision.
    """
    logs.configure(settings)
    keyring = Keyring.load(settings)
    registry = Registry()
    attempts = registry.counter(DELIVERIES)
    # One connection is the deliverer's, the other the probes'.
    database = Database(str(settings.database_url), pool_size=2, transaction_seconds=60.0)
    health = Health(database)
    with database, serving(settings, registry.registry, health):
        asyncio.run(_serve(settings, database, keyring, health, lambda state: attempts.labels(state.value).inc()))


async def _serve(
    settings: Settings,
    database: Database,
    keyring: Keyring,
    health: Health,
    tried: Callable[[DeliveryState], None],
) -> None:
    seconds = settings.webhook_timeout_seconds
    transport = GuardedTransport(settings.webhook_allow_networks, seconds=seconds)
    sender = Sender(transport, keyring, seconds)
    deliverer = Deliverer(
        database, sender.send, settings.webhook_retry_seconds, timedelta(seconds=2 * seconds + 5), tried
    )

    def leave() -> None:
        health.stage = Stage.LEAVING
        deliverer.stop()
        # A database that hangs would hold the process for ever. What is claimed is due again by itself.
        Departure().begin(lambda: None)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave)
    health.stage = Stage.WORKING
    log.info("delivering webhooks")
    try:
        await deliverer.run()
    finally:
        await sender.close()


def main() -> int:
    """Run the deliverer."""
    return enter("worker.webhooks", run)


if __name__ == "__main__":
    sys.exit(main())
