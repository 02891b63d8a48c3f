"""Results as the rows of a `.csv` file."""

from collections.abc import Iterable
from typing import IO

import orjson
import pyarrow as pa
import pyarrow.csv

from producer.writing.outputs import outputs_of


def write_csv(batches: Iterable[pa.RecordBatch], schema: pa.Schema, stream: IO[bytes]) -> int:
    """Write results with a header of the columns' names and return their number; the output is JSON."""
    index = schema.get_field_index("output")
    schema_of_text = schema.set(index, pa.field("output", pa.string()))
    rows = 0
    with pyarrow.csv.CSVWriter(stream, schema_of_text) as writer:
        for batch in batches:
            rows += len(batch)
            texts = [
                None if output is None else orjson.dumps(output, option=orjson.OPT_SERIALIZE_NUMPY)
                for output in outputs_of(batch, schema)
            ]
            columns = batch.columns
            columns[index] = pa.array(texts, pa.binary()).cast(pa.string())
            writer.write_batch(pa.record_batch(columns, schema=schema_of_text))
    return rows
