"""`client.webhooks` and `batchmill webhooks`."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from typer.testing import CliRunner, Result

from contracts.errors import ConfigurationError, DeliveryNotFound, InvalidRequest, RefusedUrl, UnknownEndpoint
from producer import Client
from producer.cli.app import app
from producer.cli.session import Session
from storage.database import Database
from tests.conftest import Mill
from tests.jobs import execute, query
from tests.receiver import KEY, add_events

URL = "https://example.com/hook"


@pytest.fixture
def client(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("BATCHMILL_SECRET_KEY", KEY)
    monkeypatch.setenv("BATCHMILL_WEBHOOK_ALLOW_NETWORKS", "10.0.0.0/8")
    with mill.client() as client:
        yield client


@pytest.fixture
def batchmill(client: Client, mill: Mill) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["webhooks", *arguments], obj=Session(mill.client))

    return run


def test_a_secret_is_shown_once_and_kept_encrypted(client: Client, database: Database) -> None:
    made = client.webhooks.add("https://EXAMPLE.com/hook")
    assert made.endpoint.url == URL
    assert made.secret.startswith("whsec_")
    assert made.secret not in repr(made)
    (row,) = query(database, "SELECT secret FROM webhook_endpoints")
    assert made.secret.removeprefix("whsec_").encode() not in row.secret
    again = client.webhooks.rotate(URL, overlap=timedelta(hours=1))
    assert again.secret != made.secret
    assert again.endpoint.previous_until is not None
    assert client.webhooks.reencrypt() == 1


def test_what_is_obviously_not_public_is_refused_at_once(client: Client) -> None:
    for url in ("https://127.0.0.1/", "http://example.com:x/", "https://169.254.169.254/", "http://93.184.216.34/"):
        with pytest.raises(RefusedUrl):
            client.webhooks.add(url)
    client.webhooks.add("http://10.1.2.3/")
    with pytest.raises(InvalidRequest, match="registered already"):
        client.webhooks.add("http://10.1.2.3/")


def test_without_a_key_no_endpoint_is_made(mill: Mill) -> None:
    with mill.client() as client, pytest.raises(ConfigurationError, match="openssl rand"):
        client.webhooks.add(URL)
    with mill.client() as client:
        assert client.webhooks.list() == []


def test_wrong_names_and_states_are_said(client: Client) -> None:
    with pytest.raises(UnknownEndpoint):
        client.webhooks.disable(7)
    with pytest.raises(DeliveryNotFound):
        client.webhooks.delivery("seven")
    with pytest.raises(InvalidRequest, match="choose among pending"):
        client.webhooks.deliveries(states=["lost"])
    with pytest.raises(InvalidRequest, match="no job's id"):
        client.webhooks.deliveries(job="seven")
    with pytest.raises(InvalidRequest, match="negative"):
        client.webhooks.rotate(1, overlap=timedelta(hours=-1))


def test_the_command_line_adds_lists_shows_and_replays(batchmill: Callable[..., Result], database: Database) -> None:
    added = batchmill("add", URL)
    assert added.exit_code == 0
    assert added.stdout.startswith("whsec_")
    assert "not shown again" in added.stderr
    (row,) = query(database, "SELECT id FROM webhook_endpoints")
    dead, pending = add_events(database, row.id, URL, 2, {"type": "job.completed", "note": "ü"})
    execute(
        database,
        "UPDATE deliveries SET state = 'dead', attempt = 10, last_status = 500, last_error = 'answered 500', "
        "finished_at = now() WHERE id = :id",
        id=dead,
    )
    table = batchmill("list").stdout
    assert [line.split()[:2] for line in table.splitlines()[1:2]] == [[str(row.id), URL]]
    assert f"{dead}" in table
    assert f"{pending}" in table
    assert "answered 500" in table
    listed = json.loads(batchmill("list", "--state", "dead", "--json").stdout)
    assert [delivery["id"] for delivery in listed["deliveries"]] == [str(dead)]
    assert (listed["endpoints"][0]["pending"], listed["endpoints"][0]["dead"]) == (1, 1)
    shown = batchmill("show", str(dead)).stdout
    assert '"note": "ü"' in shown
    assert "answered 500" in shown
    assert json.loads(batchmill("show", str(dead), "--json").stdout)["attempt"] == 10

    assert batchmill("replay", str(dead)).exit_code == 0
    assert isinstance(batchmill("replay", str(dead)).exception, InvalidRequest)
    assert batchmill("replay").exit_code == 2
    assert batchmill("replay", str(dead), "--dead", URL).exit_code == 2
    assert batchmill("disable", str(row.id)).exit_code == 0
    assert "disabled: by hand" in batchmill("list").stdout
    assert isinstance(batchmill("replay", "--dead", URL).exception, InvalidRequest)
    assert batchmill("enable", URL).exit_code == 0
    assert "2 deliveries are sent again" in batchmill("replay", "--dead", URL).stderr
    rotated = batchmill("rotate", URL, "--hours", "1")
    assert rotated.stdout.startswith("whsec_")
    assert rotated.stdout != added.stdout
    assert "two secrets until" in batchmill("list").stdout
    assert json.loads(batchmill("rotate", URL, "--json").stdout)["secret"].startswith("whsec_")
    assert "of 1 endpoint are" in batchmill("reencrypt").stderr
