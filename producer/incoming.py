"""Inputs on their way in: as lines with positions, and lines in chunks that a transaction can hold."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from contracts.canonical import canonicalize, digest
from contracts.errors import EmptyJob, InvalidInput
from contracts.inputs import check_input
from contracts.models import ModelSpec
from producer.reading.lines import Entry, check_custom_id, digits, too_long
from storage.inputs import Line

CHUNK_LINES = 10_000
CHUNK_BYTES = 32 * 2**20
CHUNK_SECONDS = 60.0
"""A transaction holds so many lines, so much canonical text, or what came in so long, whichever is reached first."""
BREATH_LINES = 50
"""After so many the reader lets others go on."""


def entries(values: Iterable[Any]) -> Iterator[Entry]:
    """Strings, lists, mappings, `(custom_id, input)` pairs and lines of files as entries; others carry an error."""
    for number, value in enumerate(values, start=1):
        match value:
            case Entry():
                yield value
            case (str() | int() as custom_id, payload) if type(value) is tuple and type(custom_id) is not bool:
                text = str(custom_id) if isinstance(custom_id, str) else digits(custom_id)
                yield Entry(f"item {number}", text, payload, None)
            case str() | list() | Mapping():
                yield Entry(f"item {number}", None, value, None)
            case _:
                kind = type(value).__name__
                reason = f"expected a string, a list, a mapping or a (custom_id, input) pair, got {kind}"
                where = f"item {number}"
                yield Entry(where, None, None, InvalidInput(reason, where))


def lines(
    source: Iterable[Entry], model: ModelSpec, on_bad: Callable[[InvalidInput], None] | None, max_bytes: int
) -> Iterator[Line]:
    """Entries for a model as lines with consecutive positions; bad ones are told to `on_bad` and left out.

    Args:
        source: What was handed over.
        model: Is to take the inputs.
        on_bad: Told of each bad one.
        max_bytes: What the canonical JSON of an input may take.

    Raises:
        InvalidInput: An entry is bad, and there is no `on_bad`.
        EmptyJob: There is no entry left.
    """
    position = 0
    for entry in source:
        try:
            line = _line(entry, position, model, max_bytes)
        except InvalidInput as error:
            if on_bad is None:
                raise
            on_bad(error)
        else:
            yield line
            position += 1
    if position == 0:
        raise EmptyJob("no inputs: a job has at least one")


def _line(entry: Entry, position: int, model: ModelSpec, max_bytes: int) -> Line:
    if entry.error is not None:
        raise entry.error
    try:
        custom_id = check_custom_id(entry.custom_id)
        value = dict(entry.value) if isinstance(entry.value, Mapping) else entry.value
        check_input(model, value)
        payload = canonicalize(value)
        if len(payload) > max_bytes:
            raise InvalidInput(too_long(len(payload), max_bytes))
    except InvalidInput as error:
        raise error.at(entry.where) from None
    return Line(position, custom_id, digest(payload), payload)


def chunks(source: Iterable[Line]) -> Iterator[list[Line]]:
    """Lines in groups that a transaction can hold."""
    chunk: list[Line] = []
    size, begun = 0, time.monotonic()
    for line in source:
        chunk.append(line)
        if len(chunk) % BREATH_LINES == 0:
            time.sleep(0)  # the thread that stores would wait 5 ms for the interpreter with each piece that it sends
        size += len(line.payload)
        # By time as well: a slow caller must not be taken for a dead one.
        if len(chunk) >= CHUNK_LINES or size >= CHUNK_BYTES or time.monotonic() - begun >= CHUNK_SECONDS:
            yield chunk
            chunk, size, begun = [], 0, time.monotonic()
    if chunk:
        yield chunk


class ContentDigest:
    """SHA-256 over what a submission is: model, parameters, and every line."""

    def __init__(self, model: ModelSpec, params: Mapping[str, Any]) -> None:
        self._hash = hashlib.sha256(canonicalize([model.id, dict(params)]))
        self.lines = 0
        """How many were taken in."""

    def update(self, chunk: Iterable[Line]) -> None:
        """Take lines in."""
        for line in chunk:
            self.lines += 1
            custom_id = b"" if line.custom_id is None else b"\x01" + line.custom_id.encode()
            self._hash.update(len(custom_id).to_bytes(4, "big") + custom_id + line.digest)

    def value(self) -> bytes:
        """The digest of what was taken in so far."""
        return self._hash.digest()
