"""`make bench`: every measurement, one after the other; name some to run those alone."""

import sys

from benchmarks import latency, overhead, throughput

ALL = {"overhead": overhead.main, "throughput": throughput.main, "latency": latency.main}

if __name__ == "__main__":
    for name in sys.argv[1:] or ALL:
        ALL[name]()
