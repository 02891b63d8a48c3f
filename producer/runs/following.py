"""Runs of a caller's own: carried out in his process, from the first row to the last, and gone on with after a cut."""

from contextlib import suppress
from uuid import UUID

from contracts.errors import JobCancelled, JobFailed, JobNotFound, LeaseLost, UnavailableError, WrongState
from contracts.runs import RunInfo, RunSpec
from contracts.states import RunState
from producer.job import Job
from producer.runs.bench import Bench
from producer.runs.held import Held, runner_name
from producer.runs.phases import carry_out
from producer.runs.watcher import Watcher
from producer.waiting import wait_for_all
from storage import jobs, runs
from storage.runs import RunLease


def begin(bench: Bench, spec: RunSpec, watcher: Watcher) -> RunInfo:
    """Carry out a new run, and wait for its job; the run at its end.

    Raises:
        JobFailed: Its job did not succeed, or somebody cancelled the run.
        UnavailableError: A server does not answer; the run can be resumed.
        BatchmillError: The run has failed; this says why.
    """
    with bench.database.transaction() as connection:
        lease = runs.open_run(connection, spec, runner=runner_name(), lease=bench.lease)
    return _follow(bench, lease.run.id, watcher, lease)


def resume(bench: Bench, run_id: UUID, watcher: Watcher) -> RunInfo:
    """Go on with a run that was cut; one that has succeeded is returned as it is.

    Raises:
        RunNotFound: There is none of that id.
        WrongState: It is of a schedule, has ended in another way, or another process holds it.
    """
    with bench.database.transaction() as connection:
        run = runs.get(connection, run_id)
    if run.state.terminal and run.state is not RunState.SUCCEEDED:
        why = f" ({run.error_code}): {run.error_message}" if run.error_message else ""
        raise WrongState(f"run {run_id} is {run.state}{why}; begin a new one")
    if run.schedule is not None:
        raise WrongState(f"run {run_id} is of schedule {run.schedule}: runners carry it out")
    return _follow(bench, run_id, watcher)


def _follow(bench: Bench, run_id: UUID, watcher: Watcher, lease: RunLease | None = None) -> RunInfo:
    begun = False
    try:
        while not (run := _get(bench, run_id)).state.terminal:
            if not begun:
                watcher.begins(run)
                begun = True
            if lease is None and run.state is RunState.SCORING:
                _wait_for_job(bench, run, watcher)
            lease = lease or _take(bench, run_id)
            with suppress(LeaseLost):  # the row says why: it was cancelled, or another holds it
                carry_out(bench, Held(bench.database, lease, bench.lease), watcher)
            lease = None
    except UnavailableError as error:
        error.add_note(f"run {run_id} can be resumed: client.resume({str(run_id)!r})")
        raise
    finally:
        watcher.ends()
    if run.state is RunState.CANCELLED:
        raise JobCancelled(f"run {run_id} was cancelled")
    if run.state is RunState.FAILED:
        raise JobFailed(f"run {run_id} failed ({run.error_code}): {run.error_message}")
    return run


def _get(bench: Bench, run_id: UUID) -> RunInfo:
    with bench.database.transaction() as connection:
        return runs.get(connection, run_id)


def _take(bench: Bench, run_id: UUID) -> RunLease:
    with bench.database.transaction() as connection:
        return runs.claim_one(connection, run_id, runner=runner_name(), lease=bench.lease)


def _wait_for_job(bench: Bench, run: RunInfo, watcher: Watcher) -> None:
    if run.job_id is None:
        return
    with suppress(JobNotFound):  # which the last phase fails of
        with bench.database.transaction() as connection:
            job = Job(bench.database, bench.publisher, jobs.get(connection, run.job_id))
        wait_for_all([job], watcher.scores())
