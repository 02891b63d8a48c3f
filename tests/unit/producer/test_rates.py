from datetime import timedelta

from producer.rates import HISTORY, SILENT_SECONDS, Rate, Rates, sparkline
from tests.infos import BEGIN, worker


def later(seconds: float) -> object:
    return BEGIN + timedelta(seconds=seconds)


def test_a_rate_is_the_difference_between_two_reports() -> None:
    rates = Rates()
    rates.look([worker(inputs=100, tokens=1000)], BEGIN)
    assert (rates.of("host:17"), rates.known) == (None, False)
    assert rates.history == ()

    rates.look([worker(inputs=300, tokens=5000, seen_at=later(2))], later(2))
    assert rates.of("host:17") == Rate(100, 2000)
    rates.look([worker(inputs=300, tokens=5000, seen_at=later(2))], later(3))  # no news: as before
    assert rates.total == Rate(100, 2000)
    rates.look([worker(inputs=300, tokens=5000, seen_at=later(4))], later(4))
    assert rates.total == Rate(0, 0)
    assert list(rates.history) == [100, 100, 0]


def test_the_rates_of_workers_add_up_and_one_that_leaves_is_forgotten() -> None:
    rates = Rates()
    rates.look([worker(), worker(name="b:1")], BEGIN)
    rates.look([worker(inputs=10, seen_at=later(1)), worker(name="b:1", inputs=20, seen_at=later(2))], later(2))
    assert rates.total.inputs == 20
    rates.look([worker(inputs=10, seen_at=later(1))], later(3))
    assert rates.total.inputs == 10


def test_a_worker_that_began_anew_or_is_silent_has_no_rate() -> None:
    rates = Rates()
    for seconds, inputs in ((0, 900), (2, 1000)):
        rates.look([worker(inputs=inputs, seen_at=later(seconds))], later(seconds))
    rates.look([worker(inputs=40, started_at=later(3), seen_at=later(4))], later(4))
    assert rates.of("host:17") is None
    rates.look([worker(inputs=60, started_at=later(3), seen_at=later(6))], later(6))
    assert rates.of("host:17") == Rate(10, 0)
    rates.look([worker(inputs=60, started_at=later(3), seen_at=later(6))], later(6 + SILENT_SECONDS + 1))
    assert rates.of("host:17") is None


def test_history_is_bounded_and_drawn_with_the_last_on_the_right() -> None:
    rates = Rates()
    for second in range(HISTORY + 9):
        rates.look([worker(inputs=second, seen_at=later(second))], later(second))
    assert len(rates.history) == HISTORY

    assert sparkline([0, 1, 4, 8], 10) == " ▁▄█"
    assert sparkline([8, 0.001, 8], 2) == "▁█"
    assert (sparkline([], 5), sparkline([1, 2], 0), sparkline([0, 0], 5)) == ("", "", "  ")
