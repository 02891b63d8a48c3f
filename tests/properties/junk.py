"""What nobody should ever put into a queue of tickets: by kind, so that a failure can be told by its kind."""

import base64
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import orjson

from storage.broker import TICK, TICKET

PICKLED = "pickled-and-loaded"
"""A file of this name in the worker's folder would say that a pickle was loaded."""


class Bomb:
    """Makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def headers(task: Any = TICKET, **changes: Any) -> dict[str, Any]:
    """The headers of a real ticket, with changes."""
    job = str(uuid4())
    plain: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": job,
        "root_id": job,
        "parent_id": None,
        "group": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "('default',)",
        "kwargsrepr": "{}",
        "origin": "junk",
        "ignore_result": True,
    }
    return plain | changes


EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
SIGNATURE = {"task": TICKET, "args": ["default"], "kwargs": {}, "options": {"queue": "batchmill.default"}}
BLOWN_UP = zlib.compress(bytes(10_000_000))
FAR = "2999-01-01T00:00:00+00:00"


class Message:
    """One message: its body, and what surrounds it."""

    def __init__(
        self,
        body: bytes,
        headers: Any,
        content_type: Any = "application/json",
        content_encoding: Any = "utf-8",
    ) -> None:
        self.body = body
        self.headers = headers
        self.content_type = content_type
        self.content_encoding = content_encoding


def ticket(args: Any = ("default",), kwargs: Any = None, embed: Any = None, **changes: Any) -> Message:
    return Message(orjson.dumps([args, {} if kwargs is None else kwargs, embed or EMBED]), headers(**changes))


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(200))


def _words(rng: random.Random) -> str:
    return "".join(rng.choices('abc ü\x00{}[]",:.0', k=rng.randrange(40)))


def _value(rng: random.Random) -> Any:
    return rng.choice([None, True, -1, 2**63 - 1, 1.5, "", "x", "default", [], [[]], {}, {"a": [1]}, _words(rng)])


def _truncated(rng: random.Random) -> bytes:
    body = ticket().body
    return body[: rng.randrange(len(body))]


def _pickle(folder: str) -> bytes:
    return pickle.dumps(Bomb(f"{folder}/{PICKLED}"))


# Envelopes that both brokers carry.
ENVELOPES: dict[str, Callable[[random.Random, str], Message]] = {
    "noise for a body": lambda rng, _: Message(_noise(rng), headers()),
    "no headers": lambda rng, _: Message(_noise(rng), {}),
    "headers without a task": lambda rng, _: Message(ticket().body, {"a": _words(rng)}),
    "protocol 1": lambda rng, _: Message(orjson.dumps({"task": TICKET, "id": "1", "args": ["default"]}), {}),
    "an unknown task": lambda rng, _: ticket(task=f"task.{rng.randrange(10**6)}"),
    "a task of Celery's own": lambda rng, _: ticket(
        (SIGNATURE, [["default"]]), task=rng.choice(["celery.map", "celery.starmap", "celery.chord_unlock"])
    ),
    "a task that is no name": lambda rng, _: ticket(task=rng.choice([[], {}, 5, ["batchmill.ticket"], {"a": 1}])),
    "truncated JSON": lambda rng, _: Message(_truncated(rng), headers()),
    "a body that is no triple": lambda rng, _: Message(orjson.dumps(_value(rng)), headers()),
    "wrong arguments": lambda rng, _: ticket([_value(rng) for _ in range(rng.randrange(4))], {"x": _value(rng)}),
    "a pool that is none": lambda rng, _: ticket([_value(rng)]),
    "another's pool": lambda rng, _: ticket(["other"]),
    "arguments for a tick": lambda rng, _: ticket([_value(rng)], task=TICK),
    "wrong embedded": lambda rng, _: ticket(embed={"callbacks": _value(rng), "chain": _value(rng), "x": 1}),
    "a chain": lambda rng, _: ticket(embed={**EMBED, "chain": [SIGNATURE] * 3}),
    "a callback": lambda rng, _: ticket(embed={**EMBED, "callbacks": [SIGNATURE]}),
    "for later": lambda rng, _: ticket(eta=FAR),
    "too late": lambda rng, _: ticket(expires="1999-01-01T00:00:00+00:00"),
    "times that are none": lambda rng, _: ticket(eta=_value(rng), expires=_value(rng), timelimit=_value(rng)),
    "wrong headers": lambda rng, _: ticket(
        **{name: _value(rng) for name in rng.sample(sorted(headers().keys() - {"task"}), 4)}
    ),
    "an id that is none": lambda rng, _: ticket(id=rng.choice([[], {}, [1], {"a": 1}, None])),
    "huge headers": lambda rng, _: ticket(argsrepr="x" * rng.randrange(40_000), **{f"h{i}": "y" for i in range(500)}),
    "a huge body": lambda rng, _: ticket(["z" * rng.randrange(200_000)]),
    "a pickle": lambda rng, folder: Message(_pickle(folder), headers(), "application/x-python-serialize", "binary"),
    "a pickle without headers": lambda rng, folder: Message(
        _pickle(folder), {}, rng.choice(["application/x-python-serialize", "pickle", "application/json"]), "binary"
    ),
    "YAML": lambda rng, folder: Message(
        f"!!python/object/apply:builtins.open [{folder}/{PICKLED}, w]".encode(), headers(), "application/x-yaml"
    ),
    "a wrong content type": lambda rng, _: Message(ticket().body, headers(), rng.choice(["", "text/plain", "x" * 99])),
    "a wrong encoding": lambda rng, _: Message(ticket().body, headers(), "application/json", _words(rng)),
    "compressed": lambda rng, _: Message(BLOWN_UP, {**headers(), "compression": "application/x-gzip"}),
    "compressed noise": lambda rng, _: Message(
        _noise(rng), {**headers(), "compression": rng.choice(["application/x-gzip", "x", "bzip2"])}
    ),
    "nested deeply": lambda rng, _: Message(b"[" * 50_000 + b"]" * 50_000, headers()),
    "types of kombu's": lambda rng, _: Message(
        orjson.dumps([[{"__type__": rng.choice(["bytes", "datetime", "uuid", "x"]), "__value__": "x"}], {}, EMBED]),
        headers(),
    ),
}


def wrapped(message: Message, **changes: Any) -> dict[str, Any]:
    """A message as kombu keeps it in Redis."""
    properties: dict[str, Any] = {
        "correlation_id": "1",
        "reply_to": "2",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "batchmill.default"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    return {
        "body": base64.b64encode(message.body).decode(),
        "content-encoding": message.content_encoding,
        "content-type": message.content_type,
        "headers": message.headers,
        "properties": properties | changes,
    }


def _without(rng: random.Random) -> dict[str, Any]:
    whole = wrapped(ticket())
    part = rng.choice([whole, whole["properties"], whole["properties"]["delivery_info"]])
    del part[rng.choice(sorted(part))]
    return whole


def _with(rng: random.Random) -> dict[str, Any]:
    whole = wrapped(ticket())
    part = rng.choice([whole, whole["properties"], whole["properties"]["delivery_info"]])
    part[rng.choice(sorted(part))] = _value(rng)
    return whole


# Raw bytes in a list of Redis, where an envelope should be.
RAW: dict[str, Callable[[random.Random], bytes]] = {
    "noise": _noise,
    "nothing": lambda rng: b"",
    "text": lambda rng: _words(rng).encode(),
    "truncated envelopes": lambda rng: (whole := orjson.dumps(wrapped(ticket())))[: rng.randrange(len(whole))],
    "JSON that is no envelope": lambda rng: orjson.dumps(_value(rng)),
    "envelopes that lack a part": lambda rng: orjson.dumps(_without(rng)),
    "envelopes with a wrong part": lambda rng: orjson.dumps(_with(rng)),
    "one delivery tag": lambda rng: orjson.dumps(wrapped(ticket(["other"]), delivery_tag="the same")),
    "delivery tags that are none": lambda rng: orjson.dumps(
        wrapped(ticket(["other"]), delivery_tag=rng.choice([[], {}, None, 5, True, 1.5]))
    ),
    "bodies that are not base64": lambda rng: orjson.dumps({**wrapped(ticket()), "body": _words(rng)}),
    "bodies that are no text": lambda rng: orjson.dumps({**wrapped(ticket()), "body": _value(rng)}),
    "brackets": lambda rng: b"[" * 100_000,
    "a number without end": lambda rng: b"9" * 10_000,
}


def for_redis(rng: random.Random, kind: str, folder: str) -> bytes:
    """One piece of junk of a kind of RAW or ENVELOPES."""
    if kind in RAW:
        return RAW[kind](rng)
    return orjson.dumps(wrapped(ENVELOPES[kind](rng, folder)))


def _table(*fields: tuple[bytes, bytes]) -> bytes:
    body = b"".join(bytes([len(name)]) + name + value for name, value in fields)
    return struct.pack(">I", len(body)) + body


def _nested_tables(depth: int) -> bytes:
    table = _table()
    for _ in range(depth):
        table = _table((b"a", b"F" + table))
    return table


# Properties that RabbitMQ passes on and py-amqp cannot read: a bit for each that is there, then their bytes.
PROPERTIES: dict[str, bytes] = {
    "a content type that is no text": struct.pack(">H", 1 << 15) + b"\x02\xff\xfe",
    "a correlation id that is no text": struct.pack(">H", 1 << 10) + b"\x02\xff\xfe",
    "a time beyond the platform": struct.pack(">H", 1 << 13) + _table((b"x", b"T" + b"\xff" * 8)),
    "a time beyond the calendar": struct.pack(">H", 1 << 13) + _table((b"x", b"T" + struct.pack(">Q", 1 << 55))),
    "a header whose name is no text": struct.pack(">H", 1 << 13) + _table((b"\xff", b"t\x01")),
    "headers nested deeply": struct.pack(">H", 1 << 13) + _nested_tables(1500),
}
