"""The loop of the deliverer: claim what is due, try it, write down what came of it, in batches."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from contracts.errors import DatabaseUnavailable
from contracts.states import DeliveryState
from storage import deliveries, endpoints, schema
from storage.database import Database
from storage.deliveries import Claim, Outcome
from worker.webhooks.lanes import Lanes
from worker.webhooks.verdict import GONE, THROTTLING, Answer, judge

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_SECONDS = 1.0
BATCH_SECONDS = 0.01
"""How long an outcome waits for others to be written down with it."""
DRAIN_SECONDS = 5.0
"""How long attempts in flight may go on once the process is to end."""
FLUSH_SECONDS = 5.0
"""How long a database that does not answer is asked to take the last outcomes."""


class Deliverer:
    """Delivers until it is told to stop; any number of them, on any hosts, share the work.

    Args:
        database: Where deliveries are.
        send: One attempt.
        waits: Seconds to wait after each failed attempt.
        hold: How long a claim lasts: longer than an attempt can.
        tried: Told after each attempt what becomes of the delivery.
    """

    def __init__(
        self,
        database: Database,
        send: Callable[[Claim], Awaitable[Answer]],
        waits: Sequence[float],
        hold: timedelta,
        tried: Callable[[DeliveryState], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._send = send
        self._waits = waits
        self._hold = hold
        self._tried = tried
        self._lanes = Lanes()
        self._flying: dict[asyncio.Task[None], Claim] = {}
        self._outcomes: list[Outcome] = []
        self._gone: set[int] = set()
        self._tidied = 0.0
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()

    def stop(self) -> None:
        """Claim nothing new; `run` returns soon."""
        self._stop.set()
        self._wake.set()

    async def run(self) -> None:
        """Deliver until stopped, then finish or give back what is held.

        Raises:
            SchemaMismatch: The database is at another revision.
        """
        try:
            await self._in_database(self._check)
            while not self._stop.is_set():
                for claim in await self._turn(claiming=True):
                    self._start(claim)
                await self._pause()
        except DatabaseUnavailable:
            if not self._stop.is_set():
                raise
        await self._drain()

    def _start(self, claim: Claim) -> None:
        self._lanes.take(claim.endpoint_id)
        task = asyncio.create_task(self._attempt(claim))
        self._flying[task] = claim
        task.add_done_callback(self._flying.pop)

    async def _attempt(self, claim: Claim) -> None:
        answer = await self._send(claim)
        self._lanes.give(claim.endpoint_id, good=answer.good, throttled=answer.status in THROTTLING)
        outcome = judge(claim, answer, self._waits, random.random())
        if answer.status == GONE:
            self._gone.add(claim.endpoint_id)
        elif outcome.state is DeliveryState.DEAD:
            log.warning("delivery %s is dead after %d attempts: %s", claim.id, claim.attempt, outcome.error)
        self._tried(outcome.state)
        self._outcomes.append(outcome)
        self._wake.set()

    async def _pause(self) -> None:
        """Wait until an attempt has ended, and a few more with it; or for the next poll."""
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        await asyncio.sleep(BATCH_SECONDS)

    async def _drain(self) -> None:
        """Let attempts in flight end for a while, write down what came of them, and give back the rest."""
        late: list[Claim] = []
        if self._flying:
            _, pending = await asyncio.wait(self._flying, timeout=DRAIN_SECONDS)
            late = [self._flying[task] for task in pending]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        try:
            await self._turn(claiming=False, late=late)
        except DatabaseUnavailable as error:
            log.warning("what was in flight is due again within %s: %s", self._hold, error)

    async def _turn(self, *, claiming: bool, late: Sequence[Claim] = ()) -> list[Claim]:
        """Write down what ended, give back what is late, and claim what fits."""
        outcomes, self._outcomes = self._outcomes, []
        gone, self._gone = self._gone, set()
        free, room = self._lanes.free, self._lanes.room if claiming else 0
        tidying = bool(gone) or time.monotonic() > self._tidied + POLL_SECONDS

        def exchange() -> list[Claim]:
            with self._database.transaction() as connection:
                deliveries.finish(connection, outcomes)
                deliveries.release(connection, late)
            # By itself: it takes endpoints and all that is pending of them, in whatever order others hold these.
            with self._database.transaction() as connection:
                for endpoint_id in sorted(gone):
                    if endpoints.disable(connection, endpoint_id, "it answered 410 Gone"):
                        log.warning("webhook endpoint %d is disabled: it answered 410 Gone", endpoint_id)
                if tidying:
                    deliveries.bury_disabled(connection)
                if room <= 0:
                    return []
                return deliveries.claim(connection, free=free, fresh=self._lanes.fresh, room=room, hold=self._hold)

        try:
            claims = await self._in_database(exchange)
        except DatabaseUnavailable:
            self._outcomes[:0] = outcomes
            self._gone |= gone
            raise
        if tidying:
            self._tidied = time.monotonic()
        return claims

    async def _in_database(self, work: Callable[[], T]) -> T:
        """Do it in a thread, again and again while the database is away; once stopped, for a little while only.

        Raises:
            DatabaseUnavailable: It was away when the time to leave came.
        """
        leaving = self._stop.is_set()
        enough = stop_after_delay(FLUSH_SECONDS)

        def stop(state: RetryCallState) -> bool:
            return enough(state) if leaving else self._stop.is_set()

        return await AsyncRetrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop,
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )(asyncio.to_thread, work)

    def _check(self) -> None:
        with self._database.transaction() as connection:
            schema.check(connection)
