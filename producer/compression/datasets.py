"""Data of a recipe: whatever a caller has becomes rows in the artifact store, where every worker finds them."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from contracts.canonical import canonicalize
from contracts.errors import InvalidInput, InvalidRequest
from contracts.inputs import check_input
from contracts.models import ArtifactFile, ModelSpec
from contracts.recipes import Dataset
from producer.compression.labels import Labels
from producer.compression.rows import Row, rows_of
from storage.artifacts import ArtifactStore
from storage.database import Database

ROWS = "rows.jsonl"
UNREAD = Dataset(file=ArtifactFile(path=ROWS, sha256="0" * 64, size=0), rows=1, labelled=True)
"""Stands for data while a recipe is looked at that nothing was read for yet."""


class Datasets:
    """Makes datasets for a model.

    Args:
        database: Where jobs are, whose inputs may be asked for.
        store: Where rows are kept.
        model: What is to compute them.
        labels: What it tells; None when it is no classifier.
        max_bytes: What a line of a file may take.
    """

    def __init__(
        self, database: Database, store: ArtifactStore, model: ModelSpec, labels: Labels | None, max_bytes: int
    ) -> None:
        self._database = database
        self._store = store
        self._model = model
        self._labels = labels
        self._max_bytes = max_bytes

    def make(self, what: str, data: Any) -> Dataset:
        """Write rows into the store; equal rows are there once.

        Args:
            what: What they are for, for messages: `evaluate`, `step 2 of the recipe (distill)`.
            data: As `rows_of` takes it; a dataset is one already.

        Raises:
            InvalidRequest: It is nothing that has rows, has none, or only some of them have labels.
            InvalidInput: A row is none that the model can compute, or its label is not the model's.
            JobNotFound: There is no such job.
            ArtifactsUnavailable: The store cannot take it.
        """
        if isinstance(data, Dataset):
            return data
        try:
            rows = rows_of(self._database, data, self._max_bytes)
            with TemporaryDirectory(prefix="batchmill-") as folder:
                count, labelled = self._write(rows, Path(folder) / ROWS)
                if count == 0:
                    raise InvalidRequest("there is no row")
                (file,) = self._store.add(Path(folder), [ROWS])
        except InvalidInput as error:
            raise InvalidInput(error.reason, f"{what}: {error.where}" if error.where else what) from None
        except InvalidRequest as error:
            raise type(error)(f"{what}: {error}") from None
        return Dataset(file=file, rows=count, labelled=labelled)

    def _write(self, rows: Iterator[Row], path: Path) -> tuple[int, bool]:
        """How many there are, and whether they have labels."""
        count, labelled = 0, False
        with path.open("wb") as stream:
            for row in rows:
                line = self._line(row)
                if count and labelled is not ("label" in line):
                    has, others = ("a label", "none") if "label" in line else ("no label", "one")
                    raise InvalidInput(f"the row has {has}, and those before it have {others}", row.where)
                labelled = "label" in line
                stream.write(canonicalize(line) + b"\n")
                count += 1
        return count, labelled

    def _line(self, row: Row) -> dict[str, Any]:
        try:
            check_input(self._model, row.input)
            if self._labels is None or row.label is None:  # labels mean nothing to others
                return {"input": row.input}
            return {"input": row.input, "label": self._labels.parse(row.label)}
        except InvalidInput as error:
            raise error.at(row.where) from None
