"""What a world stands on: a nursery, a Postgres and a broker; worlds that follow each other may share one."""

from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.faults.nursery import Nursery
from tests.faults.servers import Broker, Database


class Ground:
    """Use it as a context; it starts with its servers up.

    Args:
        folder: Where servers keep their files; a short path.
        broker: `valkey` or `rabbitmq`.
        disk_megabytes: Room for results.
    """

    def __init__(self, folder: Path, broker: str = "valkey", disk_megabytes: int = 64) -> None:
        self._folder = folder
        self._kind = broker
        self._disk_megabytes = disk_megabytes
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with self._running as running:
            self.nursery = Nursery()
            running.callback(self.nursery.close)
            self.database = Database(self._folder / "database", self._disk_megabytes)
            running.callback(self.database.stop)
            self.broker = Broker(self._folder / "broker", self._kind)
            running.callback(self.broker.stop)
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def clear(self) -> None:
        """Leave nothing of a world for the next: neither processes nor rows nor messages."""
        self.nursery.clear()
        self.database.renew()
        self.broker.wipe()
