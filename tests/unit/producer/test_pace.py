import pytest

from contracts.compression import StepProgress
from contracts.jobs import JobCounts, JobInfo
from contracts.states import JobState
from producer.pace import WINDOW_SECONDS, Pace, standing, trouble
from tests.infos import info


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(*looks: tuple[float, int]) -> float | None:
    """The rate after looks, each so many seconds after the one before."""
    clock = Clock()
    pace = Pace(clock)
    for seconds, done in looks:
        clock.now += seconds
        pace.look(done)
    return pace.rate


def test_a_rate_needs_a_moment_and_is_that_of_late() -> None:
    assert paced() is None
    assert paced((0, 0), (1, 50)) is None
    assert paced((0, 0), (1, 50), (1, 100)) == 50
    slow_then_fast = [(0, 0), *((10, 10 * i) for i in range(1, 5)), *((10, 40 + 1000 * i) for i in range(1, 5))]
    assert paced(*slow_then_fast) == pytest.approx(3000 / WINDOW_SECONDS)


def test_what_was_done_before_and_the_wait_for_the_first_input_count_for_nothing() -> None:
    assert paced((0, 5000), *[(10, 5000)] * 10, (4, 5400)) == 100


def test_a_job_that_stands_still_slows_down() -> None:
    assert paced((0, 0), (2, 200), (8, 200)) == 20
    assert paced((0, 0), (2, 200), *[(10, 200)] * 5) == 0


def test_a_job_in_words() -> None:
    running = info(
        state=JobState.RUNNING, finished_at=None, counts=JobCounts(items=9, distinct=1000, cached=300, failed=9)
    )
    found = standing(running, 10.0)

    assert (found.percent, found.done, found.parts) == ("30 %", "309/1,000", "300 cached, 9 failed")
    assert (found.rate, found.clock) == ("10.0/s", "0:01:09 left")
    assert (standing(running, None).rate, standing(running, 0.0).clock) == ("", "")


def test_a_job_that_ended_has_the_time_and_the_rate_of_all_of_it() -> None:
    found = standing(info(), 7.0)

    assert (found.percent, found.rate, found.clock) == ("100 %", "250/s", "took 4.00 s")
    nearly = info(state="cancelled", counts=JobCounts(items=1000, distinct=1000, computed=999))
    assert standing(nearly, None).percent == "99 %"


def test_a_paused_job_says_why_or_how_it_goes_on() -> None:
    assert trouble(info()) == ""
    assert "batchmill jobs resume" in trouble(info(state="paused", finished_at=None))
    assert trouble(info(state="paused", error_code="engine_error", error_message="no CUDA")).endswith("paused: no CUDA")


AT_WORK = StepProgress(position=2, title="distill", fraction=0.5, seconds_left=95.4, message="epoch 2/3")


def recipe(**changes: object) -> JobInfo:
    """A compression of three steps and the end."""
    counts = JobCounts(items=4, distinct=4)
    values = {"params": {"operation": "compress"}, "state": "running", "finished_at": None, "counts": counts}
    return info(**(values | changes))


def test_a_compression_stands_where_its_step_does() -> None:
    found = standing(recipe(progress=AT_WORK), None)
    assert (found.percent, found.done, found.parts) == ("37 %", "step 2/3", "distill 50% epoch 2/3")
    assert (found.rate, found.clock) == ("", "0:01:35 left of it")
    unknown = AT_WORK.model_copy(update={"seconds_left": None, "message": ""})
    found = standing(recipe(progress=unknown), None)
    assert (found.parts, found.clock) == ("distill 50%", "")
    last = StepProgress(position=4, title="evaluation", fraction=0.2)
    found = standing(recipe(progress=last), None)
    assert (found.percent, found.done, found.parts) == ("80 %", "after the last step", "evaluation 20%")


def test_a_compression_that_waits_or_ended() -> None:
    waits = standing(recipe(state="queued", counts=JobCounts(items=4, distinct=4, cached=1)), None)
    assert (waits.percent, waits.done, waits.parts, waits.clock) == ("25 %", "1/3 steps", "", "")
    ended = recipe(state="succeeded", counts=JobCounts(items=4, distinct=4, computed=4), finished_at=info().finished_at)
    found = standing(ended, None)
    assert (found.percent, found.done, found.clock) == ("100 %", "3/3 steps", "took 4.00 s")
