"""What the steps of a compression left, kept under the recipe up to them."""

import json
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import Connection

from contracts.compression import StepResult
from contracts.names import Quantization
from storage import compressions, results, shards
from storage.results import NewResults
from storage.shards import Lease
from storage.weights import loaded_bytes
from worker.compression.patience import PatientDatabase


class Prefixes:
    """Results of the inputs of a compression.

    Args:
        database: Where they are.
        lease: Of the compression.
    """

    def __init__(self, database: PatientDatabase, lease: Lease) -> None:
        self._database = database
        self._lease = lease

    def known(self, input_id: int) -> StepResult | None:
        """What a step left, of this job or another."""

        def read(connection: Connection) -> dict[int, Any]:
            return results.outputs(connection, self._lease.target_id, [input_id])

        found = self._database.transact(read)
        return StepResult.model_validate(found[input_id]) if found else None

    def done_by(self, input_id: int) -> UUID | None:
        """The other job that is about to give the result, where there is one."""
        return self._database.transact(lambda connection: compressions.done_by(connection, self._lease, input_id))

    def store(self, input_id: int, result: StepResult) -> None:
        """Keep what a step left; deaths before it are forgotten."""
        new = self.new(input_id, json.loads(result.model_dump_json()))

        def write(connection: Connection) -> None:
            results.insert(connection, new)
            shards.revive(connection, self._lease)

        self._database.transact(write)

    def new(self, input_id: int, output: Any) -> NewResults:
        """A result on its way into the database."""
        return NewResults(
            target_id=self._lease.target_id,
            input_ids=np.array([input_id], np.int64),
            shard_ids=results.shard_bytes(self._lease.shard_id)[None],
            truncated=np.zeros(1, np.bool_),
            outputs=[output],
        )


def loaded_size(folder: Path, result: StepResult) -> int:
    """Bytes that the weights of an artifact, which is in a folder, take when an engine has loaded them."""
    if result.format == "onnx":  # a graph, and the files beside it that hold its weights
        return sum(file.size for file in result.files if ".onnx" in PurePosixPath(file.path).name)
    weights = [file for file in result.files if file.path.endswith(".safetensors")]
    if result.quantization is not Quantization.NONE:  # they stand in the files as they will in memory
        return sum(file.size for file in weights)
    return sum(loaded_bytes(folder / file.path, result.quantization) for file in weights)
