"""The whole way on RabbitMQ; everything else runs on Valkey."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from kombu import Connection, Queue

from contracts.states import JobState
from producer import Client
from storage.broker import queue
from tests.conftest import Mill

INPUTS = 2000


@pytest.fixture
def broker_url(rabbitmq_url: str) -> str:
    return rabbitmq_url


@pytest.fixture
def client(mill: Mill) -> Iterator[Client]:
    with mill.client() as client:
        client.models.add("fake", "fake:?dimensions=8")
        yield client


@pytest.fixture
def tickets(broker_url: str) -> Iterator[Queue]:
    with Connection(broker_url) as connection, connection.channel() as channel:
        bound = queue("default")(channel)
        bound.queue_declare()
        yield bound
        bound.purge()


def waiting(tickets: Queue) -> int:
    return int(tickets.queue_declare().message_count)


def test_a_job_succeeds(mill: Mill, client: Client, tickets: Queue, eventually: Callable[..., None]) -> None:
    mill.worker()
    job = client.submit("fake", [f"{i} {'x' * (i % 300)}" for i in range(INPUTS)]).wait(60)
    assert job.state is JobState.SUCCEEDED
    assert (job.counts.computed, job.counts.failed) == (INPUTS, 0)
    outputs = np.array([result.output for result in job.results()])
    assert len(np.unique(outputs, axis=0)) == INPUTS
    eventually(lambda: waiting(tickets) == 0)


def test_tickets_that_were_lost_are_made_up_for(
    mill: Mill, client: Client, tickets: Queue, eventually: Callable[..., None]
) -> None:
    client.submit("fake", ["a first"])
    assert waiting(tickets) == 1
    tickets.purge()
    # A worker looks for lost tickets when it starts; from then on the ticks do.
    mill.worker()
    eventually(lambda: client.jobs()[0].state is JobState.SUCCEEDED)
    with Client(
        database_url=mill.environment["BATCHMILL_DATABASE_URL"], broker_url="amqp://127.0.0.1:1", home=mill.folder
    ) as cut_off:
        job = cut_off.submit("fake", [f"{i}" for i in range(INPUTS)])
    # The worker may have one more look at what waits, of its last ticket; the ticks need no such luck.
    mill.beat()
    eventually(lambda: client.job(job.id).state is JobState.SUCCEEDED)
    assert client.job(job.id).counts.computed == INPUTS
