"""The page: complete by itself, true to the run, and safe whatever names hold."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import matplotlib as mpl
import numpy as np
import pytest

from contracts.jobs import JobInfo
from contracts.names import Task
from contracts.runs import Changes, Drift, RunInfo, RunProgress, RunSpec, Thresholds
from contracts.sinks import parse_sink
from contracts.sources import parse_source
from contracts.states import RunState
from producer.drift import measuring, wording
from producer.drift.report import render
from producer.drift.samples import Samples
from storage.comparing import Distances, Numbers
from tests.infos import info
from tests.pages import Page

NIGHT = datetime(2026, 11, 22, 1, 30, tzinfo=UTC)
NASTY = """<script>alert("1")</script> & 'x' $\\frac{1}{2}$ {{ 7 * 7 }}"""
RANDOM = np.random.default_rng(1)


def a_spec(**values: Any) -> RunSpec:
    base = {"source": "reviews.parquet", "sink": "scored/{date}.parquet"} | values
    made = {"source": parse_source(base["source"]), "sink": parse_sink(base["sink"])}
    return RunSpec.model_validate({"model": "topics", **base, **made})


def a_run(
    night: int = 0,
    changes: Changes | None = None,
    drift: Drift | None = None,
    *,
    seconds: float = 42.0,
    **values: Any,
) -> RunInfo:
    """The run of a night, counted from the last one backwards."""
    due = NIGHT - timedelta(days=night)
    base = RunInfo(
        id=UUID(int=1000 + night),
        schedule="nightly-reviews",
        due_at=due,
        state=RunState.SUCCEEDED,
        spec=a_spec(),
        job_id=UUID(int=2000 + night),
        progress=RunProgress(),
        changes=changes,
        drift=drift,
        report=None,
        error_code=None,
        error_message=None,
        created_at=due,
        started_at=due + timedelta(seconds=1),
        finished_at=due + timedelta(seconds=1 + seconds),
    )
    return base.model_copy(update=values)


def a_job(task: Task = Task.CLASSIFY, model: str = "topics@2") -> JobInfo:
    return info(task=task, model=model)


def some_changes(**values: int) -> Changes:
    base = {"rows": 10_000, "new": 12, "changed": 3, "removed": 1, "cached": 9_985, "computed": 15, "failed": 0}
    return Changes.model_validate(base | {"since": UUID(int=1001)} | values)


def numbers(values: Any, labels: list[str | None] | None = None) -> Numbers:
    return Numbers(np.asarray(values, np.float64), labels or [None] * len(values), labels is None)


def of_labels(shift: float = 0.0) -> Samples:
    names = np.array(["billing", "delivery", "praise", "returns", NASTY])
    before = [str(name) for name in RANDOM.choice(names, 2_000, p=[0.3, 0.3, 0.2, 0.15, 0.05])]
    now = [str(name) for name in RANDOM.choice(names, 2_000, p=[0.3 - shift, 0.3, 0.2, 0.15, 0.05 + shift])]
    return Samples(numbers(RANDOM.beta(9, 2 + shift, 2_000), now), numbers(RANDOM.beta(9, 2, 2_000), before), True)


def of_embeddings(changed: int = 800, unchanged: int = 1_200) -> Samples:
    return Samples(distances=Distances(RANDOM.beta(2, 9, changed), unchanged))


def page_of(samples: Samples, task: Task = Task.CLASSIFY, *, nights: int = 10, **changes: int) -> str:
    """The page of a run with others before it."""
    thresholds = Thresholds(ks=0.2)
    run = a_run(0, some_changes(**changes), measuring.measure(samples, thresholds), spec=a_spec(thresholds=thresholds))
    before = []
    for night in range(1, nights + 1):
        small = (
            Drift(psi=0.004 + night / 1e4, ks=0.02, rows=2_000) if task is Task.CLASSIFY else Drift(cosine=0.01, rows=9)
        )
        before.append(a_run(night, some_changes(computed=40 + night), small, seconds=30 + night))
    return render(run, a_job(task), a_job(task, "topics@1"), [run, *before], samples)


@pytest.fixture(scope="module")
def whole() -> str:
    return page_of(of_labels(0.25))


def test_a_whole_report(whole: str) -> None:
    page = Page(whole)
    assert page.sections == ["outputs", "runs", "facts"]
    assert page.plots == [
        "Share of each label before and now",
        "Distribution of the score of the best label before and now",
        "Drift of each run against the one before it",
        "Inputs computed and seconds taken by each run",
    ]
    for said in (
        "nightly-reviews classify by topics@2, due 2026-11-22 01:30 UTC, finished 2026-11-22 01:30 UTC",
        "Drift 3 of 10,000 rows changed, 12 new, 1 removed; results moved too far: PSI ",
        "(at most 0.2).",
        "Before it was topics@1 that scored them.",
        "rows 10,000 12 new, 3 changed, 1 removed",
        "inputs computed 15 9,985 were there already",
        "took 42 s 238 rows a second",
        "billing",
        "2,000 rows were looked at",
        "2026-11-21 01:30 UTC 10,000 12 3 1 9,985 41 0 31.0 0.004 0.020",
        "source reviews.parquet sink scored/{date}.parquet",
    ):
        assert said in page.text, said
    assert page.text.count("2026-11-12 01:30 UTC") == 1


def test_it_needs_nothing_else(whole: str) -> None:
    assert re.findall(r"https?:", re.sub(r'xmlns(:xlink)?="[^"]*"', "", whole)) == []
    page = Page(whole)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert "@import" not in whole
    for value in re.findall(r"url\(([^)]*)\)", whole):
        assert value.startswith("#")
    names = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    used = re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', whole)
    assert {one or other for one, other in used} <= set(names)
    assert len(whole) < 150_000


def test_plots_take_the_colours_of_the_page(whole: str) -> None:
    colours = set(re.findall(r"(?:fill|stroke): ?(#\w+|var\(--\w+\))", whole.partition("</style>")[2]))
    assert {"var(--first)", "var(--second)", "var(--bad)"} <= colours
    assert all(colour.startswith("var(--") for colour in colours), colours
    assert "prefers-color-scheme: dark" in whole


def test_whatever_a_user_names_is_text(whole: str) -> None:
    run = a_run(0, some_changes(), schedule=NASTY, spec=a_spec(source={"url": NASTY}))
    page = Page(render(run, a_job(), None, [run], of_labels()))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert") >= 4
    assert "<script>al" in Page(whole).text  # a label
    assert "49" not in page.texts


def test_no_password_is_told() -> None:
    source = {"url": "postgresql://reader:hunter2@warehouse/shop", "query": "SELECT 1"}
    sink = {"url": "postgresql://writer:hunter3@warehouse/shop", "table": "scores"}
    run = a_run(0, some_changes(), spec=a_spec(source=source, sink=sink))
    text = render(run, a_job(), None, [run], Samples())
    assert "hunter" not in text
    assert "query SELECT 1 sink postgresql://writer:***@warehouse/shop table scores" in Page(text).text


def test_equal_runs_are_equal_bytes_and_matplotlib_stays_as_it_was() -> None:
    before, samples = dict(mpl.rcParams), of_labels()
    first = page_of(samples)
    mpl.rcParams["font.size"] = 20
    try:
        assert page_of(samples) == first
    finally:
        mpl.rcParams.update(before)


def test_a_first_run() -> None:
    samples = of_labels()
    run = a_run(0, some_changes(new=10_000, changed=0, removed=0).model_copy(update={"since": None}))
    page = Page(render(run, a_job(), None, [run], Samples(samples.now, None, True)))
    assert "First run 10,000 rows were scored, with none before to compare them with." in page.text
    assert page.plots == [
        "Share of each label before and now",
        "Distribution of the score of the best label before and now",
    ]
    assert "before now" not in page.text
    assert "None" not in page.text


def test_embeddings() -> None:
    page = Page(page_of(of_embeddings(), Task.EMBED))
    assert "results moved too far: cosine distance 0.0" in page.text
    assert "1,200 more have the same input and the same model, and so" in page.text
    assert page.plots[0] == "Cosine distances of the embeddings that changed"
    page = Page(page_of(of_embeddings(0), Task.EMBED))
    assert "Steady 3 of 10,000 rows changed, 12 new, 1 removed; results have not moved." in page.text
    assert "cosine distance 0 at most 0.05 is asked" in page.text
    assert len(page.plots) == 2


def test_text_that_was_generated_has_no_drift() -> None:
    run = a_run(0, some_changes(failed=2, bad=1))
    page = Page(render(run, a_job(Task.GENERATE), None, [run, a_run(1, some_changes())], Samples()))
    assert "Scored 3 of 10,000 rows changed, 12 new, 1 removed. 2 rows failed." in page.text
    assert "rows failed 2 1 more were left out" in page.text
    assert page.plots == ["Inputs computed and seconds taken by each run"]
    assert page.sections == ["runs", "facts"]


def test_runs_that_came_to_nothing_are_in_the_table() -> None:
    failed = a_run(1, state=RunState.FAILED)
    skipped = a_run(2, state=RunState.SKIPPED, started_at=None, finished_at=None)
    run = a_run(0, some_changes())
    text = Page(render(run, a_job(), None, [run, failed, skipped], Samples())).text
    assert "2026-11-21 01:30 UTC failed – – – – – – – 42.0" in text
    assert "2026-11-20 01:30 UTC skipped – – – – – – – –" in text


@pytest.mark.parametrize(
    "values", [[0.5], [0.5] * 100, [-1e300, 1e300], [0.0] * 99 + [1e9], list(range(1000))], ids=lambda v: f"{len(v)}"
)
def test_numbers_of_any_kind_are_drawn(values: list[float]) -> None:
    samples = Samples(numbers(values), numbers(values[::-1]))
    page = Page(page_of(samples))
    assert page.plots[0] == "Distribution of the output before and now"
    assert "results have not moved" in page.text


def test_many_labels_and_long_ones() -> None:
    names: list[str | None] = [f"label number {i} with a name that takes much room" for i in range(60)]
    page = Page(page_of(Samples(numbers([0.5] * 60, names), numbers([0.5] * 60, names), True)))
    assert "48 others" in page.text
    assert "label number 0 with a name th…" in page.text


def test_what_chance_gives_is_said_and_not_announced() -> None:
    now, before = RANDOM.normal(size=(2, 20))
    samples = Samples(numbers(now), numbers(before))
    found = measuring.measure(samples, Thresholds(psi=0.01))
    assert found is not None
    assert found.psi is not None
    assert found.psi > 0.01
    assert found.over == ()
    run = a_run(0, some_changes(), found, spec=a_spec(thresholds=Thresholds(psi=0.01)))
    text = Page(render(run, a_job(), None, [run], samples)).text
    assert "PSI: beyond the threshold, but chance alone takes so few rows as far." in text


@pytest.mark.parametrize(("seconds", "told"), [(0.25, "0.25 s"), (42.0, "42 s"), (600, "10 min"), (9000, "2 h 30 min")])
def test_durations(seconds: float, told: str) -> None:
    assert wording.duration(seconds) == told
