"""Which phase of a run is next, and how a phase ends: done, given back, or with the run failed."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from contracts import logs
from contracts.errors import BatchmillError, DatabaseUnavailable, LeaseLost, UnavailableError, describe
from contracts.states import RunState
from producer.runs.bench import Bench
from producer.runs.finishing import write
from producer.runs.held import Held, Interrupted
from producer.runs.receiving import read
from producer.runs.watcher import Watcher
from producer.submission import discard
from storage import runs

FIRST_REST, LONGEST_REST = 5.0, 300.0
"""Seconds that a run rests for want of a server, at first and at most; it doubles with each attempt."""
PATIENCE = timedelta(days=1)
"""A run of a schedule that rested for so long, without getting on, fails: an address or a password may be wrong."""


def carry_out(bench: Bench, held: Held, watcher: Watcher) -> None:
    """Carry out the phase that a run was taken for: read its source into a job, or write the job's results.

    However it ends, the run is not held any more: the next phase is due, the run is given back, or it has failed.

    Raises:
        LeaseLost: Someone else holds the run by now, or it was cancelled.
        Interrupted: The process is to end; the run was given back.
        UnavailableError: A server does not answer; the run was given back, and rests for a while. After a day of this
            it has failed.
        BatchmillError: The run has failed; this says why.
    """
    with logs.bound(run=str(held.run.id)), held.kept(), _settled(bench, held):
        (read if held.run.state is RunState.READING else write)(bench, held, watcher)


@contextmanager
def _settled(bench: Bench, held: Held) -> Iterator[None]:
    try:
        yield
    except LeaseLost:
        raise
    except UnavailableError as error:
        if held.run.schedule is not None and held.stuck_for >= PATIENCE:
            hours = held.stuck_for / timedelta(hours=1)
            _fail(bench, held, error.code, f"it tried to get on for {hours:.0f} hours: {error}")
        else:
            rest = min(FIRST_REST * 2 ** min(held.attempt - 1, 10), LONGEST_REST)
            _release(bench, held, timedelta(seconds=rest), str(error))
        raise
    except BatchmillError as error:
        _fail(bench, held, error.code, str(error))
        raise
    except Interrupted:
        _release(bench, held)
        raise
    except Exception as error:  # a defect, of ours or of a library: to try again would not mend it
        _fail(bench, held, BatchmillError.code, describe(error))
        raise
    except BaseException:  # Ctrl-C
        _release(bench, held)
        raise


def _release(bench: Bench, held: Held, rest: timedelta | None = None, reason: str | None = None) -> None:
    """Give the run back; where Postgres does not answer, the lease is over by itself."""
    with suppress(DatabaseUnavailable, LeaseLost), bench.database.transaction() as connection:
        runs.release(connection, held.token, None if held.run.schedule is None else rest, reason)


def _fail(bench: Bench, held: Held, code: str, message: str) -> None:
    with suppress(DatabaseUnavailable, LeaseLost):
        with bench.database.transaction() as connection:
            runs.fail(connection, held.token, code, message)
            job_id = runs.get(connection, held.run.id).job_id
        if job_id is not None:
            discard(bench.database, job_id)  # where it was sealed, it stays
