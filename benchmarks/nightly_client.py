"""One run from a source to a sink in a process of its own; prints its seconds, what it computed and its peak memory."""

import json
import resource
import sys
import time

from producer import Client


def main() -> None:
    database_url, broker_url, home, source, sink = sys.argv[1:]
    with Client(database_url=database_url, broker_url=broker_url, home=home) as client:
        begin = time.perf_counter()
        run = client.run(source, "fake", sink)
        seconds = time.perf_counter() - begin
    assert run.changes is not None
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux gives kilobytes
    print(json.dumps({"seconds": seconds, "computed": run.changes.computed, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
