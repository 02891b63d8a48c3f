"""`client.webhooks`: receivers of events, their secrets, and what became of each event."""

import builtins
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from contracts import callbacks
from contracts.errors import DeliveryNotFound, InvalidRequest
from contracts.settings import Settings
from contracts.states import DeliveryState
from contracts.webhooks import Delivery, DeliveryDetail, Endpoint, EndpointSummary
from storage import deliveries, endpoints
from storage.database import Database
from storage.secrets import Keyring, new_secret

OVERLAP = timedelta(hours=24)
"""How long the secret before a rotation signs as well."""


@dataclass(frozen=True)
class NewSecret:
    """An endpoint with its secret, which is shown this once."""

    endpoint: Endpoint
    secret: str = field(repr=False)
    """`whsec_…`: what the receiver verifies requests with."""


class Webhooks:
    """The register of webhook endpoints, and the deliveries to them.

    An endpoint is named by its number or its URL.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def add(self, url: str) -> NewSecret:
        """Register a receiver, so that jobs may name it as their `callback_url`, with or without a query string.

        Raises:
            RefusedUrl: It is no https URL, or leads to an address that is not public and not permitted.
            InvalidRequest: It is registered already.
            ConfigurationError: There is no key to encrypt its secret with.
        """
        callback = callbacks.parse(url)
        callbacks.check(callback, self._settings.webhook_allow_networks)
        keyring, secret = Keyring.load(self._settings), new_secret()
        with self._database.transaction() as connection:
            return NewSecret(endpoints.add(connection, callback.url, keyring.encrypt(secret)), secret)

    def list(self) -> list[EndpointSummary]:
        """Every endpoint, with what became of its deliveries."""
        with self._database.transaction() as connection:
            return endpoints.list_all(connection)

    def get(self, endpoint: str | int) -> Endpoint:
        """One endpoint.

        Raises:
            UnknownEndpoint: There is none of that number or URL.
        """
        with self._database.transaction() as connection:
            return endpoints.get(connection, endpoint)

    def rotate(self, endpoint: str | int, *, overlap: timedelta = OVERLAP) -> NewSecret:
        """Give an endpoint a new secret; requests carry the signatures of both until the overlap is over.

        Raises:
            UnknownEndpoint: There is none of that number or URL.
            InvalidRequest: The overlap is negative.
            ConfigurationError: There is no key to encrypt the secret with.
        """
        if overlap < timedelta(0):
            raise InvalidRequest("an overlap is not negative")
        keyring, secret = Keyring.load(self._settings), new_secret()
        with self._database.transaction() as connection:
            found = endpoints.get(connection, endpoint)
            return NewSecret(endpoints.rotate(connection, found.id, keyring.encrypt(secret), overlap), secret)

    def disable(self, endpoint: str | int, *, reason: str = "by hand") -> Endpoint:
        """Send nothing there any more; what is pending is dead, and no new job may name it.

        Raises:
            UnknownEndpoint: There is none of that number or URL.
        """
        with self._database.transaction() as connection:
            found = endpoints.get(connection, endpoint)
            endpoints.disable(connection, found.id, reason)
            return endpoints.get(connection, found.id)

    def enable(self, endpoint: str | int) -> Endpoint:
        """Take an endpoint up again; what died meanwhile stays dead until it is replayed.

        Raises:
            UnknownEndpoint: There is none of that number or URL.
        """
        with self._database.transaction() as connection:
            found = endpoints.get(connection, endpoint)
            endpoints.enable(connection, found.id)
            return endpoints.get(connection, found.id)

    def deliveries(
        self, *, states: Sequence[str] = (), job: str | UUID | None = None, limit: int = 50
    ) -> builtins.list[Delivery]:
        """The newest deliveries first; those in some states or of one job only, where named.

        Raises:
            InvalidRequest: No such state, or no id of a job.
        """
        unknown = [state for state in states if state not in list(DeliveryState)]
        if unknown:
            raise InvalidRequest(f"state {unknown[0]!r}: choose among {', '.join(DeliveryState)}")
        try:
            job_id = UUID(job) if isinstance(job, str) else job
        except ValueError:
            raise InvalidRequest(f"{job!r} is no job's id; `batchmill jobs list` shows those that exist") from None
        with self._database.transaction() as connection:
            return deliveries.list_newest(
                connection, states=[DeliveryState(state) for state in states], job_id=job_id, limit=limit
            )

    def delivery(self, delivery_id: str | UUID) -> DeliveryDetail:
        """A delivery with its body.

        Raises:
            DeliveryNotFound: There is none of that id.
        """
        with self._database.transaction() as connection:
            return deliveries.get(connection, _parse(delivery_id))

    def replay(self, delivery_id: str | UUID) -> DeliveryDetail:
        """Send an event again, under the same id, with the whole schedule before it.

        Raises:
            DeliveryNotFound: There is none of that id.
            InvalidRequest: It is pending anyway, or its endpoint is disabled.
        """
        parsed = _parse(delivery_id)
        with self._database.transaction() as connection:
            deliveries.replay(connection, parsed)
            return deliveries.get(connection, parsed)

    def replay_dead(self, endpoint: str | int) -> int:
        """Send all dead events of an endpoint again; how many.

        Raises:
            UnknownEndpoint: There is none of that number or URL.
            InvalidRequest: It is disabled.
        """
        with self._database.transaction() as connection:
            found = endpoints.get(connection, endpoint)
            if found.disabled_at is not None:
                raise InvalidRequest(
                    f"webhook endpoint {found.id} is disabled: run `batchmill webhooks enable {found.id}` first"
                )
            return deliveries.replay_dead(connection, found.id)

    def reencrypt(self) -> int:
        """Put every secret under the first key of the setting `secret_key`, so that the others can go; how many.

        Raises:
            ConfigurationError: One was encrypted with a key that the setting does not hold.
        """
        keyring = Keyring.load(self._settings)
        with self._database.transaction() as connection:
            return endpoints.reencrypt(connection, keyring)


def _parse(delivery_id: str | UUID) -> UUID:
    try:
        return delivery_id if isinstance(delivery_id, UUID) else UUID(delivery_id)
    except ValueError:
        raise DeliveryNotFound(
            f"{delivery_id!r} is no delivery's id; `batchmill webhooks list` shows those that exist"
        ) from None
