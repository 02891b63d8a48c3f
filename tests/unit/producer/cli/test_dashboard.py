import io
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from contracts.jobs import JobCounts
from contracts.states import JobState
from producer.cli.dashboard import Frame
from producer.rates import Rates
from storage.overview import Overview, PoolLoad
from tests.infos import BEGIN, info, worker

NOW = BEGIN + timedelta(seconds=100)


def drawn(overview: Overview, width: int, height: int, **how: Any) -> list[str]:
    rates = Rates()
    for seconds in (98, 100):
        at = BEGIN + timedelta(seconds=seconds)
        rates.look([worker(inputs=500 * seconds, tokens=9000 * seconds, seen_at=at)], at)
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    frame = Frame(overview, rates, **how)
    segments = console.render(frame, console.options.update(height=height))  # uncut, other than a terminal's
    return [line.rstrip() for line in "".join(segment.text for segment in segments).splitlines()]


def overview(**changes: Any) -> Overview:
    values: dict[str, Any] = {"at": NOW, "pools": [], "workers": [], "jobs": [], "models": 1}
    return Overview(**(values | changes))


def busy(pools: int = 1, workers: int = 1, jobs: int = 1) -> Overview:
    states = {JobState.RUNNING: 3, JobState.PAUSED: 1}
    counts = JobCounts(items=2000, distinct=2000, computed=500, failed=7)
    return overview(
        pools=[PoolLoad("default", 1234, NOW - timedelta(minutes=5), states)]
        + [PoolLoad(f"pool-{number}", 0, None, {}) for number in range(1, pools)],
        workers=[worker(name=f"host:{17 + number}", seen_at=NOW) for number in range(workers)],
        jobs=[info(id=UUID(int=number), state="running", counts=counts, finished_at=None) for number in range(jobs)],
    )


@pytest.mark.parametrize("width", [80, 120])
def test_what_goes_on_is_seen_at_a_glance(width: int) -> None:
    lines = drawn(busy(), width, 24, keys=True)
    text = "\n".join(lines)

    assert "q ends" in lines[0]
    assert lines[1].startswith("500 inputs/s  9,000 tokens/s")
    for part in ("1,234 shards", "5 min", "2/4", "500 MB/1.0 GB", "small@1", "running", "25 %", "7", "100 s"):
        assert part in text, part
    assert str(UUID(int=0))[-6:] in text
    assert (str(UUID(int=0)) in text) is (width == 120)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_it_fits_however_much_there_is(width: int, height: int) -> None:
    lines = drawn(busy(pools=30, workers=50, jobs=200), width, height)

    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert sum("more" in line for line in lines) == 3
    assert drawn(busy(pools=2, workers=2, jobs=3), 80, 24)[-1].endswith("100 s")  # all of it, where it has room


def test_an_empty_system_says_what_to_do() -> None:
    text = "\n".join(drawn(overview(models=0), 120, 24))
    assert "batchmill models add" in text
    assert "batchmill up --detach" in text
    idle = "\n".join(drawn(overview(workers=[worker(seen_at=NOW)]), 120, 24))
    assert "batchmill submit" in idle
    assert "batchmill up" not in idle


def test_work_that_nobody_does_stands_out() -> None:
    silent = worker(seen_at=NOW - timedelta(seconds=30))
    found = overview(pools=[PoolLoad("gpus", 3, BEGIN, {})], workers=[silent], jobs=[info(state="queued")])
    text = "\n".join(drawn(found, 80, 24, stale=True))

    assert "no worker serves pool gpus: batchmill worker --pool gpus" in text
    assert "silent for 30 s" in text
    assert "Postgres does not answer since then" in text
