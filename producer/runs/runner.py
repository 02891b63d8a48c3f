"""A process that carries out the runs of schedules: it claims what is due, a few at once."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from contracts.errors import BatchmillError, DatabaseUnavailable, LeaseLost, UnavailableError
from producer.runs.bench import Bench
from producer.runs.held import Held, Interrupted, runner_name
from storage import runs
from storage.runs import RunLease

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Runs that are read or written at a time; those that are scored take no part of it."""
POLL_SECONDS = 1.0


class Runner:
    """Claims runs and carries them out, each on a thread, until it is to leave.

    Args:
        bench: What phases work with.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._leaving = threading.Event()
        self._held: dict[Future[None], RunLease] = {}

    def leave(self) -> None:
        """Claim nothing new, and give back what is held at the next row or part."""
        self._leaving.set()

    def give_back(self) -> None:
        """Release every run at once, whatever the threads are busy with: the process is about to end.

        Raises:
            DatabaseUnavailable: Postgres does not answer; then the leases expire.
        """
        for lease in list(self._held.values()):
            with suppress(LeaseLost), self._bench.database.transaction() as connection:
                runs.release(connection, lease.token)

    def run(self) -> None:
        """Work until `leave` is called and everything is given back."""
        troubled = False
        with ThreadPoolExecutor(AT_ONCE, "run") as threads:
            while not self._leaving.is_set():
                try:
                    claimed = self._claim() if len(self._held) < AT_ONCE else None
                except DatabaseUnavailable as error:
                    if not troubled:
                        log.warning("nothing can be claimed: %s", error)
                    claimed, troubled = None, True
                else:
                    troubled = False
                if claimed is None:
                    self._leaving.wait(POLL_SECONDS)
                    continue
                future = threads.submit(self._carry_out, claimed)
                self._held[future] = claimed
                future.add_done_callback(partial(self._held.pop))

    def _claim(self) -> RunLease | None:
        with self._bench.database.transaction() as connection:
            return runs.claim(connection, runner=runner_name(), lease=self._bench.lease)

    def _carry_out(self, lease: RunLease) -> None:
        # Here: what reads and writes files takes a while to import, and most of the day nothing is due.
        from producer.runs.phases import carry_out
        from producer.runs.watcher import Watcher

        held = Held(self._bench.database, lease, self._bench.lease, self._leaving)
        log.info("run %s of %s: %s, attempt %d", lease.run.id, lease.run.schedule, lease.run.state, lease.attempt)
        try:
            carry_out(self._bench, held, Watcher())
        except Interrupted:
            log.info("run %s is given back", lease.run.id)
        except (LeaseLost, UnavailableError) as error:
            log.warning("run %s: %s was cut: %s", lease.run.id, lease.run.state, error)
        except BatchmillError as error:
            log.error("run %s fails (%s): %s", lease.run.id, error.code, error)
        except Exception:
            log.exception("run %s fails, for a reason that nobody thought of", lease.run.id)
        else:
            log.info("run %s: %s is done", lease.run.id, lease.run.state)
