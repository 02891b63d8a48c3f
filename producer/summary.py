"""What a job came to, in figures and in rows for a person."""

from typing import TYPE_CHECKING

from contracts.states import JobState

if TYPE_CHECKING:
    from contracts.jobs import JobInfo

NONE = "–"
"""Shown where a figure does not exist."""


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


def job_summary(info: "JobInfo") -> list[tuple[str, str]]:
    """Names and values, in the order in which to show them."""
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
        ("time", _seconds(derived["seconds"])),
        ("items/s", _rate(derived["items_per_second"])),
        ("tokens/s", _rate(derived["tokens_per_second"])),
    ]
    if info.state is not JobState.SUCCEEDED:
        rows.insert(6, ("not computed" if info.state.terminal else "waiting", f"{counts.waiting:,}"))
    return rows


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.1%}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.1f} s"


def _rate(rate: float | None) -> str:
    if rate is None:
        return NONE
    return f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"
