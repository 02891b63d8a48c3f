"""What a job came to, in figures and in rows for a person."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from contracts.states import JobState

if TYPE_CHECKING:
    from contracts.compression import CompressionInfo
    from contracts.jobs import JobInfo

NONE = "–"
"""Shown where a figure does not exist."""
COMPRESS = "compress"
"""What a job does that runs a recipe, as its `operation` says."""


COLOURS = {
    JobState.RUNNING: "cyan",
    JobState.PAUSED: "magenta",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.EXPIRED: "yellow",
}
"""Of a terminal's own palette."""


def figures(info: "JobInfo") -> dict[str, float | None]:
    """Fill and waste as shares of 1, and rates by the row's own times; None where nothing ran or the job goes on.

    Items a second only of a job that succeeded, as it came to all of them. The time is that from the first claim to the
    end; a job that found every result is timed from its submission.
    """
    seconds = None
    if info.finished_at is not None:
        seconds = (info.finished_at - (info.started_at or info.created_at)).total_seconds()
    ran = info.stats.padded_tokens > 0
    return {
        "mean_fill": info.stats.fill if ran else None,
        "padding_waste": info.stats.padding_waste if ran else None,
        "seconds": seconds,
        "items_per_second": info.counts.items / seconds if seconds and info.state is JobState.SUCCEEDED else None,
        "tokens_per_second": info.stats.real_tokens / seconds if seconds and ran else None,
    }


def job_document(info: "JobInfo") -> dict[str, Any]:
    """A job as JSON values, with the figures that follow from its row."""
    return {**info.model_dump(mode="json"), "figures": figures(info)}


def job_summary(info: "JobInfo") -> list[tuple[str, str]]:
    """Names and values, in the order in which to show them."""
    if info.operation == COMPRESS:
        return _recipe_summary(info)
    counts, derived = info.counts, figures(info)
    rows = [
        ("items", f"{counts.items:,}"),
        ("distinct", f"{counts.distinct:,}"),
        ("cached", f"{counts.cached:,}"),
        ("computed", f"{counts.computed:,}"),
        ("failed", f"{counts.failed:,}"),
        ("truncated", f"{counts.truncated:,}"),
        ("micro-batches", f"{info.stats.micro_batches:,.0f}"),
        ("mean fill", _percent(derived["mean_fill"])),
        ("padding waste", _percent(derived["padding_waste"])),
        ("time", seconds_text(derived["seconds"])),
        ("items/s", rate_text(derived["items_per_second"])),
        ("tokens/s", rate_text(derived["tokens_per_second"])),
    ]
    if info.state is not JobState.SUCCEEDED:
        rows.insert(6, ("not computed" if info.state.terminal else "waiting", f"{counts.waiting:,}"))
    return rows


def compression_summary(info: "JobInfo", found: "CompressionInfo") -> list[tuple[str, str]]:
    """The same of a compression, with what came of it."""
    report = found.report
    rows = [("becomes", found.spec.name), *_recipe_summary(info)] if found.model is None else _recipe_summary(info)
    facts = [
        ("model", found.model or ""),
        ("verdict", found.verdict or ""),
        *((one.name, f"{one.found:.4g}, asked {one.asked:g}") for one in (report.criteria if report else ())),
    ]
    return [*rows, *((name, value) for name, value in facts if value)]


def _recipe_summary(info: "JobInfo") -> list[tuple[str, str]]:
    counts, at = info.counts, None if info.state.terminal else info.progress
    steps = counts.items - 1
    done = at.position - 1 if at else min(counts.distinct - counts.waiting - counts.failed, steps)
    rows = [
        ("steps", f"{steps:,}"),
        ("done", f"{done:,}"),
        ("cached", f"{counts.cached:,}"),
        ("time", seconds_text(figures(info)["seconds"])),
    ]
    if at is not None:
        rows.insert(2, ("at work on", f"{at.title}, {at.fraction:.0%} {at.message}".strip()))
    return rows


def subject(info: "JobInfo") -> str:
    """What a job is about: its model, and what is done to it where that is not computing by it."""
    return f"{COMPRESS} {info.model}" if info.operation == COMPRESS else info.model


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.1%}"


def seconds_text(seconds: float | None) -> str:
    """A duration for a person."""
    if seconds is None:
        return NONE
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.1f} s"


def rate_text(rate: float | None) -> str:
    """A rate for a person, without its unit."""
    if rate is None:
        return NONE
    return f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"


def age_text(seconds: float) -> str:
    """A time span in its largest unit: `12 s`, `5 min`, `3 h`, `12 d`."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{max(seconds, 0) // size:.0f} {unit}"
    return f"{seconds // 86_400:,.0f} d"


def local_time(moment: datetime | None) -> str:
    """A moment in this machine's time zone."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def byte_size(size: int) -> str:
    """Bytes for a person, in powers of 1000."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 99.5 else f"{value:.1f} {units[0]}"
