"""A Celery worker whose task does nothing: prints a line when it is ready, and one when it has done so many."""

import itertools
import sys

from celery import Celery
from celery.signals import worker_ready
from kombu import Queue


def main() -> None:
    broker, tasks = sys.argv[1], int(sys.argv[2])
    app = Celery("noop", broker=broker)
    app.conf.update(
        task_ignore_result=True, worker_redirect_stdouts=False, task_queues=[Queue("noop", routing_key="noop")]
    )
    done = itertools.count(1)

    @app.task(name="noop")  # type: ignore[untyped-decorator]
    def noop(_: str) -> None:
        if next(done) == tasks:
            print("done", flush=True)

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def ready(**_: object) -> None:
        print("ready", flush=True)

    options = ["--pool=threads", "--concurrency=4", "--without-mingle", "--without-gossip", "--loglevel=ERROR"]
    app.worker_main(["--quiet", "worker", *options])


if __name__ == "__main__":
    main()
