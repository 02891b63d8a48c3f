"""For receivers: is this request from batchmill, as it was sent, and just now?"""

from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError as Unverified

from contracts.errors import ConfigurationError, WebhookVerificationError
from contracts.events import EventBody

_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


def verify_webhook(body: bytes | str, headers: Mapping[str, str], secret: str | Sequence[str]) -> EventBody:
    """The event that a request announces, once it is certain who sent it (Standard Webhooks 1.0).

    Requests may come more than once: those of one event share their `webhook-id`.

    >>> event = verify_webhook(request.body, request.headers, "whsec_…")  # doctest: +SKIP
    >>> event.type, event.data.id, event.data.counts.failed  # doctest: +SKIP

    Args:
        body: The request's body exactly as it arrived, before any parsing.
        headers: The request's headers, in any case.
        secret: The endpoint's secret, or several of which one will do.

    Raises:
        WebhookVerificationError: A header is missing or malformed, the time is more than five minutes off, no
            signature is right, or the body is no event. Answer 401, or 400.
        ConfigurationError: A secret is none.
    """
    verifiers = [_verifier(one) for one in ([secret] if isinstance(secret, str) else secret)]
    if not verifiers:
        raise ConfigurationError("verify_webhook was given no secret")
    signed = _signed(headers)
    failure: Exception | None = None
    for verifier in verifiers:
        try:
            verifier.verify(body, signed, json_parse=False)
            return EventBody.model_validate_json(body)
        except ValidationError:
            raise WebhookVerificationError(
                "the body is signed, but is no event that this version of batchmill knows"
            ) from None
        # The library lets through what its parsing of a malformed header or body raises.
        except (Unverified, ValueError, TypeError, AttributeError) as error:
            failure = error
    raise WebhookVerificationError(
        str(failure) if isinstance(failure, Unverified) else "the signature or the body is malformed"
    ) from None


def _signed(headers: Mapping[str, str]) -> dict[str, str]:
    """The three headers that matter."""
    try:
        found = {str(name).lower(): value for name, value in headers.items()}
    except AttributeError:
        raise WebhookVerificationError("headers is no mapping") from None
    for name in _HEADERS:
        if not isinstance(found.get(name), str):
            raise WebhookVerificationError(f"the header {name} is missing")
    return {name: found[name] for name in _HEADERS}


def _verifier(secret: str) -> Webhook:
    try:
        return Webhook(secret)
    except Exception:
        raise ConfigurationError(
            "a webhook secret is `whsec_` and base64, as `batchmill webhooks add` shows it"
        ) from None
