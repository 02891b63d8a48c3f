"""Clients that submit, and write down what they meant to and what was acknowledged."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from contracts.errors import UnavailableError
from producer import Client
from tests.faults import inputs
from tests.faults.ledger import Journal

PATIENCE = 60.0
"""Seconds for which a client tries again while a server does not answer."""


class Plan(BaseModel):
    """A job that is to be submitted: its inputs follow from the seed and the numbers."""

    model_config = ConfigDict(frozen=True)

    number: int
    seed: int
    model: str
    first: int
    """The number of the first input."""
    count: int
    named: bool = False
    """Whether items carry ids of the caller's own."""
    callback: str | None = None
    progress: tuple[int, ...] = ()
    cancelled: bool = False
    """Whether somebody cancels it while it runs."""
    expires_in: float | None = None
    retried: bool = True
    """Whether a submission that did not return is made again."""
    chunk: int = 10_000
    """Lines of a transaction: small ones let a client die between two."""

    @property
    def key(self) -> str:
        """The idempotency key: a submission that did not return is made again under it."""
        return f"run {self.seed}, job {self.number}"

    def lines(self) -> Iterator[str | tuple[str, str]]:
        """What is handed to the client."""
        for number in range(self.first, self.first + self.count):
            payload = inputs.text(self.seed, number)
            yield (self.custom_id(number), payload) if self.named else payload

    def custom_id(self, number: int) -> str | None:
        """The caller's id of an input."""
        return f"id-{number}" if self.named else None


def main() -> int:
    """Submit the plans in `FAULTS_PLANS`, a file of JSON lines."""
    journal = Journal(Path(os.environ["FAULTS_LEDGERS"]) / "client.jsonl", sync=True)
    plans = [Plan.model_validate_json(line) for line in Path(os.environ["FAULTS_PLANS"]).read_text().splitlines()]
    client = _connect()
    for plan in plans:
        _submit(client, plan, journal)
    client.close()
    return 0


def _connect() -> Client:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return Client()
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _submit(client: Client, plan: Plan, journal: Journal) -> None:
    import producer.incoming

    producer.incoming.CHUNK_LINES = plan.chunk
    journal.write(act="intends", number=plan.number)
    options: dict[str, object] = {}
    if plan.callback is not None:
        options["callback_url"] = plan.callback
    if plan.progress:
        options["progress_at"] = plan.progress
    if plan.expires_in is not None:
        options["expires_in"] = plan.expires_in
    deadline = time.monotonic() + PATIENCE
    while True:
        with suppress(UnavailableError):
            job = client.submit(
                plan.model, plan.lines(), idempotency_key=plan.key, metadata={"number": plan.number}, **options
            )
            journal.write(act="acknowledged", number=plan.number, job=str(job.id))
            return
        if time.monotonic() > deadline:
            journal.write(act="gave up", number=plan.number)
            return
        time.sleep(0.2)
