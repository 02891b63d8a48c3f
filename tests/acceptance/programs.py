"""`python -m tests.acceptance.programs`: a nursery whose children are the programs of batchmill, as they are run.

A child has everything imported when it is born; a worker computes on a device that is not looked for.
"""

from importlib import import_module

import worker.__main__
import worker.beat
import worker.webhooks.__main__
from tests.faults import device, nursery

for _name in (
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "fsspec.implementations.local",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "worker.engines.fake",
):
    import_module(_name)


def work() -> int:
    """A worker."""
    device.take_it()
    return worker.__main__.main()


PROGRAMS = {"worker": work, "worker.beat": worker.beat.main, "worker.webhooks": worker.webhooks.__main__.main}

if __name__ == "__main__":
    nursery.serve(PROGRAMS)
