"""Results as a Parquet file."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from producer.writing.outputs import is_vector

_ROW_GROUP_BYTES = 32 * 1024 * 1024


def write_parquet(batches: Iterable[pa.RecordBatch], schema: pa.Schema, stream: IO[bytes]) -> int:
    """Write results in row groups of about 32 MB and return their number; equal batches give equal bytes.

    While one is compressed, the next is gathered.
    """
    rows, held = 0, 0
    pending: list[pa.RecordBatch] = []
    # Dictionaries only where values repeat: to look for repetition among floats costs more than all the rest.
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": ["error_code", "error_message"],
    }
    if is_vector(schema) and schema.field("output").type.value_type == pa.float32():
        # Exponents side by side compress, floats as they are hardly: a sixth less to store, and in less time.
        options["use_byte_stream_split"] = ["output.list.element"]
    with pq.ParquetWriter(stream, schema, **options) as writer, ThreadPoolExecutor(1, "parquet") as thread:
        written: Future[None] | None = None
        for batch in batches:
            rows += len(batch)
            held += _bytes(batch, schema)
            pending.append(batch)
            if held >= _ROW_GROUP_BYTES:
                if written is not None:
                    written.result()
                written = thread.submit(writer.write_table, pa.Table.from_batches(pending, schema))
                pending, held = [], 0
        if written is not None:
            written.result()
        if pending:
            writer.write_table(pa.Table.from_batches(pending, schema))
    return rows


def _bytes(batch: pa.RecordBatch, schema: pa.Schema) -> int:
    """What the outputs take. `nbytes` would differ between a batch and an equal one that was cut from a larger."""
    if is_vector(schema):
        kind = schema.field("output").type
        return int(len(batch) * kind.list_size * kind.value_type.bit_width // 8)
    return int(pc.sum(pc.binary_length(batch.column("output"))).as_py() or 0)
