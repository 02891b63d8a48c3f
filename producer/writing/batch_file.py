"""Results as the output file and the error file of an OpenAI batch.

Source of the lines and bodies: OpenAI's API reference, "Batch", "Embeddings", "Chat Completions" and "Completions".
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import date
from typing import IO, Any
from uuid import UUID

import orjson
import pyarrow as pa

from contracts.errors import InvalidRequest
from contracts.models import ModelSpec
from contracts.names import Task
from contracts.sinks import BatchFileSink
from producer.writing.base import Note, Results, noting
from producer.writing.outputs import is_vector, stored_outputs
from producer.writing.places import place_of

SUFFIX = ".jsonl"
_TASKS = (Task.EMBED, Task.GENERATE)
_OPTION = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class BatchFileWriter:
    """Writes the output file, and the error file where there are errors; what was cut is written anew."""

    def __init__(self, sink: BatchFileSink, day: date | None) -> None:
        self._output = place_of(sink.url, day)
        self._errors = place_of(errors_url(sink), day)

    def check(self, model: ModelSpec, params: Mapping[str, Any], width: int | None = None) -> None:
        """See that both files can be written, and that OpenAI has such a task."""
        if model.task not in _TASKS:
            raise InvalidRequest(
                f"{self._output.name}: an OpenAI batch has no endpoint for {model.task}; write {SUFFIX} by a file sink"
            )
        for place in (self._output, self._errors):
            if not place.name.lower().endswith(SUFFIX):
                raise InvalidRequest(f"{place.name}: the files of an OpenAI batch end in {SUFFIX}")
            place.check_file()
        if self._output.path == self._errors.path:
            raise InvalidRequest(f"{self._errors.name}: the error file needs a name of its own")

    def write(self, results: Results, resume: dict[str, Any] | None, note: Note) -> int:
        """Write the files; one of an earlier run without a successor is removed."""
        schema = results.schema()
        with ExitStack() as files:
            output = files.enter_context(self._output.replacing(results.job_id))
            failed = _Lazily(files, lambda: self._errors.replacing(results.job_id))
            rows = _write(noting(results.batches(schema), note), schema, results, output, failed)
        if not failed.opened:
            self._errors.remove()
        return rows


def errors_url(sink: BatchFileSink) -> str:
    """Where the error file goes."""
    return sink.errors_url or f"{sink.url.removesuffix(SUFFIX)}.errors{SUFFIX}"


class _Lazily:
    """A file that is begun when there is something to write."""

    def __init__(self, files: ExitStack, begin: Any) -> None:
        self._files = files
        self._begin = begin
        self._stream: IO[bytes] | None = None

    @property
    def opened(self) -> bool:
        return self._stream is not None

    def write(self, data: bytes) -> None:
        if self._stream is None:
            self._stream = self._files.enter_context(self._begin())
        self._stream.write(data)


def _write(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, results: Results, output: IO[bytes], failed: _Lazily
) -> int:
    body = _Body(results.job_id, results.target.model.reference, is_vector(schema) or results.of_chats())
    rows = 0
    for batch in batches:
        rows += len(batch)
        columns = [batch.column(name).to_pylist() for name in ("position", "custom_id", "error_code", "error_message")]
        for value, position, custom_id, code, message in zip(stored_outputs(batch, schema), *columns, strict=True):
            request = f"{results.job_id.hex}{position:x}"
            response, error = None, None
            if code is None:
                response = {"status_code": 200, "request_id": f"req_{request}", "body": body.of(value, position)}
            else:
                error = {"code": code, "message": message}
            line = {
                "id": f"batch_req_{request}",
                "custom_id": str(position) if custom_id is None else custom_id,
                "response": response,
                "error": error,
            }
            (output if error is None else failed).write(orjson.dumps(line, option=_OPTION))
    return rows


class _Body:
    """Makes the bodies of responses; what they say of times is when the job was opened, so that they stay the same."""

    def __init__(self, job_id: UUID, model: str, chats: bool) -> None:
        self._job = job_id.hex
        self._created = int.from_bytes(job_id.bytes[:6]) // 1000  # a UUIDv7 begins with its milliseconds
        self._model = model
        self._chats = chats

    def of(self, output: Any, position: int) -> dict[str, Any]:
        if isinstance(output, str):
            return self._completion(orjson.loads(output), position)
        # How many tokens a text had is not kept; OpenAI's clients want the numbers to be there.
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        embedding = {"object": "embedding", "index": 0, "embedding": output}
        return {"object": "list", "data": [embedding], "model": self._model, "usage": usage}

    def _completion(self, output: Any, position: int) -> dict[str, Any]:
        if not isinstance(output, Mapping) or not isinstance(output.get("text"), str):
            raise InvalidRequest(
                f"item {position}: the model's output has no text, which an OpenAI batch is made of; "
                f"write {SUFFIX} by a file sink"
            )
        prompt, completion = int(output.get("prompt_tokens", 0)), int(output.get("new_tokens", 0))
        choice: dict[str, Any] = {"index": 0}
        if self._chats:
            choice["message"] = {"role": "assistant", "content": output["text"], "refusal": None}
        else:
            choice["text"] = output["text"]
        choice |= {"logprobs": None, "finish_reason": output.get("finish_reason", "stop")}
        return {
            "id": f"{'chatcmpl' if self._chats else 'cmpl'}-{self._job}{position:x}",
            "object": "chat.completion" if self._chats else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }
