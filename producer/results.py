"""Results on their way to the caller: items one by one, or as Arrow batches."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import UUID

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from contracts.jobs import JobCounts
from contracts.models import TargetSpec
from storage import pages, results
from storage.database import Database
from storage.pages import Page

PAGE_BYTES = 32 * 2**20
"""What the vectors of a page may take; Postgres ends at a gigabyte a value."""
PAGE_ITEMS = 4_000
PAGE_DOCUMENTS = 1_000
"""Items of a page whose outputs are JSON of unknown size."""
PAGES_AHEAD = 2
_SCALAR_BYTES = {"embedding": 4, "embedding_half": 2, "embedding_bits": 1}


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why an item has no output."""

    code: str
    message: str


@dataclass(slots=True)  # not frozen: that would double the cost of making one
class Result:
    """What a job says of one item."""

    position: int
    """Its place in the submission, from 0."""
    custom_id: str | None
    output: Any
    """A vector (numpy, `[d]`; uint8 of packed bits for `ubinary`) or a JSON value; None where there is an error."""
    error: ItemError | None
    cached: bool
    """Whether a shard of another job computed it."""
    truncated: bool
    """Whether the input was cut to the model's limit."""


class ResultReader:
    """Reads the results of one job in pages, so that memory stays flat.

    Args:
        database: Where they are.
        job_id: A job that is terminal.
        target: What it computed.
        counts: What it counts.
        unfinished: What to say of inputs that were not dealt with when the job ended; None when all were. Their ids are
            held in memory, eight bytes each.
    """

    def __init__(
        self, database: Database, job_id: UUID, target: TargetSpec, counts: JobCounts, unfinished: ItemError | None
    ) -> None:
        self._database = database
        self._unfinished = unfinished
        self.job_id = job_id
        self.target = target
        self._counts = counts
        self._items = counts.items
        self._column = results.output_column(target.model.task, target.params)

    def pages(self, start: int = 0) -> Iterator[Page]:
        """Columns of consecutive items from a position on, in input order; while one is used, the next are read.

        Wherever it starts, pages end at the same positions.
        """
        count = self._page_items()
        withheld = self._withheld()
        starts = iter(range(start - start % count, self._items if start < self._items else 0, count))
        with ThreadPoolExecutor(PAGES_AHEAD, "results") as reader:

            def read(number: int) -> list[Future[Page]]:
                some = islice(starts, number)
                return [reader.submit(self._page, max(at, start), at + count, withheld) for at in some]

            ahead = deque(read(PAGES_AHEAD))
            while ahead:
                page = ahead.popleft().result()
                ahead.extend(read(1))
                yield page

    def _page_items(self) -> int:
        if self._column == "output" or self._items <= PAGE_DOCUMENTS:
            return PAGE_DOCUMENTS
        row_bytes = _SCALAR_BYTES[self._column] * (self._width() or 1)
        return max(min(PAGE_ITEMS, PAGE_BYTES // row_bytes), 1)

    def _withheld(self) -> NDArray[np.int64] | None:
        if self._unfinished is None:
            return None
        with self._database.transaction() as connection:
            return pages.withheld(connection, self.job_id)

    def _width(self) -> int | None:
        if self._counts.cached + self._counts.computed == 0:
            return None
        with self._database.transaction() as connection:
            return pages.dimensions(connection, job_id=self.job_id, target_id=self.target.id, column=self._column)

    def _page(self, start: int, stop: int, withheld: NDArray[np.int64] | None) -> Page:
        with self._database.transaction() as connection:
            page = pages.read(
                connection,
                job_id=self.job_id,
                target_id=self.target.id,
                column=self._column,
                start=start,
                stop=stop,
                withheld=withheld,
            )
        if self._unfinished is not None:
            for index in np.flatnonzero(~page.present).tolist():
                page.errors[index] = page.errors[index] or (self._unfinished.code, self._unfinished.message)
        return page

    def items(self) -> Iterator[Result]:
        """Item by item, in input order."""
        for page in self.pages():
            columns = zip(
                page.positions.tolist(),
                page.custom_ids,
                page.outputs,
                page.present.tolist(),
                page.errors,
                page.cached.tolist(),
                page.truncated.tolist(),
                strict=True,
            )
            for position, custom_id, output, present, error, cached, truncated in columns:
                if isinstance(output, str):
                    output = orjson.loads(output)
                yield Result(
                    position,
                    custom_id,
                    output if present else None,
                    None if error is None else ItemError(*error),
                    cached,
                    truncated,
                )

    def of_chats(self) -> bool:
        """Whether the inputs are chats, as far as the first one tells."""
        with self._database.transaction() as connection:
            return pages.starts_with_chat(connection, self.job_id)

    def schema(self) -> pa.Schema:
        """The Arrow schema of `batches`; vectors are lists of a fixed size."""
        if self._column == "output":
            output = pa.field("output", pa.string(), metadata={"json": "1"})
        else:
            scalar = {"embedding": pa.float32(), "embedding_half": pa.float16()}.get(self._column, pa.uint8())
            output = pa.field("output", pa.list_(scalar, self._width() or 0))
        return schema_of(output)

    def batches(self, schema: pa.Schema, start: int = 0) -> Iterator[pa.RecordBatch]:
        """The same as Arrow record batches of that schema."""
        for page in self.pages(start):
            yield pa.record_batch(
                [
                    pa.array(page.positions),
                    pa.array(page.custom_ids, pa.string()),
                    _output_array(page, schema.field("output").type),
                    pa.array([error and error[0] for error in page.errors], pa.string()),
                    pa.array([error and error[1] for error in page.errors], pa.string()),
                    pa.array(page.cached),
                    pa.array(page.truncated),
                ],
                schema=schema,
            )


def schema_of(output: pa.Field) -> pa.Schema:
    """The Arrow schema of results whose outputs are such a field."""
    return pa.schema(
        [
            pa.field("position", pa.int64(), nullable=False),
            pa.field("custom_id", pa.string()),
            output,
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("cached", pa.bool_(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
        ]
    )


def _output_array(page: Page, kind: pa.DataType) -> pa.Array:
    if isinstance(page.outputs, list):
        return pa.array(page.outputs, pa.string())
    if not page.present.any():  # from arrays without a width, Arrow would divide by zero
        return pa.nulls(len(page.present), kind)
    flat = pa.array(np.ascontiguousarray(page.outputs, dtype=kind.value_type.to_pandas_dtype()).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~page.present))
