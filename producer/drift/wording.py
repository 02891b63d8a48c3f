"""What a run's report says in words and figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from contracts.runs import Changes, Drift, RunInfo, Thresholds

NAMES = {"psi": "PSI", "ks": "KS", "cosine": "cosine distance"}
SMALL = 0.0005


@dataclass(frozen=True)
class Verdict:
    """The report in one word and one sentence."""

    kind: str
    """`good`, `bad` or empty: the colour."""
    word: str
    sentence: str


def verdict(changes: Changes, drift: Drift | None, thresholds: Thresholds) -> Verdict:
    """What to know where nothing else is read."""
    failed = f" {_rows(changes.failed, 'failed')}." if changes.failed else ""
    if changes.since is None:
        return Verdict(
            "", "First run", f"{changes.rows:,} rows were scored, with none before to compare them with.{failed}"
        )
    if drift is None:
        return Verdict("", "Scored", f"{_changed(changes)}.{failed}")
    found = figures(drift)
    if drift.over:
        too_far = [
            f"{NAMES[name]} {figure(found[name])} (at most {getattr(thresholds, name):g})" for name in drift.over
        ]
        return Verdict("bad", "Drift", f"{_changed(changes)}; results moved too far: {', '.join(too_far)}.{failed}")
    if all(value < SMALL for value in found.values()):
        return Verdict("good", "Steady", f"{_changed(changes)}; results have not moved.{failed}")
    told = ", ".join(f"{NAMES[name]} {figure(value)}" for name, value in found.items())
    asked = any(getattr(thresholds, name) is not None for name in found)
    how = "results moved no further than is asked" if asked else "results moved"
    return Verdict(
        "good" if asked else "", "Steady" if asked else "Scored", f"{_changed(changes)}; {how}: {told}.{failed}"
    )


def by_chance(drift: Drift, thresholds: Thresholds) -> list[str]:
    """Figures beyond their threshold that are not told as such, as chance takes so few rows as far."""
    found = figures(drift)
    asked = {name: getattr(thresholds, name) for name in found}
    return [
        NAMES[name]
        for name in found
        if asked[name] is not None and found[name] > asked[name] and name not in drift.over
    ]


def figures(drift: Drift) -> dict[str, float]:
    """Those that the task has."""
    return {name: value for name in NAMES if (value := getattr(drift, name)) is not None}


def tiles(
    changes: Changes, drift: Drift | None, thresholds: Thresholds, seconds: float | None
) -> list[tuple[str, str, str]]:
    """The few numbers that tell it at a glance: what, how much, and what belongs to it."""
    found = [("rows", f"{changes.rows:,}", _differences(changes) if changes.since else "none before")]
    found.append(("inputs computed", f"{changes.computed:,}", f"{changes.cached:,} were there already"))
    if drift is not None:
        for name, value in figures(drift).items():
            asked = getattr(thresholds, name)
            found.append(
                (NAMES[name], figure(value), "nothing is asked" if asked is None else f"at most {asked:g} is asked")
            )
    if changes.failed or changes.bad:
        found.append(
            (
                "rows failed",
                f"{changes.failed:,}",
                f"{changes.bad:,} more were left out" if changes.bad else "with an error each",
            )
        )
    if seconds:
        found.append(("took", duration(seconds), f"{changes.rows / seconds:,.0f} rows a second"))
    return found


def figure(value: float) -> str:
    """A figure of drift, which is seldom above 1."""
    return "0" if value == 0 else "< 0.001" if value < SMALL else f"{value:.3f}" if value < 10 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """In units that people read."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def moment(time: datetime | None) -> str:
    """A time, in UTC whatever the zone of the schedule."""
    return "–" if time is None else time.strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True)
class Line:
    """A run as a row of the table: cells, each with whether it is to be seen at once."""

    when: str
    state: str
    cells: Sequence[tuple[str, bool]]


def table(runs: Sequence[RunInfo], seconds: Sequence[float | None]) -> tuple[list[str], list[Line]]:
    """Headings and rows of runs; a column that is empty in all of them is left out."""
    counted: dict[str, Callable[[Changes], int | None]] = {
        "rows": lambda changes: changes.rows,
        "new": lambda changes: changes.new,
        "changed": lambda changes: changes.changed,
        "removed": lambda changes: changes.removed,
        "cached": lambda changes: changes.cached,
        "computed": lambda changes: changes.computed,
        "failed": lambda changes: changes.failed,
    }
    if any(run.changes and run.changes.bad for run in runs):
        counted["left out"] = lambda changes: changes.bad
    measured = [name for name in NAMES if any(run.drift and getattr(run.drift, name) is not None for run in runs)]
    lines = []
    for run, took in zip(runs, seconds, strict=True):
        cells = [(f"{of(run.changes):,}" if run.changes else "–", False) for of in counted.values()]
        cells.append((f"{took:,.1f}" if took is not None else "–", False))
        for name in measured:
            value = getattr(run.drift, name, None)
            cells.append(("–" if value is None else figure(value), bool(run.drift and name in run.drift.over)))
        lines.append(Line(moment(run.due_at or run.created_at), str(run.state), cells))
    return [*counted, "seconds", *(NAMES[name] for name in measured)], lines


def _changed(changes: Changes) -> str:
    others = ((changes.new, "new"), (changes.removed, "removed"))
    told = "".join(f", {count:,} {what}" for count, what in others if count)
    return f"{changes.changed:,} of {changes.rows:,} rows changed{told}"


def _differences(changes: Changes) -> str:
    return f"{changes.new:,} new, {changes.changed:,} changed, {changes.removed:,} removed"


def _rows(count: int, what: str) -> str:
    return f"{count:,} row {what}" if count == 1 else f"{count:,} rows {what}"
