"""The thread that writes results while the next micro-batches run."""

import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_exponential,
)

from contracts.errors import DatabaseUnavailable
from storage import results
from storage.database import Database
from worker.device import Computed
from worker.vital import vital_thread

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
FLUSH_ROWS = 5000


class Persister:
    """Collects what the device computed and writes it in bulk.

    It writes at once when a shard has nothing left to compute, and otherwise every half second: a longer wait would
    cost more work at a crash, a shorter one more transactions.

    Args:
        database: Where results go.
        settle: Told what is stored, after the commit.
    """

    def __init__(self, database: Database, settle: Callable[[list[Computed]], None]) -> None:
        self._database = database
        self._settle = settle
        self._queue: queue.SimpleQueue[list[Computed] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        # Postgres may be away for a while: what was computed waits for it. Leases expire by its clock.
        self._retrying = Retrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            wait=wait_exponential(multiplier=0.2, max=5),
            sleep=sleep_using_event(self._stopping),
            stop=stop_when_event_set(self._stopping),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        self._thread = vital_thread("persister", self._loop)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, computed: list[Computed]) -> None:
        """Take what a micro-batch gave."""
        self._queue.put(computed)

    def stop(self) -> None:
        """Write what was taken, and end; what cannot be written now is given up, and computed again by others."""
        self._queue.put(None)
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        while (first := self._queue.get()) is not None:
            pending = list(first)
            more = self._collect(pending)
            try:
                self._retrying(self._write, pending)
            except DatabaseUnavailable as error:
                log.warning("what was computed last is given up: %s", error)
                return
            self._settle(pending)
            del first, pending  # or the model that computed them would stay in memory until others come
            if not more:
                return

    def _collect(self, pending: list[Computed]) -> bool:
        """Add what arrives until it is time to write; false when nothing will come any more."""
        deadline = time.monotonic() + FLUSH_SECONDS
        rows = sum(len(part.rows) for part in pending)
        while rows < FLUSH_ROWS and not any(part.last for part in pending):
            try:
                computed = self._queue.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                return True
            if computed is None:
                return False
            pending += computed
            rows += sum(len(part.rows) for part in computed)
        return True

    def _write(self, pending: list[Computed]) -> None:
        by_target: dict[int, list[Computed]] = defaultdict(list)
        for part in pending:
            if len(part.input_ids):
                by_target[part.shard.target.id].append(part)
        if not by_target:
            return
        with self._database.transaction() as connection:
            for target_id, parts in sorted(by_target.items()):
                results.insert(connection, _gather(target_id, parts))


def _gather(target_id: int, parts: list[Computed]) -> results.NewResults:
    outputs = [part.outputs for part in parts if part.outputs is not None]
    return results.NewResults(
        target_id=target_id,
        input_ids=np.concatenate([part.input_ids for part in parts]),
        shard_ids=np.concatenate(
            [np.broadcast_to(part.shard.shard_bytes, (len(part.input_ids), 16)) for part in parts]
        ),
        truncated=np.concatenate([part.truncated for part in parts]),
        outputs=(
            [value for part in outputs for value in part] if isinstance(outputs[0], list) else np.concatenate(outputs)
        ),
    )
