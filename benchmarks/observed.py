"""What metrics and logs cost: the fake engine watched as closely as is usual, and by nobody."""

import socket
import threading
from urllib.request import urlopen

from benchmarks.harness import median, print_table, spread, stack
from benchmarks.overhead import one_round

PAIRS = 4
SCRAPE_SECONDS = 1.0
"""Prometheus asks every 15 seconds as a rule."""


def main() -> None:
    port = _free_port()
    quiet: list[float] = []
    watched: list[float] = []
    with (
        stack(log_level="error") as without,
        stack(log_level="info", log_format="json", metrics_port=port) as with_both,
    ):
        for client in (without, with_both):
            client.models.add("fake", "fake:")
            one_round(client, "warm-up")
        for number in range(PAIRS):
            # Whichever goes first finds a machine in another state.
            for closely in (False, True) if number % 2 else (True, False):
                if closely:
                    with _Scraper(port):
                        watched.append(one_round(with_both, str(number))[0])
                else:
                    quiet.append(one_round(without, str(number))[0])
    cost = 1 - median([after / before for before, after in zip(quiet, watched, strict=True)])
    print_table(
        f"metrics and logs: 200,000 inputs computed by the fake engine, {PAIRS} interleaved pairs",
        ["", "items/s: median (range)", "cost", "asked: at most"],
        [
            ["no log lines, nobody asks for metrics", spread(quiet), "", ""],
            ["JSON lines at info, metrics scraped each second", spread(watched), f"{cost:.1%}", "3 %"],
        ],
    )


class _Scraper:
    """Asks for the metrics again and again, as Prometheus does, and sees that they count."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._seen = b""

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if b"batchmill_inputs_total" not in self._seen:
            raise AssertionError("the worker's metrics were not seen")

    def _loop(self) -> None:
        while not self._stopping.wait(SCRAPE_SECONDS):
            with urlopen(self._url, timeout=10) as answer:
                self._seen = answer.read()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


if __name__ == "__main__":
    main()
