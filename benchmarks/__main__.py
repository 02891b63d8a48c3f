"""`make bench`: every measurement, one after the other; name some to run those alone."""

import sys

from benchmarks import (
    compression,
    generation,
    latency,
    nightly,
    observed,
    overhead,
    peers,
    quantizations,
    throughput,
    turns,
)

ALL = {
    module.__name__.rpartition(".")[2]: module.main
    for module in (
        overhead,
        throughput,
        latency,
        generation,
        quantizations,
        turns,
        observed,
        compression,
        nightly,
        peers,
    )
} | {"growth": nightly.growth, "workers": nightly.workers}

if __name__ == "__main__":
    for name in sys.argv[1:] or ALL:
        ALL[name]()
