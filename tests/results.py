"""Results in memory, read as `producer.results.ResultReader` reads those of a job."""

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import orjson
import pyarrow as pa

from contracts.models import ModelSpec, TargetSpec
from contracts.names import Quantization, Task
from contracts.params import parse_params
from producer.results import schema_of

JOB = UUID("0199f0e4-8c00-7000-8000-000000000001")


def model_of(task: Task) -> ModelSpec:
    return ModelSpec(
        id=1,
        name="model",
        version=3,
        source="fake:",
        revision=None,
        task=task,
        quantization=Quantization.NONE,
        engine="fake",
        pool="default",
        epoch=1,
        digest="",
        files=[],
        memory_bytes=0,
    )


class StoredResults:
    """Outputs one after the other; an output of None has failed, as `too_long`.

    Args:
        outputs: A matrix, or JSON values.
        task: What made them.
        ids: The callers' ids.
        params: Of the target.
        job_id: Whose results they are.
        chats: What the inputs were.
        page: Rows of a batch.
    """

    def __init__(
        self,
        outputs: "Sequence[Any] | np.ndarray[Any, Any]",
        task: Task = Task.EMBED,
        *,
        ids: Sequence[str | None] | None = None,
        params: dict[str, Any] | None = None,
        job_id: UUID = JOB,
        chats: bool = False,
        page: int = 10,
    ) -> None:
        self.job_id = job_id
        self.target = TargetSpec(id=1, model=model_of(task), params=parse_params(task, params))
        self._outputs = outputs
        self._ids = ids or [f"id-{place}" for place in range(len(outputs))]
        self._chats = chats
        self._page = page

    def of_chats(self) -> bool:
        return self._chats

    def schema(self) -> pa.Schema:
        output = pa.field("output", pa.string(), metadata={"json": "1"})
        if self.target.model.task is Task.EMBED:
            first = next(vector for vector in self._outputs if vector is not None)
            output = pa.field("output", pa.list_(pa.from_numpy_dtype(first.dtype), len(first)))
        return schema_of(output)

    def batches(self, schema: pa.Schema, start: int = 0) -> Iterator[pa.RecordBatch]:
        count = len(self._outputs)
        for at in range(start - start % self._page, count if start < count else 0, self._page):
            yield self._batch(schema, range(max(at, start), min(at + self._page, count)))

    def _batch(self, schema: pa.Schema, places: range) -> pa.RecordBatch:
        outputs = list(self._outputs[places.start : places.stop])
        failed = [output is None for output in outputs]
        if self.target.model.task is not Task.EMBED:
            outputs = [None if output is None else orjson.dumps(output).decode() for output in outputs]
        return pa.record_batch(
            [
                pa.array(places, pa.int64()),
                pa.array([self._ids[place] for place in places], pa.string()),
                pa.array(outputs, schema.field("output").type),
                pa.array(["too_long" if f else None for f in failed], pa.string()),
                pa.array(["it is long" if f else None for f in failed], pa.string()),
                pa.array([False] * len(failed)),
                pa.array([False] * len(failed)),
            ],
            schema=schema,
        )


class Cut(Exception):
    """What ends the writing in the middle."""


class Notes:
    """What a run keeps of its writing; it is cut after so many notes.

    >>> notes = Notes(cut_after=1)
    """

    def __init__(self, cut_after: int | None = None, *, before: bool = False) -> None:
        self.kept: list[tuple[dict[str, Any], int]] = []
        self._cut_after = cut_after
        self._before = before
        """Whether the last note is lost as well, as when the process ends between the part and its note."""

    @property
    def last(self) -> dict[str, Any] | None:
        return self.kept[-1][0] if self.kept else None

    def __call__(self, written: dict[str, Any], rows: int) -> None:
        full = self._cut_after is not None and len(self.kept) + 1 >= self._cut_after
        if full and self._before:
            raise Cut
        self.kept.append((orjson.loads(orjson.dumps(written)), rows))
        if full:
            raise Cut
