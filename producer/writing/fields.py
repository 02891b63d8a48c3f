"""Fields of a result that columns of a table take."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import orjson
import pyarrow as pa

from contracts.names import Task
from producer.writing.outputs import stored_outputs


class Kind(StrEnum):
    """What a field holds."""

    ID = "an id"
    TEXT = "a text"
    INTEGER = "a whole number"
    NUMBER = "a number"
    JSON = "JSON"
    VECTOR = "a vector"
    BITS = "bits"
    TIME = "a time"


_OF_OUTPUT: Mapping[Task, Mapping[str, Kind]] = {
    Task.EMBED: {},
    Task.CLASSIFY: {"label": Kind.TEXT, "score": Kind.NUMBER},
    Task.RERANK: {"index": Kind.INTEGER, "score": Kind.NUMBER},
    Task.GENERATE: {
        "text": Kind.TEXT,
        "finish_reason": Kind.TEXT,
        "prompt_tokens": Kind.INTEGER,
        "new_tokens": Kind.INTEGER,
    },
    Task.SCORE: {"log_likelihood": Kind.NUMBER, "perplexity": Kind.NUMBER, "tokens": Kind.INTEGER},
}
"""Keys of a task's output; where it is a list, of its best, which comes first."""
CONSTANT = ("model", "updated_at")
"""Fields that are the same for all rows of a transaction."""
ERRORS = ("error_code", "error_message")


def fields_of(task: Task, params: Mapping[str, Any]) -> dict[str, Kind]:
    """The fields of such a target's results, by name."""
    output = Kind.JSON
    if task is Task.EMBED:
        output = Kind.BITS if params.get("precision") == "ubinary" else Kind.VECTOR
    return {
        "id": Kind.ID,
        "output": output,
        **_OF_OUTPUT[task],
        "error_code": Kind.TEXT,
        "error_message": Kind.TEXT,
        "model": Kind.TEXT,
        "updated_at": Kind.TIME,
    }


def of_output(field: str) -> bool:
    """Whether a failed row has nothing in that field."""
    return field not in ("id", *ERRORS, *CONSTANT)


def rows_of(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, fields: Mapping[str, Kind], keep_failed: bool
) -> dict[str, list[Any]]:
    """Values of the fields that are not constant, one list each, in the order of the rows.

    Vectors are numpy arrays, JSON is text; what an output does not have is None.

    Args:
        batches: Of results.
        schema: Theirs.
        fields: Which are asked for.
        keep_failed: Whether rows with an error are among them.
    """
    found: dict[str, list[Any]] = {name: [] for name in fields if name not in CONSTANT}
    inner = [name for name in found if of_output(name) and name != "output"]
    for batch in batches:
        plain = [batch.column(name).to_pylist() for name in ("position", "custom_id", *ERRORS)]
        for output, position, custom_id, code, message in zip(stored_outputs(batch, schema), *plain, strict=True):
            if code is not None and not keep_failed:
                continue
            found["id"].append(str(position) if custom_id is None else custom_id)
            if "output" in found:
                found["output"].append(output)
            if inner:
                best = _best(output)
                for name in inner:
                    found[name].append(best.get(name))
            for name, said in zip(ERRORS, (code, message), strict=True):
                if name in found:
                    found[name].append(said)
    return found


def _best(output: str | None) -> Mapping[str, Any]:
    """The object that scalar fields are taken of; engines of others may give anything."""
    value = orjson.loads(output) if output is not None else None
    if isinstance(value, list):
        value = next(iter(value), None)
    return value if isinstance(value, dict) else {}
