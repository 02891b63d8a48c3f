from datetime import timedelta
from uuid import uuid4

import pytest

from contracts.errors import ConfigurationError, DeliveryNotFound, InvalidRequest, RefusedUrl, UnknownEndpoint
from contracts.states import DeliveryState
from storage import deliveries, endpoints
from storage.database import Database
from storage.deliveries import Claim, Outcome
from storage.secrets import Keyring
from tests.jobs import query
from tests.receiver import KEY, add_endpoint, add_events

URL = "https://example.com/hook"
OTHER_KEY = "b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm90aGVyISE="


def claim(database: Database, *, free: dict[int, int] | None = None, room: int = 100, hold: float = 60) -> list[Claim]:
    with database.transaction() as connection:
        return deliveries.claim(connection, free=free or {}, fresh=4, room=room, hold=timedelta(seconds=hold))


def finish(database: Database, claim: Claim, state: DeliveryState, delay: float = 0.0) -> int:
    with database.transaction() as connection:
        return deliveries.finish(connection, [Outcome(claim.id, claim.token, state, None, None, delay)])


def test_a_job_may_name_a_registered_url_with_any_query(database: Database) -> None:
    plain, _ = add_endpoint(database, URL)
    exact, _ = add_endpoint(database, f"{URL}?tenant=1")
    with database.transaction() as connection:
        for url, expected in (
            (URL, plain),
            ("HTTPS://EXAMPLE.com:443/hook", plain),
            (f"{URL}?tenant=2", plain),
            (f"{URL}?tenant=1", exact),
        ):
            assert endpoints.find(connection, url).id == expected
        for url in (
            "https://example.com/",
            f"{URL}/more",
            "https://example.com:8443/hook",
            "https://evil.example/hook",
        ):
            with pytest.raises(UnknownEndpoint, match="batchmill webhooks add https://"):
                endpoints.find(connection, f"{url}?token=s3cret")
        with pytest.raises(RefusedUrl):
            endpoints.find(connection, "https://user:s3cret@example.com/hook")
        endpoints.disable(connection, plain, "out of order")
        with pytest.raises(UnknownEndpoint, match=rf"disabled \(out of order\).*webhooks enable {plain}"):
            endpoints.find(connection, URL)
        endpoints.enable(connection, plain)
        assert endpoints.find(connection, URL).disabled_at is None


def test_an_endpoint_is_registered_once_and_found_by_number_or_url(database: Database) -> None:
    endpoint_id, _ = add_endpoint(database, URL)
    with database.transaction() as connection:
        with pytest.raises(InvalidRequest, match="registered already"):
            endpoints.add(connection, URL, b"x")
        for reference in (endpoint_id, str(endpoint_id), URL, "https://EXAMPLE.com/hook"):
            assert endpoints.get(connection, reference).id == endpoint_id
        for reference in (endpoint_id + 1, "9" * 40, "https://example.com/other"):
            with pytest.raises(UnknownEndpoint, match="webhooks list"):
                endpoints.get(connection, reference)


def test_secrets_can_be_put_under_a_new_key(database: Database) -> None:
    endpoint_id, secret = add_endpoint(database, URL)
    keyring = Keyring([KEY])
    with database.transaction() as connection:
        endpoints.rotate(connection, endpoint_id, keyring.encrypt("whsec_new"), timedelta(hours=1))
        with pytest.raises(ConfigurationError):
            endpoints.reencrypt(connection, Keyring([OTHER_KEY]))
        assert endpoints.reencrypt(connection, Keyring([OTHER_KEY, KEY])) == 1
    (row,) = query(database, "SELECT secret, previous_secret FROM webhook_endpoints")
    assert [Keyring([OTHER_KEY]).decrypt(row.secret), Keyring([OTHER_KEY]).decrypt(row.previous_secret)] == [
        "whsec_new",
        secret,
    ]


def test_claims_share_the_room_among_endpoints(database: Database) -> None:
    numbers = [add_endpoint(database, f"{URL}/{n}")[0] for n in range(3)]
    for number in numbers:
        add_events(database, number, URL, 10)
    taken = claim(database, free={numbers[0]: 0, numbers[1]: 7})
    assert sorted(c.endpoint_id for c in taken) == [numbers[1]] * 7 + [numbers[2]] * 4
    assert len({c.id for c in taken}) == 11
    assert {c.attempt for c in taken} == {1}
    assert len(claim(database, room=5)) == 5


def test_a_claim_is_one_of_a_kind_until_it_is_due_again(database: Database) -> None:
    number, _ = add_endpoint(database, URL)
    add_events(database, number, URL)
    (first,) = claim(database, hold=0)
    (second,) = claim(database)
    assert (second.id, second.attempt) == (first.id, 1)  # whose end nobody knows does not count
    assert claim(database) == []
    assert finish(database, first, DeliveryState.DEAD) == 0  # whose time is over
    assert finish(database, second, DeliveryState.PENDING, delay=0) == 1
    (third,) = claim(database)
    with database.transaction() as connection:
        assert deliveries.release(connection, [second]) == 0
        assert deliveries.release(connection, [third]) == 1
    (fourth,) = claim(database)
    assert fourth.attempt == 2
    assert finish(database, fourth, DeliveryState.DELIVERED) == 1
    assert finish(database, fourth, DeliveryState.DEAD) == 0
    assert claim(database) == []


def test_what_waits_for_a_disabled_endpoint_is_dead_even_while_it_is_tried(database: Database) -> None:
    number, _ = add_endpoint(database, URL)
    add_events(database, number, URL, 3)
    (held,) = claim(database, free={number: 1})
    with database.transaction() as connection:
        assert endpoints.disable(connection, number, "why")
        assert not endpoints.disable(connection, number, "again")
    assert finish(database, held, DeliveryState.DELIVERED) == 0
    rows = query(database, "SELECT DISTINCT state, last_error, token FROM deliveries")
    assert rows == [("dead", "the endpoint is disabled: why", None)]
    assert claim(database) == []
    with database.transaction() as connection:
        with pytest.raises(InvalidRequest, match=f"webhooks enable {number}"):
            deliveries.replay(connection, held.id)
        endpoints.enable(connection, number)
        deliveries.replay(connection, held.id)
        with pytest.raises(InvalidRequest, match="is pending"):
            deliveries.replay(connection, held.id)
        assert deliveries.replay_dead(connection, number) == 2
        with pytest.raises(DeliveryNotFound):
            deliveries.replay(connection, uuid4())
    assert {c.attempt for c in claim(database)} == {1}


def test_deliveries_and_endpoints_are_listed(database: Database) -> None:
    first, _ = add_endpoint(database, URL)
    second, _ = add_endpoint(database, f"{URL}/2")
    sent = add_events(database, first, URL, 4)
    (one, two) = claim(database, room=2)
    finish(database, one, DeliveryState.DELIVERED)
    finish(database, two, DeliveryState.DEAD)
    with database.transaction() as connection:
        counted = {e.id: (e.pending, e.delivered, e.dead) for e in endpoints.list_all(connection)}
        newest = deliveries.list_newest(connection, limit=3)
        dead = deliveries.list_newest(connection, states=[DeliveryState.DEAD])
        none = deliveries.list_newest(connection, job_id=uuid4())
        assert deliveries.get(connection, two.id).body == {"type": "job.completed"}
        with pytest.raises(DeliveryNotFound):
            deliveries.get(connection, uuid4())
    assert counted == {first: (2, 1, 1), second: (0, 0, 0)}
    assert [delivery.id for delivery in newest] == sorted(sent, reverse=True)[:3]
    assert [delivery.id for delivery in dead] == [two.id]
    assert none == []
