"""`python -m worker.webhooks`: the deliverer, configured by the environment."""

import asyncio
import logging
import signal
import sys
from datetime import timedelta

from contracts.errors import BatchmillError
from contracts.settings import Settings, load_settings
from storage.database import Database
from storage.secrets import Keyring
from worker.leaving import Departure
from worker.webhooks.deliverer import Deliverer
from worker.webhooks.guard import GuardedTransport
from worker.webhooks.sender import Sender

log = logging.getLogger("worker.webhooks")


def run(settings: Settings) -> None:
    """Deliver webhooks until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: There is no key to decrypt secrets with, or the schema is at another revision.
    """
    keyring = Keyring.load(settings)
    with Database(str(settings.database_url), pool_size=1, transaction_seconds=60.0) as database:
        asyncio.run(_serve(settings, database, keyring))


async def _serve(settings: Settings, database: Database, keyring: Keyring) -> None:
    seconds = settings.webhook_timeout_seconds
    transport = GuardedTransport(settings.webhook_allow_networks, seconds=seconds)
    sender = Sender(transport, keyring, seconds)
    deliverer = Deliverer(
        database, sender.send, settings.webhook_retry_seconds, hold=timedelta(seconds=2 * seconds + 5)
    )

    def leave() -> None:
        deliverer.stop()
        # A database that hangs would hold the process for ever. What is claimed is due again by itself.
        Departure().begin(lambda: None)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave)
    log.info("delivering webhooks")
    try:
        await deliverer.run()
    finally:
        await sender.close()


def main() -> int:
    """Run the deliverer; an error that is ours is one line and exit code 1."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setLevel(logging.INFO)
    try:
        run(load_settings())
    except BatchmillError as error:
        log.error("%s: %s", error.code, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
