"""What callers use: the client, job handles, readers and writers, the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.check import Check
    from producer.client import Client
    from producer.compression.job import CompressionJob
    from producer.job import Job
    from producer.reading.file_source import read
    from producer.results import ItemError, Result
    from producer.verification import verify_webhook

__all__ = ["Check", "Client", "CompressionJob", "ItemError", "Job", "Result", "read", "verify_webhook"]

_HOMES = {
    "Check": "producer.check",
    "Client": "producer.client",
    "CompressionJob": "producer.compression.job",
    "ItemError": "producer.results",
    "Job": "producer.job",
    "Result": "producer.results",
    "read": "producer.reading.file_source",
    "verify_webhook": "producer.verification",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: `batchmill --help` must not wait for Arrow and SQLAlchemy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
