"""`client.models`: what is registered, and how it gets there."""

import hashlib

from contracts.errors import InvalidRequest
from contracts.fake import parse_fake
from contracts.models import ModelSpec
from contracts.names import DEFAULT_POOL, Quantization, Task, check_model_name, check_pool
from contracts.params import parse_task
from producer.sources import FAKE_ENGINE, inspect, resolve
from storage import models
from storage.artifacts import ArtifactStore, manifest_digest
from storage.database import Database


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
        revision: str | None = None,
        pool: str = DEFAULT_POOL,
    ) -> ModelSpec:
        """Register a model: its files are examined and copied into the artifact store.

        The same content under the same name gives the version that stands already; other content the next one.

        Args:
            name: Letters, digits, `.`, `-` and `_`.
            source: A local Hugging Face folder, an id on the hub (`org/name`), or `fake:` for tests.
            task: What it computes: `embed`; a fake computes `classify` as well.
            quantization: How workers hold its weights: `none`, `bf16`, `fp16`, or by bitsandbytes `int8`, `nf4`,
                `fp4`, `nf4-double`, `fp4-double` (block scales quantized as well). This buys memory, not speed.
            revision: Commit, tag or branch of a model on the hub; the commit it stands for is what is kept.
            pool: The workers that serve it.

        Raises:
            InvalidRequest: A name, task or quantization that does not exist.
            ModelRefused: The source is not safe to load, or not complete.
            ArtifactError: The files could not be stored.
            UnavailableError: The hub or the database does not answer.
        """
        check_model_name(name)
        check_pool(pool)
        parsed_task = parse_task(task)
        if quantization not in list(Quantization):
            raise InvalidRequest(f"quantization {quantization!r}: choose one of {', '.join(Quantization)}")
        found = resolve(str(source), revision)
        if found.folder is None:
            engine, files, memory = FAKE_ENGINE, [], parse_fake(found.source).memory
            content = hashlib.sha256(found.source.encode()).hexdigest()
        else:
            facts = inspect(found.folder, parsed_task, Quantization(quantization))
            engine, memory = facts.engine, facts.memory_bytes
            files = ArtifactStore(self._artifacts_url).add(found.folder, facts.files)
            content = manifest_digest(files)
        with self._database.transaction() as connection:
            return models.add(
                connection,
                name=name,
                source=found.source,
                revision=found.revision,
                task=parsed_task,
                quantization=quantization,
                engine=engine,
                pool=pool,
                digest=content,
                files=files,
                memory_bytes=memory,
            )

    def list(self) -> list[ModelSpec]:
        """Every registered model, by name and version."""
        with self._database.transaction() as connection:
            return models.list_all(connection)

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
