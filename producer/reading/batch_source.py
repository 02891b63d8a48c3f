"""An OpenAI batch file as a source: requests that all ask the same of one model."""

from collections.abc import Iterator

import orjson

from contracts.errors import InvalidInput
from contracts.sources import BatchFileSource
from producer.reading.files import File
from producer.reading.lines import Entry, raw_lines
from producer.reading.reading import FilesReading
from producer.reading.requests import Request, parse_request


class BatchReading(FilesReading):
    """The requests of a batch file; the first that can be carried out says what all have to ask for.

    Raises:
        InvalidInput: The file cannot be opened, or holds no request that can be carried out.
        InvalidRequest: A pattern or folder holds files of several formats.
        ConfigurationError: The package for the URL's protocol, or for a compression, is not installed.
        UnavailableError: A server that holds it does not answer.
    """

    def __init__(self, source: BatchFileSource, max_input_bytes: int) -> None:
        super().__init__(source.url, "jsonl")
        self._max_bytes = max_input_bytes
        self._asked: Request | None = None
        asked = self._first_request()
        self.task, self.model, self.params, self.endpoint = asked.task, asked.model, asked.params, asked.endpoint
        self._stream = self._all()

    def _first_request(self) -> Request:
        problem: InvalidInput | None = None
        for entry in self._stream:
            problem = problem or entry.error
            if self._asked is not None:
                self.close()
                return self._asked
        raise problem or InvalidInput("the file holds no request", self._files[0].url)

    def _read(self, file: File) -> Iterator[Entry]:
        for raw in raw_lines(file, self._max_bytes):
            where = f"{file.name}, line {raw.number}"
            if raw.problem is not None:
                yield Entry.bad(where, raw.problem)
                continue
            try:
                request = parse_request(orjson.loads(raw.data))
                self._hold(request)
            except InvalidInput as error:
                yield Entry.bad(where, error.reason)
            except ValueError as error:
                if not raw.data.isspace():
                    yield Entry.bad(where, f"not JSON: {error}")
            else:
                yield Entry.item(where, request.custom_id, request.input)

    def _hold(self, request: Request) -> None:
        """See that a request asks for what the first one did: a job has one target.

        Raises:
            InvalidInput: It does not.
        """
        if self._asked is None:
            self._asked = request
        for name in ("endpoint", "model", "params"):
            asked, wanted = getattr(request, name), getattr(self._asked, name)
            if asked != wanted:
                raise InvalidInput(
                    f"its {_NAMES[name]} {asked!r:.80} differs from {wanted!r:.80} of the first request: "
                    "the requests of a file run as one job; put it into a file of its own"
                )


_NAMES = {"endpoint": "url", "model": "model", "params": "options"}
