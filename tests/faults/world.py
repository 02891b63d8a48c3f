"""A whole batchmill of the run's own: servers, workers kept at strength, beat, clients; and the driver's hand on each.

Everything happens on the driver's thread, in turns: whoever waits for something lets the world turn meanwhile.
"""

import random
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import psycopg
from cryptography.fernet import Fernet
from psycopg.rows import namedtuple_row

from contracts.errors import DatabaseUnavailable, WrongState
from contracts.names import Quantization, Task
from contracts.settings import load_settings
from producer.registry import Models
from producer.webhooks import Webhooks
from storage import control, rescue
from storage.database import Database as Pool
from tests.faults import inputs, proxy
from tests.faults.crash import CrashPoint
from tests.faults.device import give_budget
from tests.faults.ground import Ground
from tests.faults.ledger import Journal, read_journal
from tests.faults.nursery import Process
from tests.faults.receiver import DEAD, FLAKY
from tests.faults.submitting import Plan

PAUSE = 0.02
WEBHOOK_WAITS = (0.2, 0.4, *[0.6] * 7)
"""The schedule of webhooks, made short: seconds between attempts."""
PLAIN, KILLING = "plain", "killing"
"""The models: one whose worst inputs raise, and one with inputs that kill."""


@dataclass(frozen=True)
class Shape:
    """How large a world is, and how fast its clocks run; seconds."""

    seed: int = 1
    workers: int = 3
    lease: float = 3.0
    tick: float = 1.0
    item_delay: float = 0.004
    budget: int = 512
    """Tokens of a micro-batch."""
    controls: tuple[str, ...] = ()
    """What is taken out of every process, to see the checker fail."""


@dataclass
class Tally:
    """What the world did by itself while it was struck."""

    deaths: list[tuple[int, str, int, float]] = field(default_factory=list)
    """Ordinal, role, exit code and time of every process that ended."""
    releases: int = 0
    """Deaths after which the leases were given back at once, as a supervisor does."""


class World:
    """Use it as a context; it starts with its servers up and no worker.

    Args:
        folder: Where everything stands that the run leaves behind; a short path.
        shape: Of the run.
        ground: What it stands on; nothing of a world before it is left there.
    """

    def __init__(self, folder: Path, shape: Shape, ground: Ground) -> None:
        self.folder = folder
        self.shape = shape
        self._ground = ground
        self.rng = random.Random(shape.seed)
        self.tally = Tally()
        self.ledgers = folder / "ledgers"
        self.strength = 0
        self.arm: Callable[[], CrashPoint | None] | None = None
        """Says at which point, if any, the next worker to be born dies."""
        self.plans: deque[Plan] = deque()
        """What is still to be submitted."""
        self.everyone: list[Process] = []
        self._workers: dict[int, Process] = {}
        self._clients: dict[int, list[Plan]] = {}
        self._services: dict[str, Process] = {}
        self.on_turn: Callable[[], None] | None = None
        """Called in each turn."""
        self.ending = False
        """Whether what ends is to stay so."""
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._seen: set[Any] = set()
        self._observe_at = 0.0
        self._connection: psycopg.Connection[Any] | None = None

    def __enter__(self) -> Self:
        for name in ("ledgers", "logs", "home", "plans"):
            (self.folder / name).mkdir(parents=True)
        self._faults = Journal(self.ledgers / "faults.jsonl")
        self._observed = Journal(self.ledgers / "observed.jsonl")
        self._ground.clear()
        self.nursery, self.database, self.broker = self._ground.nursery, self._ground.database, self._ground.broker
        self.database_wire, database_url = proxy.before_postgres(self.database.url, self.folder / "wire")
        self.broker_wire, broker_url = proxy.before_broker(self.broker.url, self.folder / "wire")
        self._environment = {
            "BATCHMILL_DATABASE_URL": self.database.url,
            "BATCHMILL_BROKER_URL": self.broker.url,
            "BATCHMILL_ARTIFACTS": str(self.folder / "artifacts"),
            "BATCHMILL_HOME": str(self.folder / "home"),
            "BATCHMILL_LEASE_SECONDS": str(self.shape.lease),
            "BATCHMILL_TICK_SECONDS": str(self.shape.tick),
            "BATCHMILL_ABANDON_SECONDS": "8",
            "BATCHMILL_SECRET_KEY": Fernet.generate_key().decode(),
            "BATCHMILL_WEBHOOK_RETRY_SECONDS": ",".join(map(str, WEBHOOK_WAITS)),
            "BATCHMILL_WEBHOOK_TIMEOUT_SECONDS": "1.5",
            "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
            "FAULTS_LEDGERS": str(self.ledgers),
            "FAULTS_SECRETS": str(self.folder / "secrets"),
            "FAULTS_PORT": str(_free_port()),
            "FAULTS_CONTROL": ",".join(self.shape.controls),
        }
        self._wired = {"BATCHMILL_DATABASE_URL": database_url, "BATCHMILL_BROKER_URL": broker_url}
        self._pool = Pool(self.database.url)
        self._register()
        return self

    def __exit__(self, *_: object) -> None:
        self.nursery.clear()
        self._pool.close()
        if self._connection is not None:
            self._connection.close()
        self.database_wire.stop()
        self.broker_wire.stop()

    # What the world consists of

    def start(self, strength: int | None = None) -> None:
        """Start beat and so many workers, and keep them running."""
        self.strength = self.shape.workers if strength is None else strength
        for role in ("beat", "webhooks"):
            self._serve(role)
        self.turn()

    def spawn(
        self,
        *,
        crash: CrashPoint | None = None,
        freeze: CrashPoint | None = None,
        passage: int | None = None,
        clock: float = 0.0,
        wired: bool = False,
    ) -> Process:
        """One more worker: that dies or stops at some passage, with a clock that is off, or behind the wire."""
        environment = dict(self._environment)
        for variable, point in (("FAULTS_CRASH", crash), ("FAULTS_FREEZE", freeze)):
            if point is not None:
                environment[variable] = f"{point}:{passage or self.rng.randint(1, 4)}"
        if clock:
            environment["FAULTS_CLOCK"] = str(clock)
        if wired:
            environment |= self._wired
        worker = self._fork("worker", environment)
        worker.wired = wired
        self._workers[worker.ordinal] = worker
        return worker

    def submit(self, plans: Sequence[Plan], crash: CrashPoint | None = None) -> Process:
        """A client process that submits jobs, one after the other."""
        environment = dict(self._environment)
        if crash is not None:
            environment["FAULTS_CRASH"] = f"{crash}:{2 if crash is CrashPoint.MID_CHUNKS else 1}"
        path = self.folder / "plans" / f"{len(self.everyone)}.jsonl"
        path.write_text("".join(plan.model_dump_json() + "\n" for plan in plans))
        client = self._fork("client", environment | {"FAULTS_PLANS": str(path)})
        self._clients[client.ordinal] = list(plans)
        return client

    @property
    def workers(self) -> list[Process]:
        """Those that run, or stand still."""
        return list(self._workers.values())

    @property
    def submitting(self) -> int:
        """How many clients are at work."""
        return len(self._clients)

    def service(self, role: str) -> Process:
        """Beat, the deliverer, or the receiver."""
        return self._services[role]

    def _serve(self, role: str) -> None:
        self._services[role] = self._fork(role, self._environment)

    def _fork(self, role: str, environment: dict[str, str]) -> Process:
        process = self.nursery.fork(role, environment, self.folder / "logs")
        self.everyone.append(process)
        return process

    def _register(self) -> None:
        """The models, with a budget that is given: to measure one takes longer than a short run has."""
        for name, kills in ((PLAIN, False), (KILLING, True)):
            source = inputs.source(self.shape.item_delay, kills=kills)
            models = Models(self._pool, self._environment["BATCHMILL_ARTIFACTS"])
            model = models.add(name, source, task=str(Task.EMBED), quantization=str(Quantization.NONE))
            give_budget(self._pool, model.id, self.shape.budget, 20.0 / self.shape.item_delay)
        settings = load_settings(
            database_url=self.database.url,
            broker_url=self.broker.url,
            secret_key=self._environment["BATCHMILL_SECRET_KEY"],
            webhook_allow_networks=self._environment["BATCHMILL_WEBHOOK_ALLOW_NETWORKS"],
        )
        secrets = [(path, Webhooks(self._pool, settings).add(self.callback(path)).secret) for path in (*FLAKY, DEAD)]
        Path(self._environment["FAULTS_SECRETS"]).write_text("".join(f"{path} {key}\n" for path, key in secrets))
        self._serve("receiver")

    def callback(self, path: str) -> str:
        """The address of one of the receiver's endpoints."""
        return f"http://127.0.0.1:{self._environment['FAULTS_PORT']}{path}"

    # How it turns

    def turn(self) -> None:
        """Bury the dead, bring workers back to strength, do what is due, and note which jobs have ended."""
        for process in self.nursery.deaths():
            self._bury(process)
        while len(self._workers) < self.strength:
            # One of them lives behind the wire.
            wired = not any(worker.wired for worker in self._workers.values())
            crash = self.arm() if self.arm else None
            self.spawn(crash=crash, passage=crash and self.rng.randint(2, 12), wired=wired)
        if self.on_turn is not None:
            self.on_turn()
        now = time.monotonic()
        for when, action in [entry for entry in self._due if entry[0] <= now]:
            self._due.remove((when, action))
            action()
        if now >= self._observe_at:
            self._observe_at = now + 0.5
            self.observe()

    def wait(self, condition: Callable[[], object], seconds: float) -> bool:
        """Turn until the condition holds; False when it did not in that time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.turn()
            time.sleep(PAUSE)
        return True

    def rest(self, seconds: float) -> None:
        """Turn for a while."""
        self.wait(lambda: False, seconds)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in so many seconds."""
        self._due.append((time.monotonic() + seconds, action))

    def cancel(self, job: str) -> bool:
        """Cancel a job, as a client would; False when it is not to be done now."""
        try:
            with self._pool.transaction() as connection:
                control.cancel(connection, UUID(job))
        except WrongState:
            return True
        except DatabaseUnavailable:
            return False
        return True

    @property
    def striking(self) -> bool:
        """Whether a fault is still at work."""
        return bool(self._due)

    def _bury(self, process: Process) -> None:
        assert process.code is not None
        self.tally.deaths.append((process.ordinal, process.role, process.code, time.monotonic()))
        if self._services.get(process.role) is process and not self.ending:
            self._serve(process.role)
        if self._workers.pop(process.ordinal, None) and process.code == -signal.SIGKILL and self.rng.random() < 0.5:
            self.tally.releases += 1
            with suppress(DatabaseUnavailable):  # then the leases expire
                rescue.rescue(self._pool, f"{socket.gethostname()}:{process.pid}")
        plans = self._clients.pop(process.ordinal, [])
        if process.code:
            done = self.acknowledged()
            self.plans.extendleft(plan for plan in plans if plan.retried and plan.number not in done)

    # What it looks like

    def query(self, statement: str, *values: Any) -> list[Any]:
        """Rows of a statement, committed at once; a Postgres that is away is waited for."""
        deadline = time.monotonic() + 30
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self.database.url, autocommit=True, row_factory=namedtuple_row)
                cursor = self._connection.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                self._connection = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)

    def leased(self) -> list[Any]:
        """What is held at this moment: shard, token and worker."""
        return self.query("SELECT id, token, worker FROM shards WHERE state = 'leased'")

    def held_by(self, worker: Process) -> list[str]:
        """The shards that are leased to a worker."""
        name = f"{socket.gethostname()}:{worker.pid}"
        return [str(row.id) for row in self.leased() if row.worker == name]

    def open_among(self, held: Sequence[str]) -> list[Any]:
        """Those of the shards that are not dealt with."""
        return self.query("SELECT id FROM shards WHERE id::text = ANY(%s) AND state IN ('queued', 'leased')", held)

    def waiting(self) -> int:
        """Inputs of jobs that go on, with neither a result nor an error."""
        rows = self.query(
            "SELECT coalesce(sum(distinct_inputs - cached - computed - failed), 0)::bigint AS n FROM jobs "
            "WHERE state IN ('queued', 'running', 'paused')"
        )
        return int(rows[0].n)

    def unfinished(self) -> int:
        """Jobs that are not terminal."""
        rows = self.query("SELECT count(*) AS n FROM jobs WHERE state IN ('receiving', 'queued', 'running', 'paused')")
        return int(rows[0].n)

    def undelivered(self) -> int:
        """Webhook events on their way."""
        rows = self.query("SELECT count(*) AS n FROM deliveries WHERE state = 'pending'")
        return int(rows[0].n)

    def acknowledged(self) -> dict[int, str]:
        """The job of each plan whose submission returned."""
        records = read_journal(self.ledgers / "client.jsonl")
        return {record["number"]: record["job"] for record in records if record["act"] == "acknowledged"}

    def record(self, **fields: Any) -> None:
        """A line of the fault ledger."""
        self._faults.write(**fields)

    def observe(self) -> None:
        """Note what jobs look like when they are first seen to have ended: nothing of it may change afterwards."""
        rows = self.query(
            "SELECT id, state, finished_at, items, distinct_inputs, cached, computed, failed FROM jobs "
            "WHERE finished_at > now() - interval '1 minute'"
        )
        for row in rows:
            if row.id not in self._seen:
                self._seen.add(row.id)
                self._observed.write(**row._asdict())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
