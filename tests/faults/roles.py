"""What the nursery's children become: the real programs, with ledgers attached and, where one is asked for, a fault.

Production code knows nothing of this: its functions are wrapped in these processes alone.
"""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import time_machine

import worker.__main__
import worker.beat
import worker.engines.fake
import worker.webhooks.__main__
from tests.faults import controls, crash, device, nursery, receiver, submitting
from tests.faults.ledger import Act, EngineLedger, Journal

# What a child would import when it starts, imported before the fork, so that none pays for it.
for _name in (
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "fsspec.implementations.local",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "producer.job",
    "producer.submission",
):
    import_module(_name)


def _prepare() -> Journal:
    """What every role does first."""
    for control in filter(None, os.environ.get("FAULTS_CONTROL", "").split(",")):
        controls.CONTROLS[control]()
    if clock := float(os.environ.get("FAULTS_CLOCK", "0")):
        # At the level of C: what was imported by name before, and datetime, see it too; the monotonic clock does not.
        time_machine.travel(datetime.now(UTC) + timedelta(seconds=clock), tick=True).start()
    return Journal(Path(os.environ["FAULTS_LEDGERS"]) / "faults.jsonl")


def work() -> int:
    """A worker, as `python -m worker` runs it, on a device that is not looked for."""
    journal = _prepare()
    device.take_it()
    leases: dict[int, str] = {}
    _note_leaving(leases)
    for variable, freeze in (("FAULTS_CRASH", False), ("FAULTS_FREEZE", True)):
        if order := os.environ.get(variable):
            crash.arm(order, journal, lambda: list(leases.values()), freeze=freeze)
    _keep_ledger(EngineLedger(Path(os.environ["FAULTS_LEDGERS"]), int(os.environ["FAULTS_ORDINAL"])), leases)
    return worker.__main__.main()


def _note_leaving(leases: dict[int, str]) -> None:
    """Write down when the process begins to give its leases back, asked or by itself."""
    journal = Journal(Path(os.environ["FAULTS_LEDGERS"]) / "leaving.jsonl")

    def leaving(drain: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(process: Any) -> Any:
            journal.write(process=int(os.environ["FAULTS_ORDINAL"]), held=list(leases.values()))
            return drain(process)

        return wrapped

    crash.wrap("worker.process", "WorkerProcess.drain", leaving)


def _keep_ledger(ledger: EngineLedger, leases: dict[int, str]) -> None:
    """Write down what is looked up, computed and stored, and keep track of the shards that are held."""

    def looked(prepare: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            at = time.monotonic()
            shard = prepare(*arguments, **named)
            ledger.write(Act.LOOKED, (row[:8] for row in shard.rows), at)
            return shard

        return wrapped

    def begun(forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(engine: Any, rows: Any, *arguments: Any, **named: Any) -> Any:
            ledger.write(Act.BEGUN, (row[:8] for row in rows))
            return forward(engine, rows, *arguments, **named)

        return wrapped

    def settled(settle: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(device: Any, computed: Any) -> Any:
            for part in computed:
                good = [row for row in part.rows.tolist() if int(part.shard.input_ids[row]) not in part.errors]
                ledger.write(Act.SETTLED, (part.shard.rows[row][:8] for row in good))
            return settle(device, computed)

        return wrapped

    def holding(work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(process: Any, lease: Any, *arguments: Any) -> Any:
            leases[id(lease)] = str(lease.shard_id)
            try:
                return work(process, lease, *arguments)
            finally:
                del leases[id(lease)]

        return wrapped

    crash.wrap("worker.preparing", "hold", looked)
    crash.wrap("worker.device", "forward", begun)
    crash.wrap("worker.device", "Device.settle", settled)
    crash.wrap("worker.process", "WorkerProcess._work", holding)


def beat() -> int:
    """Beat, as `python -m worker.beat` runs it."""
    _prepare()
    return worker.beat.main()


def client() -> int:
    """A client that submits the jobs it was told to, one after the other."""
    journal = _prepare()
    if order := os.environ.get("FAULTS_CRASH"):
        crash.arm(order, journal, None)
    return submitting.main()


def webhooks() -> int:
    """The deliverer, as `python -m worker.webhooks` runs it."""
    _prepare()
    return worker.webhooks.__main__.main()


ROLES: dict[str, Callable[[], int | None]] = {
    "worker": work,
    "beat": beat,
    "client": client,
    "webhooks": webhooks,
    "receiver": receiver.main,
}

if __name__ == "__main__":
    nursery.serve(ROLES)
