import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook

from contracts.errors import ConfigurationError, WebhookVerificationError
from contracts.events import Event
from producer import verify_webhook

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"t" * 32).decode()
BODY = (
    b'{"type":"job.completed","timestamp":"2026-01-01T00:00:00Z","data":{"id":"0198c0de-0000-7000-8000-000000000000",'
    b'"state":"succeeded","model":"m@1","task":"embed","percent":null,"counts":{"items":3,"distinct":2,"failed":1},'
    b'"error_code":null,"error_message":null,"metadata":{"run":"n\xc3\xa4chtlich"},"created_at":"2026-01-01T00:00:00Z",'
    b'"finished_at":null,"links":{"job":"batchmill://jobs/0198c0de-0000-7000-8000-000000000000","retry_of":null},'
    b'"new_in_a_later_version":1}}'
)


def signed(body: bytes = BODY, *, secret: str = SECRET, age: float = 0.0) -> dict[str, str]:
    moment = datetime.now(UTC) - timedelta(seconds=age)
    return {
        "Webhook-Id": "msg_1",
        "WEBHOOK-TIMESTAMP": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", moment, body.decode()),
        "Content-Type": "application/json",
    }


@pytest.mark.parametrize("secret", [SECRET, [OTHER, SECRET], (SECRET,)])
@pytest.mark.parametrize("body", [BODY, BODY.decode()])
def test_a_request_with_a_right_signature_is_the_event(secret: Any, body: Any) -> None:
    event = verify_webhook(body, signed(), secret)
    assert event.type is Event.COMPLETED
    assert (event.data.counts.items, event.data.counts.failed) == (3, 1)
    assert event.data.metadata == {"run": "nächtlich"}


def test_one_of_several_signatures_will_do() -> None:
    headers = signed()
    headers["webhook-signature"] = f"{signed(secret=OTHER)['webhook-signature']} v2,abc {headers['webhook-signature']}"
    verify_webhook(BODY, headers, SECRET)


@pytest.mark.parametrize("age", [-400, 400])
def test_a_request_must_be_recent(age: float) -> None:
    with pytest.raises(WebhookVerificationError, match="too"):
        verify_webhook(BODY, signed(age=age), SECRET)


def test_another_body_or_secret_is_no_match() -> None:
    for body, secret in ((BODY + b" ", SECRET), (BODY, OTHER), (BODY, [OTHER])):
        with pytest.raises(WebhookVerificationError, match="No matching signature"):
            verify_webhook(body, signed(), secret)


@pytest.mark.parametrize(
    "changes",
    [
        {"webhook-id": None},
        {"webhook-id": ""},
        {"webhook-id": b"msg_1"},
        {"webhook-timestamp": None},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": "nan"},
        {"webhook-timestamp": "1e999"},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": 1_700_000_000},
        {"webhook-signature": None},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,a"},
        {"webhook-signature": "v1,é"},
        {"webhook-signature": "v1,a,b"},
        {"webhook-signature": "v1a,AAAA"},
        {"webhook-signature": " "},
        {"webhook-signature": ["v1,AAAA"]},
    ],
)
def test_every_malformed_header_is_one_error(changes: Mapping[str, Any]) -> None:
    headers: dict[str, Any] = {name.lower(): value for name, value in signed().items()} | dict(changes)
    with pytest.raises(WebhookVerificationError):
        verify_webhook(BODY, {name: value for name, value in headers.items() if value is not None}, SECRET)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"type":"unknown.event"}', b"[" * 10_000])
def test_a_signed_body_that_is_no_event_is_the_same_error(body: bytes) -> None:
    with pytest.raises(WebhookVerificationError, match="is no event"):
        verify_webhook(body, signed(body), SECRET)


@pytest.mark.parametrize("body", [b"\xff\xfe", None, 7, {"type": "job.completed"}])
def test_a_body_that_is_no_text_is_the_same_error(body: Any) -> None:
    with pytest.raises(WebhookVerificationError):
        verify_webhook(body, signed(), SECRET)


@pytest.mark.parametrize("headers", [None, 7, "webhook-id: x", [("webhook-id", "x")]])
def test_headers_that_are_no_mapping_are_the_same_error(headers: Any) -> None:
    with pytest.raises(WebhookVerificationError):
        verify_webhook(BODY, headers, SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_é", [], [SECRET, ""]])
def test_a_secret_that_is_none_is_the_receivers_own_mistake(secret: Any) -> None:
    with pytest.raises(ConfigurationError):
        verify_webhook(BODY, signed(), secret)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=200),
    st.dictionaries(
        st.sampled_from(["webhook-id", "Webhook-Timestamp", "webhook-signature", "x"]),
        st.one_of(st.text(max_size=60), st.just("v1,AAAA"), st.just(str(int(datetime.now(UTC).timestamp())))),
    ),
)
def test_nothing_else_is_ever_raised(body: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(WebhookVerificationError):
        verify_webhook(body, headers, SECRET)
