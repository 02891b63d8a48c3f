"""One attempt: sign an event as Standard Webhooks 1.0 asks, POST it, and say what came of it."""

import asyncio
import logging
import ssl
from datetime import UTC
from functools import lru_cache
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import version

import httpcore2
import httpx2
from standardwebhooks import Webhook

from contracts import callbacks
from contracts.errors import BatchmillError
from contracts.events import encode
from storage.deliveries import Claim
from storage.secrets import Keyring
from worker.webhooks.verdict import THROTTLING, Answer, retry_after

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 65_536
"""How much of an answer is read; its status is all that matters."""
_NETWORK = (
    OSError,
    ssl.SSLError,
    UnicodeError,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpx2.InvalidURL,
    httpx2.HTTPError,
)


class Sender:
    """Sends events; any number of attempts at once.

    Args:
        transport: What connections are made by.
        keyring: Decrypts the secrets.
        seconds: How long one attempt may take, from resolving the name to the end of the answer.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport, keyring: Keyring, seconds: float) -> None:
        self._seconds = seconds
        self._signer = lru_cache(maxsize=1024)(lambda sealed: Webhook(keyring.decrypt(sealed)))
        self._client = httpx2.AsyncClient(
            transport=transport,
            timeout=None,  # one limit for the whole attempt instead
            follow_redirects=False,
            trust_env=False,  # a proxy of the environment would connect to what was not checked
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"user-agent": f"batchmill/{version('batchmill')}", "accept-encoding": "identity"},
        )

    async def send(self, claim: Claim) -> Answer:
        """Try once; whatever goes wrong is in the answer."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._post(claim)
        except TimeoutError:
            return Answer(None, f"no complete answer within {self._seconds:g} s")
        except BatchmillError as error:
            return Answer(None, str(error))
        except _NETWORK as error:
            return Answer(None, _root(error))
        except Exception as error:
            log.exception("delivery %s: the attempt failed in a way that was not foreseen", claim.id)
            return Answer(None, f"unforeseen {_root(error)}")

    async def _post(self, claim: Claim) -> Answer:
        url = callbacks.parse(claim.url).url
        body = encode(claim.body)
        headers = {"content-type": "application/json", **self.sign(claim, body)}
        async with self._client.stream("POST", url, content=body, headers=headers) as response:
            size = 0
            async for part in response.aiter_raw():
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    break
        status = response.status_code
        if response.is_success:
            return Answer(status)
        wanted = retry_after(response.headers.get("retry-after"), claim.claimed_at) if status in THROTTLING else None
        return Answer(status, _phrase(status), wanted)

    def sign(self, claim: Claim, body: bytes) -> dict[str, str]:
        """The headers that let a receiver know the sender; one signature for each secret.

        Raises:
            ConfigurationError: A secret was encrypted with a key that is not at hand.
        """
        # The database's clock: that of this host may be off by more than the five minutes that receivers bear.
        moment = claim.claimed_at.astimezone(UTC)
        message_id, text = str(claim.id), body.decode()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": " ".join(
                self._signer(sealed).sign(message_id, moment, text) for sealed in claim.secrets
            ),
        }

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def _phrase(status: int) -> str:
    try:
        phrase = f"answered {status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = f"answered {status}"
    return f"{phrase}; redirects are not followed" if 300 <= status < 400 else phrase


def _root(error: BaseException) -> str:
    """What lies at the bottom: libraries say little more than that an attempt failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, httpcore2.ReadError | httpcore2.WriteError) and not str(error):
        return "the connection broke before the answer was complete"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
