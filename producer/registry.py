"""`client.models`: what is registered, and how it gets there."""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from contracts.errors import InvalidRequest
from contracts.models import ModelSpec
from contracts.names import DEFAULT_POOL, FIDELITY, Quantization, Task, check_model_name, check_pool, split_reference
from contracts.params import parse_task
from producer.notebook import ModelList
from producer.sources import find_model
from storage import models, plans
from storage.artifacts import ArtifactStore, manifest_digest
from storage.database import Database
from storage.overview import Measurement, measurements


class Models:
    """The register of models."""

    def __init__(self, database: Database, artifacts_url: str) -> None:
        self._database = database
        self._artifacts_url = artifacts_url

    def add(
        self,
        name: str,
        source: str,
        *,
        task: str = Task.EMBED,
        quantization: str = Quantization.NONE,
        fidelity: float = 1.0,
        revision: str | None = None,
        pool: str = DEFAULT_POOL,
    ) -> ModelSpec:
        """Register a model: its files are examined and copied into the artifact store.

        The same content under the same name gives the version that stands already; other content the next one.

        Args:
            name: Letters, digits, `.`, `-` and `_`.
            source: A local Hugging Face folder or GGUF file, an id on the hub (`org/name`, or `org/name:file.gguf`),
                `mypackage:thing` for an engine of your own, or `fake:` for tests.
            task: What it computes: `embed`, `classify`, `rerank`, `generate` or `score`.
            quantization: How workers hold its weights: `none`, `bf16`, `fp16`, or by bitsandbytes `int8`, `nf4`,
                `fp4`, `nf4-double`, `fp4-double` (block scales quantized as well). This buys memory, not speed. Or
                `auto`: whatever is fastest on each worker's device, within its memory and the fidelity.
            fidelity: For `auto`, the least mean cosine to float32 that may be traded for speed or memory: 1 allows
                float32 alone, 0.999 `bf16` too, 0.998 `int8` and 0.97 `nf4`.
            revision: Commit, tag or branch of a model on the hub; the commit it stands for is what is kept.
            pool: The workers that serve it.

        Raises:
            InvalidRequest: A name, task or quantization that does not exist, or a fidelity that cannot be kept.
            ModelRefused: The source is not safe to load, not complete, or does not do the task.
            ArtifactError: The files could not be stored.
            UnavailableError: The hub or the database does not answer.
        """
        check_model_name(name)
        check_pool(pool)
        parsed_task = parse_task(task)
        if quantization not in list(Quantization):
            raise InvalidRequest(f"quantization {quantization!r}: choose one of {', '.join(Quantization)}")
        held = Quantization(quantization)
        if held is Quantization.AUTO:
            if not min(FIDELITY.values()) <= fidelity <= 1:
                raise InvalidRequest(f"fidelity {fidelity:g}: give {min(FIDELITY.values())} to 1, which is float32")
            held = Quantization.smallest(fidelity)
        elif fidelity != 1:
            raise InvalidRequest(f"fidelity {fidelity:g} goes with quantization 'auto': {quantization!r} has its own")
        found = find_model(str(source), parsed_task, held, revision)
        if found.folder is None:
            files, content = [], hashlib.sha256(found.source.encode()).hexdigest()
        else:
            files = ArtifactStore(self._artifacts_url).add(found.folder, found.files)
            content = manifest_digest(files)
        with self._database.transaction() as connection:
            return models.add(
                connection,
                name=name,
                source=found.source,
                revision=found.revision,
                task=parsed_task,
                quantization=quantization,
                engine=found.engine,
                pool=pool,
                digest=content,
                files=files,
                memory_bytes=found.memory_bytes,
                fidelity=fidelity,
            )

    def list(self) -> ModelList:
        """Every registered model, by name and version."""
        with self._database.transaction() as connection:
            return ModelList(models.list_all(connection))

    def describe(self, reference: str) -> tuple[ModelList, Sequence[Measurement]]:
        """The versions of `name`, oldest first, or the one of `name@version`; and what workers measured of them.

        Raises:
            UnknownModel: None is registered under it.
        """
        with self._database.transaction() as connection:
            name, version = split_reference(reference)
            versions = models.list_versions(connection, name) if version is None else []  # rejected ones too
            found = ModelList(versions or [models.get(connection, reference)])
            return found, measurements(connection, [spec.id for spec in found])

    def measure(self, reference: str) -> datetime:
        """Have every worker of the model's pool measure it anew; measurements from the returned time on are answers.

        A worker that serves the pool does so within seconds, between two shards; others when they start.

        Raises:
            UnknownModel: None is registered under it.
        """
        with self._database.transaction() as connection:
            return plans.ask(connection, models.get(connection, reference).id)

    def get(self, reference: str) -> ModelSpec:
        """The model of `name@version`, or the newest version of `name`.

        Raises:
            UnknownModel: None is registered under it.
        """
        with self._database.transaction() as connection:
            return models.get(connection, reference)

    def remove(self, reference: str) -> ModelSpec:
        """Take a model out of the register; jobs that hold it finish, and its results stay readable.

        Raises:
            UnknownModel: None is registered under it.
        """
        with self._database.transaction() as connection:
            model = models.get(connection, reference)
            models.remove(connection, model.id)
            return model

    def invalidate(self, reference: str) -> ModelSpec:
        """Begin a new epoch of a model: jobs submitted from now on compute everything afresh.

        Raises:
            UnknownModel: None is registered under it.
        """
        with self._database.transaction() as connection:
            return models.invalidate(connection, models.get(connection, reference).id)
