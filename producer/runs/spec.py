"""What a caller asks of a run, checked as far as it can be before anything is read."""

import os
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts.errors import InvalidRequest
from contracts.params import parse_params, parse_task
from contracts.runs import OnBad, RunSpec, Thresholds
from contracts.sinks import FileSink, Sink, SqlSink, parse_sink
from contracts.sources import BatchFileSource, Source, SqlSource, parse_source
from contracts.specs import explain
from contracts.urls import VARIABLE
from producer import terms
from producer.urls import database_url
from storage import endpoints, models
from storage.database import Database


def check_spec(
    database: Database,
    *,
    source: Any,
    model: str,
    sink: Any,
    task: str | None = None,
    params: Mapping[str, Any] | None = None,
    priority: str = "bulk",
    metadata: Mapping[str, Any] | None = None,
    callback_url: str | None = None,
    on_bad: OnBad = "stop",
    report: str | Path | None = None,
    thresholds: Mapping[str, float | None] | Thresholds | None = None,
    expires_in: timedelta | float | None = None,
    progress_at: Sequence[int] = (),
) -> RunSpec:
    """The spec of what a caller asks for; paths are absolute in it, as another process may carry it out.

    Whether the source is there and the sink can be written is asked when a run begins.

    Raises:
        UnknownModel: No such model.
        UnknownTask: No such task.
        InvalidParams: No such parameter, or no such value.
        RefusedUrl: The callback's URL is none that webhooks are sent to.
        UnknownEndpoint: No endpoint is registered for it, or it is disabled.
        InvalidRequest: Source, sink or another argument cannot be taken, one is of the other, or the model computes
            another task.
        DatabaseUnavailable: Postgres does not answer.
    """
    from producer.runs.apart import check_apart
    from producer.writing import open_sink  # formats come with Arrow, which takes a while to import
    from producer.writing.formats import format_of

    if on_bad not in ("stop", "skip"):
        raise InvalidRequest(f"on_bad {on_bad!r}: choose stop or skip")
    checked_source, checked_sink = parse_source(source), parse_sink(sink)
    if isinstance(checked_source, SqlSource):
        _check_database(checked_source.url, "source")
    if isinstance(checked_sink, SqlSink):
        _check_database(checked_sink.url, "sink")
    else:
        open_sink(checked_sink, day=date.today())
        if isinstance(checked_sink, FileSink):
            format_of(checked_sink.url)
    checked_source, checked_sink = _absolute(checked_source), _absolute(checked_sink)
    report = None if report is None else _absolute_path(str(report))
    check_apart(checked_source, checked_sink, report)
    with database.transaction() as connection:
        spec = models.get(connection, model)
        if callback_url is not None:
            endpoints.find(connection, callback_url)
    wanted = spec.task if task is None else parse_task(task)
    if wanted is not spec.task:
        raise InvalidRequest(f"model {spec.reference} computes {spec.task}, and not {wanted}: choose another model")
    if not isinstance(checked_source, BatchFileSource) or params:
        parse_params(wanted, params)
    expiry = terms.check_expires_in(expires_in)
    return RunSpec(
        source=checked_source,
        model=model,
        task=None if task is None else wanted,
        params=dict(params or {}),
        sink=checked_sink,
        priority=terms.check_priority(priority),
        metadata=terms.check_metadata(metadata),
        callback_url=callback_url,
        expires_in=expiry and expiry.total_seconds(),
        progress_at=terms.check_progress_at(progress_at, callback_url),
        on_bad=on_bad,
        report=report,
        thresholds=_thresholds(thresholds),
    )


def _thresholds(thresholds: Mapping[str, float | None] | Thresholds | None) -> Thresholds:
    if thresholds is None or isinstance(thresholds, Thresholds):
        return thresholds or Thresholds()
    if not isinstance(thresholds, Mapping):
        raise InvalidRequest(f"thresholds: expected a mapping of psi, ks and cosine, got {type(thresholds).__name__}")
    try:
        return Thresholds.model_validate(dict(thresholds))
    except ValidationError as error:
        raise InvalidRequest(f"thresholds: {explain(error)}") from None


def _check_database(url: str, what: str) -> None:
    # What a variable holds, only the process knows that carries the run out.
    if not url.startswith(VARIABLE):
        database_url(url, what)


def _absolute(spec: Source | Sink) -> Any:
    if isinstance(spec, SqlSource | SqlSink):
        return spec
    changes = {"url": _absolute_path(spec.url)}
    if errors_url := getattr(spec, "errors_url", None):
        changes["errors_url"] = _absolute_path(errors_url)
    return spec.model_copy(update=changes)


def _absolute_path(url: str) -> str:
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))
