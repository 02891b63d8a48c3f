"""The deliverer against a real receiver on loopback, and against a real database."""

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy import text
from standardwebhooks import Webhook

from contracts.events import EventBody, JobData, RunData
from producer import verify_webhook
from storage import deliveries, endpoints
from storage import runs as stored_runs
from storage.database import Database
from storage.secrets import Keyring, new_secret
from tests import runs
from tests.jobs import claimed, execute, finish, make_target, query, submit
from tests.receiver import (
    CUT,
    HANG,
    KEY,
    OK,
    RESET,
    TRICKLE,
    Receiver,
    add_endpoint,
    add_events,
    delivering,
    status,
)
from worker.webhooks import deliverer

Eventually = Callable[..., None]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def states(database: Database) -> dict[str, int]:
    return {row.state: row.n for row in query(database, "SELECT state, count(*) AS n FROM deliveries GROUP BY state")}


def one(database: Database) -> Any:
    (row,) = query(database, "SELECT * FROM deliveries")
    return row


def test_the_end_of_a_job_is_announced_and_verified(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    url = receiver.url("/hook?tenant=7")
    endpoint_id, secret = add_endpoint(database, receiver.url("/hook"))
    target_id = make_target(database)
    job_id = submit(database, target_id, ["a", "b"])
    execute(
        database,
        "UPDATE jobs SET callback_url = :url, endpoint_id = :endpoint WHERE id = :id",
        url=url,
        endpoint=endpoint_id,
        id=job_id,
    )
    finish(database, claimed(database))
    with delivering(database):
        eventually(lambda: states(database) == {"delivered": 1})
    (request,) = receiver.requests
    event = verify_webhook(request.body, request.headers, secret)
    assert isinstance(event.data, JobData)
    assert (event.type, event.data.id, event.data.counts.computed) == ("job.completed", job_id, 2)
    assert request.path == "/hook?tenant=7"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("batchmill/")
    row = one(database)
    assert (row.id, row.attempt, row.last_status, row.last_error, row.token) == (request.id, 1, 200, None, None)
    assert isinstance(EventBody.model_validate_json(request.body), EventBody)


def test_the_end_of_a_run_is_announced_and_verified(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    url = receiver.url("/hook?night=1")
    _, secret = add_endpoint(database, receiver.url("/hook"))
    runs.add(database, spec=runs.spec(callback_url=url))
    run = runs.run_now(database)
    lease = runs.claimed(database)
    with database.transaction() as connection:
        stored_runs.fail(connection, lease.token, "source_changed", "it changed while it was read")
    with delivering(database):
        eventually(lambda: states(database) == {"delivered": 1})
    (request,) = receiver.requests
    event = verify_webhook(request.body, request.headers, secret)
    assert isinstance(event.data, RunData)
    assert (event.type, event.data.id, event.data.schedule) == ("run.failed", run.id, "nightly")
    assert event.data.error_message == "it changed while it was read"
    assert request.path == "/hook?night=1"


FAILURES = {
    "/500": (status(500), "answered 500 Internal Server Error"),
    "/404": (status(404), "answered 404 Not Found"),
    "/599": (status(599), "answered 599"),
    "/reset": (RESET, "the connection broke"),
    "/cut": (CUT, "RemoteProtocolError: peer closed connection"),
    "/hang": (HANG, "no complete answer within 0.5 s"),
    "/trickle": (TRICKLE, "no complete answer within 0.5 s"),
    "/junk": (b"no http at all\r\n\r\n", "RemoteProtocolError"),
    "/302": (status(302, "location: http://169.254.169.254/latest/meta-data/"), "redirects are not followed"),
    "/307": (status(307, "location: /elsewhere"), "redirects are not followed"),
}


def test_what_fails_is_tried_again_under_the_same_id(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    sent, secrets = {}, {}
    for path, (answer, _) in FAILURES.items():
        receiver.behave(path, answer, answer, OK)
        endpoint_id, secrets[path] = add_endpoint(database, receiver.url(path))
        (sent[path],) = add_events(database, endpoint_id, receiver.url(path))
    with delivering(database, seconds=0.5, waits=(0.05, 5.0)):
        failed = "SELECT min(CASE WHEN last_error <> '' THEN attempt ELSE 0 END) FROM deliveries"
        eventually(lambda: query(database, failed)[0].min == 2)
        errors = {row.url: row.last_error for row in query(database, "SELECT url, last_error FROM deliveries")}
        for path, (_, error) in FAILURES.items():
            assert error in errors[receiver.url(path)]
        eventually(lambda: states(database) == {"delivered": len(FAILURES)})
    assert {request.path for request in receiver.requests} == set(FAILURES)
    for path in FAILURES:
        assert [request.id for request in receiver.to(path)] == [sent[path]] * 3
        for request in receiver.to(path):
            Webhook(secrets[path]).verify(request.body, request.headers)
    assert query(database, "SELECT DISTINCT attempt, last_status, last_error FROM deliveries") == [(3, 200, None)]


def test_a_receiver_says_when_to_come_again(database: Database, receiver: Receiver, eventually: Eventually) -> None:
    receiver.behave("/hook", status(503, "retry-after: 2"), OK)
    endpoint_id, _ = add_endpoint(database, receiver.url())
    add_events(database, endpoint_id, receiver.url())
    with delivering(database):
        eventually(lambda: one(database).last_status == 503)
        seen = time.monotonic()
        eventually(lambda: states(database) == {"delivered": 1})
    assert time.monotonic() - seen > 1.5
    first, second = (int(request.headers["webhook-timestamp"]) for request in receiver.requests)
    assert second - first >= 2


def test_after_the_whole_schedule_it_is_dead_and_can_be_replayed(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    receiver.behave("/hook", *[status(500)] * 4, OK)
    endpoint_id, _ = add_endpoint(database, receiver.url())
    (event,) = add_events(database, endpoint_id, receiver.url())
    with delivering(database, waits=(0.01, 0.02, 0.03)):
        eventually(lambda: states(database) == {"dead": 1})
        row = one(database)
        assert (row.attempt, row.last_status, row.token) == (4, 500, None)
        assert row.last_error == "answered 500 Internal Server Error"
        assert row.finished_at is not None
        with database.transaction() as connection:
            deliveries.replay(connection, event)
        eventually(lambda: states(database) == {"delivered": 1})
    assert [request.id for request in receiver.requests] == [event] * 5
    assert one(database).attempt == 1


def test_gone_disables_the_endpoint_and_buries_what_waits(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    receiver.behave("/gone", status(410))
    gone, _ = add_endpoint(database, receiver.url("/gone"))
    fine, _ = add_endpoint(database, receiver.url("/fine"))
    add_events(database, gone, receiver.url("/gone"), 50)
    add_events(database, fine, receiver.url("/fine"), 5)
    with delivering(database):
        eventually(lambda: states(database) == {"dead": 50, "delivered": 5})
        # What is announced later is not left pending for ever.
        add_events(database, gone, receiver.url("/gone"))
        eventually(lambda: states(database) == {"dead": 51, "delivered": 5})
    assert len(receiver.to("/gone")) <= 4
    with database.transaction() as connection:
        endpoint = endpoints.get(connection, gone)
    assert endpoint.disabled_at is not None
    assert endpoint.disabled_reason == "it answered 410 Gone"
    errors = {row.last_error for row in query(database, "SELECT last_error FROM deliveries WHERE state = 'dead'")}
    assert errors <= {"answered 410 Gone", "the endpoint is disabled: it answered 410 Gone"}


def test_a_hanging_endpoint_holds_up_nobody(
    database: Database, receiver: Receiver, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliverer, "DRAIN_SECONDS", 0.1)
    receiver.behave("/hang", HANG)
    hanging, _ = add_endpoint(database, receiver.url("/hang"))
    fine, _ = add_endpoint(database, receiver.url("/fine"))
    add_events(database, hanging, receiver.url("/hang"), 1000)
    with delivering(database, seconds=10):
        eventually(lambda: len(receiver.to("/hang")) == 4)
        for count in range(1, 4):
            add_events(database, fine, receiver.url("/fine"))
            eventually(lambda expected=count: len(receiver.to("/fine")) == expected, 3)
        assert len(receiver.to("/hang")) == 4
    # What was in flight is given back as it was.
    assert states(database) == {"pending": 1000, "delivered": 3}
    (row,) = query(
        database,
        "SELECT max(attempt) AS attempt, count(token) AS tokens, max(due_at) <= now() AS due FROM deliveries "
        "WHERE state = 'pending'",
    )
    assert (row.attempt, row.tokens, row.due) == (0, 0, True)


def test_rotation_sends_two_signatures_for_a_while(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    endpoint_id, old = add_endpoint(database, receiver.url())
    new = new_secret()
    keyring = Keyring([KEY])
    with delivering(database):
        for overlap in (timedelta(hours=1), timedelta(0)):
            with database.transaction() as connection:
                endpoints.rotate(connection, endpoint_id, keyring.encrypt(new), overlap)
                connection.execute(
                    text("UPDATE webhook_endpoints SET previous_secret = :old"), {"old": keyring.encrypt(old)}
                )
            expected = len(receiver.requests) + 1
            add_events(database, endpoint_id, receiver.url())
            eventually(lambda: len(receiver.requests) == expected)  # noqa: B023
    during, after = receiver.requests
    for secret in (old, new):
        Webhook(secret).verify(during.body, during.headers)
    assert len(during.headers["webhook-signature"].split(" ")) == 2
    Webhook(new).verify(after.body, after.headers)
    assert len(after.headers["webhook-signature"].split(" ")) == 1


def test_tls_is_about_the_name_and_not_the_address(database: Database, eventually: Eventually) -> None:
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    receiver = Receiver(serving)
    try:
        endpoint_id, secret = add_endpoint(database, receiver.url(host="hooks.example"))
        add_events(database, endpoint_id, receiver.url(host="hooks.example"))
        with delivering(database, verify=trusting, resolve=resolve):
            eventually(lambda: states(database) == {"delivered": 1})
            add_events(database, endpoint_id, receiver.url(host="other.example"))
            eventually(lambda: query(database, "SELECT 1 FROM deliveries WHERE last_error LIKE '%Hostname mismatch%'"))
        (request,) = receiver.requests
        assert request.headers["host"] == f"hooks.example:{receiver.port}"
        assert receiver.server_names[0] == "hooks.example"
        Webhook(secret).verify(request.body, request.headers)
    finally:
        receiver.close()


def test_a_refused_url_is_a_failed_attempt_that_never_connects(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    endpoint_id, _ = add_endpoint(database, receiver.url())
    add_events(database, endpoint_id, receiver.url())
    with delivering(database, allow=(), waits=(0.01,)):
        eventually(lambda: states(database) == {"dead": 1})
    assert "127.0.0.1 is not public" in one(database).last_error
    assert receiver.connections == 0


def test_a_secret_under_a_lost_key_is_said_and_not_sent(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    endpoint_id, _ = add_endpoint(database, receiver.url())
    execute(database, "UPDATE webhook_endpoints SET secret = :junk", junk=b"junk")
    add_events(database, endpoint_id, receiver.url())
    with delivering(database, waits=()):
        eventually(lambda: states(database) == {"dead": 1})
    assert "BATCHMILL_SECRET_KEY" in one(database).last_error
    assert receiver.connections == 0


def test_thousands_of_events_arrive_once_each_from_two_deliverers(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    endpoint_id, _ = add_endpoint(database, receiver.url())
    sent = add_events(database, endpoint_id, receiver.url(), 1000)
    with delivering(database), delivering(database):
        eventually(lambda: states(database) == {"delivered": 1000}, 60)
    assert sorted(request.id for request in receiver.requests) == sorted(sent)


def test_a_database_that_goes_away_is_waited_for(
    database: Database, receiver: Receiver, eventually: Eventually
) -> None:
    endpoint_id, _ = add_endpoint(database, receiver.url())
    with delivering(database):
        for count in range(1, 4):
            add_events(database, endpoint_id, receiver.url())
            eventually(lambda expected=count: states(database) == {"delivered": expected})
            execute(
                database,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )


class Process:
    """`python -m worker.webhooks`, as an operator runs it."""

    def __init__(self, folder: Path, database: Database, **settings: str) -> None:
        self.log = folder / "webhooks.log"
        environment = {
            **os.environ,
            "BATCHMILL_DATABASE_URL": database.url.set(drivername="postgresql").render_as_string(hide_password=False),
            "BATCHMILL_BROKER_URL": "redis://127.0.0.1:1",
            "BATCHMILL_HOME": str(folder),
            "BATCHMILL_SECRET_KEY": KEY,
            "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8, 10.0.0.0/8",
            **settings,
        }
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "worker.webhooks"], env=environment, stdout=log, stderr=log
            )

    def end(self, number: int) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(30)


@pytest.fixture
def start(tmp_path: Path, database: Database) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def make(**settings: str) -> Process:
        started.append(Process(tmp_path, database, **settings))
        return started[-1]

    yield make
    for process in started:
        if process.popen.poll() is None:
            process.end(signal.SIGKILL)


def test_what_a_killed_deliverer_held_is_delivered_later_under_the_same_id(
    database: Database, receiver: Receiver, eventually: Eventually, start: Callable[..., Process]
) -> None:
    receiver.behave("/hook", status(500), HANG, OK)
    endpoint_id, secret = add_endpoint(database, receiver.url())
    (event,) = add_events(database, endpoint_id, receiver.url())
    settings = {"BATCHMILL_WEBHOOK_RETRY_SECONDS": "0.2,0.2,0.2", "BATCHMILL_WEBHOOK_TIMEOUT_SECONDS": "1"}
    first = start(**settings)
    eventually(lambda: len(receiver.requests) == 2)  # one attempt failed, the next hangs
    first.end(signal.SIGKILL)
    row = one(database)
    assert (row.state, row.attempt, row.token is None) == ("pending", 1, False)
    second = start(**settings)
    eventually(lambda: states(database) == {"delivered": 1}, 30)
    assert [request.id for request in receiver.requests] == [event] * 3  # what died with the deliverer does not count
    assert one(database).attempt == 2
    verified = Webhook(secret).verify(receiver.requests[-1].body, receiver.requests[-1].headers)
    assert verified == {"type": "job.completed"}
    assert second.end(signal.SIGINT) == 0
    log = second.log.read_text()
    assert KEY not in log
    assert secret not in log


def test_a_deliverer_leaves_in_time_and_gives_back_what_it_holds(
    database: Database, receiver: Receiver, eventually: Eventually, start: Callable[..., Process]
) -> None:
    receiver.behave("/hook", HANG)
    endpoint_id, _ = add_endpoint(database, receiver.url())
    add_events(database, endpoint_id, receiver.url(), 10)
    process = start()
    eventually(lambda: len(receiver.requests) == 4)
    begun = time.monotonic()
    assert process.end(signal.SIGTERM) == 0
    assert time.monotonic() - begun < 10
    (row,) = query(
        database,
        "SELECT sum(attempt) AS attempts, count(token) AS tokens, bool_and(due_at <= now()) AS due FROM deliveries",
    )
    assert (row.attempts, row.tokens, row.due) == (0, 0, True)


def test_a_deliverer_without_a_key_says_so(start: Callable[..., Process]) -> None:
    process = start(BATCHMILL_SECRET_KEY="")
    assert process.popen.wait(30) == 1
    assert "configuration: BATCHMILL_SECRET_KEY" in process.log.read_text()
