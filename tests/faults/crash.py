"""Exact points at which a process of the suite dies or freezes: the real functions, wrapped in that process alone.

`FAULTS_CRASH=after_claim:3` ends a worker with SIGKILL right after its third claim was committed; with `FAULTS_FREEZE`
it stops itself there, until someone lets it go on.
"""

import os
import signal
import threading
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Any

from tests.faults.ledger import Journal


class CrashPoint(StrEnum):
    """Where."""

    AFTER_CLAIM = "after_claim"
    """The claim is committed; nothing was read yet."""
    AFTER_INFERENCE = "after_inference"
    """A micro-batch came back from the model; none of it is stored."""
    BEFORE_CLOSE = "before_close"
    """All results of a shard are committed, and it is still leased."""
    AFTER_CLOSE = "after_close"
    """The transaction that closed a shard is committed; no ticket went out."""
    AFTER_PUBLISH = "after_publish"
    """The successor ticket is with the broker."""
    MID_CHUNKS = "mid_chunks"
    """A client has stored a chunk, and not the next."""
    BEFORE_SEAL = "before_seal"
    """A client has stored every chunk."""
    AFTER_SEAL = "after_seal"
    """The job is sealed and committed; its caller does not know."""


WORKER_POINTS = tuple(list(CrashPoint)[:5])
CLIENT_POINTS = tuple(list(CrashPoint)[5:])

_SEAMS: dict[CrashPoint, tuple[str, str, str]] = {
    CrashPoint.AFTER_CLAIM: ("worker.process", "WorkerProcess._work", "before"),
    CrashPoint.AFTER_INFERENCE: ("worker.device", "forward", "after"),
    CrashPoint.BEFORE_CLOSE: ("worker.process", "WorkerProcess._close", "before"),
    CrashPoint.AFTER_CLOSE: ("worker.process", "WorkerProcess._close", "after"),
    CrashPoint.AFTER_PUBLISH: ("storage.broker", "Tickets.publish", "after"),
    CrashPoint.MID_CHUNKS: ("storage.inputs", "append", "before"),
    CrashPoint.BEFORE_SEAL: ("storage.sealing", "seal", "before"),
    CrashPoint.AFTER_SEAL: ("producer.submission", "_seal", "after"),
}


def wrap(module: str, path: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put a changed function in the place of `module`'s `path`; one that is not there is an error of the suite."""
    import importlib

    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)
    setattr(owner, name, wraps(original)(change(original)))


def arm(order: str, journal: Journal, held: Callable[[], list[str]] | None, *, freeze: bool = False) -> None:
    """Die at the n-th passage of a point, having written down which leases are held, or stop there.

    Args:
        order: `point:n`.
        journal: Where.
        held: The shards that the process holds; a passage counts only while it holds one. None for a client.
        freeze: Whether it stops instead; who lets it go on writes down what was held.
    """
    name, _, count = order.partition(":")
    point = CrashPoint(name)
    left = [int(count or 1)]
    lock = threading.Lock()

    def passed() -> None:
        leases = [] if held is None else held()
        if held is not None and not leases:
            return
        with lock:
            left[0] -= 1
            if left[0] != 0:
                return
            if freeze:
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                journal.write(fault=str(point), process=int(os.environ["FAULTS_ORDINAL"]), held=leases)
                os.kill(os.getpid(), signal.SIGKILL)

    def change(original: Callable[..., Any]) -> Callable[..., Any]:
        def before(*arguments: Any, **named: Any) -> Any:
            passed()
            return original(*arguments, **named)

        def after(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            passed()
            return result

        return before if _SEAMS[point][2] == "before" else after

    wrap(*_SEAMS[point][:2], change)
