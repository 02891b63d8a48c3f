"""Results as the lines of a `.jsonl` file."""

from collections.abc import Iterable
from typing import IO

import orjson
import pyarrow as pa

from producer.writing.outputs import outputs_of

_PLAIN_COLUMNS = ("position", "custom_id", "error_code", "error_message", "cached", "truncated")


def write_jsonl(batches: Iterable[pa.RecordBatch], schema: pa.Schema, stream: IO[bytes]) -> int:
    """Write results as lines `{"id", "output", "error", "cached", "truncated"}` and return their number.

    The id is the caller's, or else the position.
    """
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    rows = 0
    for batch in batches:
        rows += len(batch)
        columns = [batch.column(name).to_pylist() for name in _PLAIN_COLUMNS]
        for output, position, custom_id, code, message, cached, truncated in zip(
            outputs_of(batch, schema), *columns, strict=True
        ):
            line = {
                "id": position if custom_id is None else custom_id,
                "output": output,
                "error": None if code is None else {"code": code, "message": message},
                "cached": cached,
                "truncated": truncated,
            }
            stream.write(orjson.dumps(line, option=option))
    return rows
