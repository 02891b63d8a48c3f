"""What metrics and logs cost: the fake engine with both at their most usual, and with neither."""

from benchmarks.harness import median, print_table, spread, stack
from benchmarks.overhead import one_round

PAIRS = 7
QUIET = {"log_level": "error"}
OBSERVED = {"log_level": "info", "log_format": "json", "metrics_port": 0}


def main() -> None:
    quiet: list[float] = []
    observed: list[float] = []
    with stack(**QUIET) as without, stack(**OBSERVED) as with_both:
        for client in (without, with_both):
            client.models.add("fake", "fake:")
            one_round(client, "warm-up")
        for number in range(PAIRS):
            # Whichever goes first finds a machine in another state.
            order = [(without, quiet), (with_both, observed)]
            for client, rates in order if number % 2 else reversed(order):
                rates.append(one_round(client, str(number))[0])
    cost = 1 - median([after / before for before, after in zip(quiet, observed, strict=True)])
    print_table(
        f"metrics and logs: 200,000 inputs computed by the fake engine, {PAIRS} interleaved pairs",
        ["", "items/s: median (range)", "cost", "asked: at most"],
        [
            ["neither", spread(quiet), "", ""],
            ["metrics served, JSON logs at info", spread(observed), f"{cost:.1%}", "3 %"],
        ],
    )


if __name__ == "__main__":
    main()
