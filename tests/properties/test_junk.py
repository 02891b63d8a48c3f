"""Junk in the broker's queues: the worker throws it away, says so in a line, and computes on.

`BATCHMILL_JUNK_MESSAGES` says how much.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import amqp
import psutil
import pytest
from kombu import Connection
from kombu.transport.pyamqp import Channel

from contracts.states import JobState
from storage.broker import TICK_QUEUE, queue
from tests.conftest import Mill, wait_until
from tests.properties import junk
from tests.properties.scale import count

MESSAGES = count("JUNK_MESSAGES", 2_000)
SEED = count("JUNK_SEED", 20_261_122)
QUEUES = [queue("default").name, TICK_QUEUE.name]
MOST_GROWTH = 100 * 2**20
"""Bytes that a worker may take more after the junk than after the first of it."""


def fill_valkey(url: str, folder: str, number: int) -> None:
    """Push junk of every kind, raw bytes among it."""
    rng = random.Random(SEED)
    kinds = [*junk.RAW, *junk.ENVELOPES]
    with Connection(url) as connection, connection.channel() as channel:
        for _ in range(number):
            channel.client.rpush(rng.choice(QUEUES), junk.for_redis(rng, rng.choice(kinds), folder))


def fill_rabbitmq(url: str, folder: str, number: int) -> None:
    """Publish junk of every kind."""
    rng = random.Random(SEED)
    with Connection(url) as connection:
        channel: Channel = connection.channel()
        for _ in range(number):
            message = junk.ENVELOPES[rng.choice(list(junk.ENVELOPES))](rng, folder)
            try:
                published = amqp.Message(
                    message.body,
                    application_headers=message.headers,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                )
                channel.basic_publish(published, exchange="", routing_key=rng.choice(QUEUES))
            except amqp.exceptions.FrameSyntaxError:
                continue  # what AMQP itself cannot carry
        channel.close()


def waiting(url: str) -> int:
    with Connection(url) as connection, connection.channel() as channel:
        return sum(int(channel.queue_declare(name, passive=True).message_count) for name in QUEUES)


@pytest.fixture(params=["valkey", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("valkey_url" if request.param == "valkey" else "rabbitmq_url"))


@pytest.fixture
def valkey_url(make_broker: Callable[[], str]) -> str:
    return make_broker()


@pytest.mark.timeout(1800)
def test_a_worker_outlives_junk(mill: Mill, broker_url: str, tmp_path: Path) -> None:
    fill: Callable[..., Any] = fill_rabbitmq if "amqp" in broker_url else fill_valkey
    with mill.client() as client:
        client.models.add("fake", "fake:?dimensions=2")
        worker = mill.worker()
        mill.beat()
        client.submit("fake", ["before"]).wait(60)
        fill(broker_url, str(tmp_path), MESSAGES // 10)
        wait_until(lambda: waiting(broker_url) < 50, 300)
        process = psutil.Process(worker.pid)
        memory = process.memory_info().rss
        log = len(mill.log(worker))
        began = time.monotonic()
        fill(broker_url, str(tmp_path), MESSAGES - MESSAGES // 10)
        wait_until(lambda: waiting(broker_url) < 50, 1200)
        seconds = time.monotonic() - began
        job = client.submit("fake", [f"{n}" for n in range(500)]).wait(60)
        assert job.state is JobState.SUCCEEDED
        assert job.counts.computed == 500
        assert worker.poll() is None, mill.log(worker)
        grown = process.memory_info().rss - memory
        said = mill.log(worker)[log:]
        print(
            f"{MESSAGES:,} messages (seed {SEED}), read in {seconds:.0f} s: {grown / 2**20:.1f} MB more, "
            f"{len(said):,} characters of log"
        )
        assert grown < MOST_GROWTH
        assert len(said) < 20_000, said[:2_000]
        assert "were thrown away that are no tickets" in mill.log(worker)
        assert not list(tmp_path.rglob(junk.PICKLED)), "a pickle was loaded"
