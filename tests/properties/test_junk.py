"""Junk in the broker's queues: the worker throws it away, says so in a line, and computes on.

`BATCHMILL_JUNK_MESSAGES` says how much.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

import amqp
import psutil
import pytest
from kombu import Connection
from kombu.transport.pyamqp import Channel

from contracts.states import JobState
from storage.broker import TICK_QUEUE, queue
from tests.acceptance.forked import ForkedMill, add_fake
from tests.conftest import wait_until
from tests.properties import junk
from tests.properties.scale import count, say

MESSAGES = count("JUNK_MESSAGES", 2_000)
SEED = count("JUNK_SEED", 20_261_122)
QUEUES = [queue("default").name, TICK_QUEUE.name]
PORTION = 5_000
MOST_GROWTH = 100 * 2**20
"""Bytes that a worker may take more after the junk than after the first of it."""


def fill_valkey(url: str, folder: str, number: int, rng: random.Random) -> None:
    """Push junk of every kind, raw bytes among it."""
    kinds = [*junk.RAW, *junk.ENVELOPES]
    with Connection(url) as connection, connection.channel() as channel:
        for _ in range(number):
            channel.client.rpush(rng.choice(QUEUES), junk.for_redis(rng, rng.choice(kinds), folder))


class Raw(amqp.Message):
    """A message whose properties are bytes."""

    def __init__(self, properties: bytes) -> None:
        super().__init__(b"body")
        self._raw = properties

    def _serialize_properties(self) -> bytes:
        return self._raw


def fill_rabbitmq(url: str, folder: str, number: int, rng: random.Random) -> None:
    """Publish junk of every kind."""
    kinds = [*junk.ENVELOPES, *junk.PROPERTIES]
    with Connection(url) as connection:
        channel: Channel = connection.channel()
        for _ in range(number):
            kind = rng.choice(kinds)
            if kind in junk.PROPERTIES:
                published = Raw(junk.PROPERTIES[kind])
            else:
                message = junk.ENVELOPES[kind](rng, folder)
                published = amqp.Message(
                    message.body,
                    application_headers=message.headers,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                )
            try:
                channel.basic_publish(published, exchange="", routing_key=rng.choice(QUEUES))
            except amqp.exceptions.FrameSyntaxError:
                continue  # what AMQP itself cannot carry
        channel.close()


def waiting(url: str) -> int:
    with Connection(url) as connection, connection.channel() as channel:
        return sum(int(one(channel).queue_declare().message_count) for one in (queue("default"), TICK_QUEUE))


@pytest.fixture(params=["valkey", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("valkey_url" if request.param == "valkey" else "rabbitmq_url"))


@pytest.fixture
def valkey_url(make_broker: Callable[[], str]) -> str:
    return make_broker()


@pytest.mark.timeout(1800)
def test_a_worker_outlives_junk(forked: ForkedMill, broker_url: str, tmp_path: Path) -> None:
    fill = fill_rabbitmq if "amqp" in broker_url else fill_valkey
    rng = random.Random(SEED)

    def feed(messages: int) -> None:
        """In portions: a broker that is full takes no more."""
        while messages > 0:
            fill(broker_url, str(tmp_path), min(messages, PORTION), rng)
            wait_until(lambda: waiting(broker_url) < PORTION // 20, 300)
            messages -= PORTION

    with forked.client() as client:
        add_fake(client, "fake", "fake:?dimensions=2")
        worker = forked.worker()
        forked.beat()
        client.submit("fake", ["before"]).wait(300)
        feed(MESSAGES // 10)
        process = psutil.Process(worker.pid)
        memory = process.memory_info().rss
        log = len(forked.log(worker))
        began = time.monotonic()
        feed(MESSAGES - MESSAGES // 10)
        seconds = time.monotonic() - began
        job = client.submit("fake", [f"{n}" for n in range(500)]).wait(300)
        assert job.state is JobState.SUCCEEDED
        assert job.counts.computed == 500
        assert worker.poll() is None, forked.log(worker)
        grown = process.memory_info().rss - memory
        said = forked.log(worker)[log:]
        say(
            f"{MESSAGES:,} messages (seed {SEED}), read in {seconds:.0f} s: {grown / 2**20:.1f} MB more, "
            f"{len(said):,} characters of log"
        )
        assert grown < MOST_GROWTH
        assert len(said) < 20_000, said[:2_000]
        assert "were thrown away that are no tickets" in forked.log(worker)
        assert not list(tmp_path.rglob(junk.PICKLED)), "a pickle was loaded"
