"""Submissions of anything: each is taken or refused by a typed error that names the place, and none gets stuck.

What of a submission needs no database runs without one, so that a million of them take minutes; every so many go the
whole way. `BATCHMILL_FUZZ_SUBMISSIONS` says how many, `BATCHMILL_FUZZ_SEED` which.
"""

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts import callbacks
from contracts.errors import BatchmillError, EmptyJob, InvalidInput, UnknownEndpoint, UnknownModel
from contracts.models import ModelSpec
from contracts.names import split_reference
from contracts.settings import Settings
from contracts.tracing import Tracing
from producer import Client, client, read
from producer.incoming import ContentDigest, chunks
from producer.submission import Submission
from storage.inputs import Line
from tests.acceptance.forked import ForkedMill, add_fake
from tests.conftest import wait_until
from tests.models import model_spec
from tests.properties import submissions
from tests.properties.scale import count, say

SUBMISSIONS = count("FUZZ_SUBMISSIONS", 6_000)
SEED = count("FUZZ_SEED", 20_261_122)
STORED_EVERY = 300
"""One in so many goes through a database, and is computed."""
NAMED = {"params": "parameters", "idempotency_key": "idempotency.key", "callback_url": "callback|endpoint|URL"}
"""How a message speaks of an argument, where not by its name."""
MOST_CHARACTERS = 2_000
"""Of a message: it says what is wrong, and does not repeat what was given."""
STUCK_SECONDS = 60
"""A submission takes a millisecond: one that takes so long hangs, on whatever machine."""
FAKE = model_spec(name="fake")


class Offline(Client):
    """A client up to the point where a database is needed; it keeps what it would have stored."""

    def __init__(self) -> None:
        self.settings = Settings(database_url="postgresql://nowhere", broker_url="redis://nowhere")
        self._database: Any = None
        self._tracing = Tracing("fuzz")
        self._publisher: Any = SimpleNamespace(prepare=lambda: None, wake=lambda *_: None)
        self.models: Any = SimpleNamespace(get=self._get)

    def _get(self, reference: str) -> ModelSpec:
        if split_reference(reference) != ("fake", None):
            raise UnknownModel(f"no model {reference!a}")
        return FAKE

    def job(self, job_id: Any) -> Any:
        return job_id


def _take(_: Any, submission: Submission, lines: Iterator[Line]) -> Any:
    if submission.callback_url is not None:
        callbacks.parse(submission.callback_url)
        raise UnknownEndpoint(f"no endpoint for {submission.callback_url!a}")
    content = ContentDigest(submission.model, submission.params)
    taken = 0
    for chunk in chunks(lines):
        content.update(chunk)
        taken += len(chunk)
    content.value()
    return SimpleNamespace(job_id=taken, shards=0)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Offline:
    monkeypatch.setattr(client, "submit", _take)
    return Offline()


def _check_message(message: str) -> None:
    assert 0 < len(message) < MOST_CHARACTERS, message[:300]
    message.encode()  # it can be printed, and stored


def _check_refusal(error: BatchmillError, wrong: str | None, bad: list[int], items: int, lenient: bool) -> None:
    """It says what was wrong, and where."""
    if wrong is not None and not (isinstance(error, InvalidInput) and error.where.startswith("item ")):
        assert re.search(NAMED.get(wrong, wrong), str(error)), (wrong, str(error))
    elif isinstance(error, EmptyJob):
        assert len(bad) == items
    else:
        assert isinstance(error, InvalidInput)
        assert not lenient
        assert error.where == f"item {bad[0]}", error


def _check_refusal_of_file(error: BatchmillError, name: str) -> None:
    assert isinstance(error, EmptyJob) or name in str(error), error


class Fuzz:
    """Submissions after a seed, and what became of them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        table = pa.table({"id": [str(n) for n in range(50)], "input": [f"text {n}" * 5 for n in range(50)]})
        pq.write_table(table, folder / "whole.parquet")
        self.parquet = (folder / "whole.parquet").read_bytes()
        self.taken = self.refused = self.files = 0

    def submit(self, to: Client) -> Any:
        """One submission; what came of it, None where it was refused."""
        kind = self.rng.randrange(100)
        try:
            if kind == 0:
                result = self._submit_file(to)
            elif kind == 1:
                result = to.submit("fake", self.rng.choice(submissions.NO_INPUTS))
                pytest.fail("taken for inputs")
            else:
                result = self._submit_items(to)
        except BatchmillError as error:
            self.refused += 1
            _check_message(str(error))
            return None
        self.taken += 1
        return result

    def _submit_items(self, to: Client) -> Any:
        items, bad = submissions.inputs(self.rng)
        how, wrong = submissions.arguments(self.rng)
        told: list[InvalidInput] = []
        lenient = self.rng.random() < 0.5
        try:
            result = to.submit(inputs=iter(items), on_bad=told.append if lenient else None, **how)
        except BatchmillError as error:
            _check_refusal(error, wrong, bad, len(items), lenient)
            raise
        assert wrong is None, f"{wrong} was taken: {how}"
        assert lenient or not bad, f"taken: {items}"
        assert [error.where for error in told] == [f"item {number}" for number in bad]
        return result

    def _submit_file(self, to: Client) -> Any:
        suffix = self.rng.choice([".jsonl", ".jsonl", ".txt", ".csv", ".parquet", ".xlsx", ""])
        path = self.folder / f"file{suffix}"
        path.write_bytes(
            submissions.damaged(self.rng, self.parquet) if suffix == ".parquet" else submissions.text_file(self.rng)
        )
        self.files += 1
        told: list[InvalidInput] = []
        try:
            result = to.submit("fake", read(path), on_bad=told.append if self.rng.random() < 0.7 else None)
        except BatchmillError as error:
            _check_refusal_of_file(error, path.name)
            raise
        assert all(re.match(rf"{re.escape(path.name)}, (line|row) \d+: ", str(error)) for error in told)
        return result


@pytest.mark.timeout(3600)
def test_every_submission_is_taken_or_refused(offline: Offline, tmp_path: Path) -> None:
    fuzz = Fuzz(SEED, tmp_path)
    began = time.monotonic()
    slowest = 0.0
    for _ in range(SUBMISSIONS):
        start = time.monotonic()
        fuzz.submit(offline)
        slowest = max(slowest, time.monotonic() - start)
    seconds = time.monotonic() - began
    say(
        f"{SUBMISSIONS:,} submissions (seed {SEED}) in {seconds:.0f} s: {fuzz.taken:,} taken, "
        f"{fuzz.refused:,} refused, {fuzz.files:,} of files; the slowest {slowest * 1000:.0f} ms"
    )
    assert min(fuzz.taken, fuzz.refused) > SUBMISSIONS // 10
    assert slowest < STUCK_SECONDS


@pytest.mark.timeout(3600)
def test_what_was_taken_is_computed(forked: ForkedMill, tmp_path: Path) -> None:
    fuzz = Fuzz(SEED + 1, tmp_path)
    forked.worker()
    forked.beat()
    with forked.client() as to:
        add_fake(to, "fake", "fake:?dimensions=2")
        jobs = [job for _ in range(SUBMISSIONS // STORED_EVERY) if (job := fuzz.submit(to)) is not None]
        say(f"{len(jobs):,} taken, {fuzz.refused:,} refused")
        with to._database.transaction() as connection:
            (receiving,) = connection.exec_driver_sql("SELECT count(*) FROM jobs WHERE state = 'receiving'").one()
        assert receiving == 0, "a refused submission left something behind"
        for job in jobs:
            wait_until(lambda job=job: job.refresh().state.terminal, 300)
            assert job.state == "succeeded", job.info
            assert job.counts.items == len(list(job.results()))
