"""Models and targets: what is registered, and what a result is a result of."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, func, insert, null, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from contracts.canonical import CANONICAL_VERSION, canonicalize, digest
from contracts.errors import UnknownModel
from contracts.models import ArtifactFile, ModelSpec, TargetSpec
from contracts.names import split_reference
from storage.tables import models, targets

_parents = models.alias("parents")
_PARENT = (
    select(func.concat(_parents.c.name, "@", _parents.c.version))
    .where(_parents.c.id == models.c.parent_id)
    .correlate(models)
    .scalar_subquery()
    .label("parent")
)
_SPEC_COLUMNS = [_PARENT if name == "parent" else models.c[name] for name in ModelSpec.model_fields]


def _spec(row: Row[Any]) -> ModelSpec:
    return ModelSpec.model_validate(dict(row._mapping))


def add(
    connection: Connection,
    *,
    name: str,
    source: str,
    revision: str | None,
    task: str,
    quantization: str,
    engine: str,
    pool: str,
    digest: str,
    files: list[ArtifactFile],
    memory_bytes: int,
    parent_id: int | None = None,
    recipe: list[dict[str, Any]] | None = None,
    rejected: bool = False,
    fidelity: float = 1.0,
) -> ModelSpec:
    """Register the next version of a name; the same content again gives the version that stands.

    What a recipe made is a version of its own where parent, recipe or verdict differ, however equal its files are.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
    latest = connection.execute(
        select(models.c.parent_id, *_SPEC_COLUMNS)
        .where(models.c.name == name, models.c.removed_at.is_(None))
        .order_by(models.c.version.desc())
        .limit(1)
    ).first()
    if latest is not None:
        spec = _spec(latest)
        found = (spec.digest, spec.task, spec.quantization, spec.engine, spec.pool, spec.fidelity)
        made = (latest.parent_id, spec.recipe, spec.rejected)
        if found == (digest, task, quantization, engine, pool, fidelity) and made == (parent_id, recipe, rejected):
            return spec
    version = connection.execute(
        select(func.coalesce(func.max(models.c.version), 0) + 1).where(models.c.name == name)
    ).scalar_one()
    model_id = connection.execute(
        insert(models)
        .values(
            name=name,
            version=version,
            source=source,
            revision=revision,
            task=task,
            quantization=quantization,
            engine=engine,
            pool=pool,
            digest=digest,
            files=[file.model_dump() for file in files],
            memory_bytes=memory_bytes,
            parent_id=parent_id,
            recipe=null() if recipe is None else recipe,  # not the null of JSON
            rejected=rejected,
            fidelity=fidelity,
        )
        .returning(models.c.id)
    ).scalar_one()
    return by_id(connection, model_id)


def by_id(connection: Connection, model_id: int) -> ModelSpec:
    """A model, removed or not."""
    return _spec(connection.execute(select(*_SPEC_COLUMNS).where(models.c.id == model_id)).one())


def get(connection: Connection, reference: str) -> ModelSpec:
    """The model of `name@version`, or the newest version of `name` that was not rejected.

    Raises:
        UnknownModel: None is registered, it was removed, or every version was rejected.
    """
    name, version = split_reference(reference)
    query = select(*_SPEC_COLUMNS).where(models.c.name == name, models.c.removed_at.is_(None))
    if version is not None:
        query = query.where(models.c.version == version)
    row = connection.execute(query.order_by(models.c.rejected, models.c.version.desc()).limit(1)).first()
    if row is None:
        names = connection.execute(
            select(models.c.name).where(models.c.removed_at.is_(None)).distinct().order_by(models.c.name).limit(10)
        ).scalars()
        known = ", ".join(names) or "none yet; add one with client.models.add(…) or `batchmill models add`"
        raise UnknownModel(f"model {reference!r} is not registered (registered: {known})")
    if row.rejected and version is None:
        versions = ", ".join(spec.reference for spec in list_versions(connection, name))
        raise UnknownModel(
            f"model {name!r} was rejected, as it missed what was asked of it: to use it all the same, name the version "
            f"({versions})"
        )
    return _spec(row)


def list_all(connection: Connection) -> list[ModelSpec]:
    """Every registered model, by name and version."""
    query = select(*_SPEC_COLUMNS).where(models.c.removed_at.is_(None)).order_by(models.c.name, models.c.version)
    return [_spec(row) for row in connection.execute(query)]


def list_versions(connection: Connection, name: str) -> list[ModelSpec]:
    """The registered versions of a name, oldest first."""
    query = select(*_SPEC_COLUMNS).where(models.c.name == name, models.c.removed_at.is_(None))
    return [_spec(row) for row in connection.execute(query.order_by(models.c.version))]


def remove(connection: Connection, model_id: int) -> None:
    """Take a model out of the register; its results stay with the jobs that hold them."""
    connection.execute(
        update(models).where(models.c.id == model_id, models.c.removed_at.is_(None)).values(removed_at=func.now())
    )


def invalidate(connection: Connection, model_id: int) -> ModelSpec:
    """Begin a new epoch: nothing computed so far is served to jobs submitted from now on."""
    connection.execute(update(models).where(models.c.id == model_id).values(epoch=models.c.epoch + 1))
    return by_id(connection, model_id)


def fingerprint(model: ModelSpec, params: Mapping[str, Any]) -> bytes:
    """SHA-256 over everything that a result depends on."""
    return digest(
        canonicalize(
            {
                "model": model.id,
                "task": model.task.value,
                "params": dict(params),
                "engine": model.engine,
                "compute_dtype": model.quantization.least_precision,
                "canonical": CANONICAL_VERSION,
                "epoch": model.epoch,
            }
        )
    )


def find_target(connection: Connection, model: ModelSpec, params: Mapping[str, Any]) -> int | None:
    """The target of a model with these parameters at its present epoch, where it exists."""
    query = select(targets.c.id).where(targets.c.fingerprint == fingerprint(model, params))
    return connection.execute(query).scalar_one_or_none()


def make_target(connection: Connection, model: ModelSpec, params: Mapping[str, Any]) -> int:
    """The same, made when it does not exist."""
    connection.execute(
        upsert(targets)
        .values(fingerprint=fingerprint(model, params), model_id=model.id, params=dict(params), epoch=model.epoch)
        .on_conflict_do_nothing(index_elements=["fingerprint"])
    )
    target_id = find_target(connection, model, params)
    assert target_id is not None
    return target_id


def get_target(connection: Connection, target_id: int) -> TargetSpec:
    """A target with its model, removed or not."""
    row = connection.execute(
        select(targets.c.params, *_SPEC_COLUMNS).join_from(targets, models).where(targets.c.id == target_id)
    ).one()
    fields = dict(row._mapping)
    params = fields.pop("params")
    return TargetSpec(id=target_id, model=ModelSpec.model_validate(fields), params=params)
