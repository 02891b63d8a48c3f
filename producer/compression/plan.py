"""What a compression is to be, checked as far as it can be before any work: recipe, model, room."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from contracts.errors import DoesNotFit, InvalidRequest
from contracts.models import ModelSpec, is_graph
from contracts.names import COMPRESSION_POOL
from contracts.preflight import ModelSize, Needs, all_disk, most_memory, needs
from contracts.recipes import Accept, Distill, Step, check_for_task, parse_accept, parse_recipe
from producer.compression.datasets import UNREAD, Datasets
from producer.compression.suiting import Known, check_parent, suit
from storage import models, overview
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.modelfiles import read_config
from storage.workers import SeenWorker


@dataclass(frozen=True)
class Preflight:
    """What a recipe needs, and what there is."""

    needs: Needs
    """Of each step, and of the evaluation."""
    hosts: Sequence[SeenWorker]
    """Workers that compress, heard of within a minute."""

    @property
    def workers(self) -> int:
        """How many these are."""
        return len(self.hosts)

    @property
    def memory_bytes(self) -> int | None:
        """Of the one that has the most; None when there is none."""
        return max((host.memory_limit for host in self.hosts), default=None)

    @property
    def disk_bytes(self) -> int | None:
        """Free where the one writes that has the most; None when none says it."""
        return max((host.disk_free for host in self.hosts if host.disk_free is not None), default=None)

    def check(self) -> None:
        """Nothing when some worker has room, or none is known of: the one that comes looks for itself.

        Raises:
            DoesNotFit: All have less memory than a step needs, or less disk than all steps write; or none that has
                the memory for a step has the disk for it and what follows.
        """
        need = most_memory(self.needs)
        if self.memory_bytes is not None and need.memory_bytes > self.memory_bytes:
            raise DoesNotFit(
                f"the recipe does not fit: {need.title} needs about {need.memory_bytes / 1e9:.1f} GB of memory, and no "
                f"worker of the pool {COMPRESSION_POOL} has more than {self.memory_bytes / 1e9:.1f} GB; give one more, "
                "or choose a smaller model or, to distill, a smaller batch"
            )
        written = all_disk(self.needs)
        if self.disk_bytes is not None and written > self.disk_bytes:
            raise DoesNotFit(
                f"the recipe does not fit: its steps write about {written / 1e9:.1f} GB, and no worker of the pool "
                f"{COMPRESSION_POOL} has more than {self.disk_bytes / 1e9:.1f} GB free: free some space there, or set "
                "its BATCHMILL_HOME to where there is more"
            )
        for place, one in enumerate(self.needs):
            written = all_disk(self.needs[place:])
            if self.hosts and not any(host.has_room(one.memory_bytes, written) for host in self.hosts):
                raise DoesNotFit(
                    f"the recipe does not fit: {one.title} needs about {one.memory_bytes / 1e9:.1f} GB of memory, it "
                    f"and what follows write about {written / 1e9:.1f} GB, and no worker of the pool "
                    f"{COMPRESSION_POOL} has both: free some space where there is the memory"
                )


@dataclass(frozen=True)
class Plan:
    """A recipe that can be carried out, as far as is known; its data is not read yet."""

    parent: ModelSpec
    config: Mapping[str, Any]
    """The parent's `config.json`; empty where it has none."""
    steps: tuple[Step, ...]
    data: tuple[Any, ...]
    """Of each step: what the caller gave to distill, and None of others."""
    accept: Accept
    preflight: Preflight

    def read(self, datasets: Datasets) -> tuple[Step, ...]:
        """The steps, with their data in the artifact store.

        Raises:
            InvalidRequest: Data has no rows.
            InvalidInput: A row cannot be computed.
        """
        steps = tuple(
            step.model_copy(update={"data": datasets.make(f"step {number} of the recipe (distill)", given)})
            if isinstance(step, Distill)
            else step
            for number, (step, given) in enumerate(zip(self.steps, self.data, strict=True), 1)
        )
        check_for_task(steps, self.parent.task)  # once more: now it is known whether there are labels
        return steps


def make_plan(
    database: Database, store: ArtifactStore, model: str, recipe: Iterable[Any], *, accept: Any, evaluated: bool
) -> Plan:
    """Check a recipe for a model.

    Raises:
        UnknownModel: There is no such model, or none that a student is to be.
        InvalidRequest: A step cannot be done; the message names it.
        DoesNotFit: No worker that compresses has the memory that a step needs, and the disk that all write.
    """
    with database.transaction() as connection:
        parent = models.get(connection, model)
    check_parent(parent)
    given, data = _without_data(recipe)
    steps = parse_recipe(given, parent.quantization, onnx=is_graph(parent.files))
    check_for_task(steps, parent.task)
    asked = parse_accept(accept)
    if asked != Accept() and not evaluated:
        raise InvalidRequest(
            "accept asks for what is only known once the result is evaluated: give evaluate, some data"
        )
    config = read_config(store, parent)
    suited = suit(database, store, steps, Known(parent, config))
    with database.transaction() as connection:
        hosts = overview.compressors(connection)
    size = ModelSize.of_model(parent, config)
    needed = needs(suited.steps, size, parent.task, evaluated=evaluated, students=suited.students)
    preflight = Preflight(needed, hosts)
    preflight.check()
    return Plan(parent, config, suited.steps, data, asked, preflight)


def _without_data(recipe: Any) -> tuple[Any, tuple[Any, ...]]:
    """The steps with their data put aside, which is read when all else is known to be right; and that data."""
    if isinstance(recipe, (str, bytes, Mapping, BaseModel)) or not isinstance(recipe, Iterable):
        return recipe, ()  # refused by whoever parses it
    steps, data = [], []
    for step in recipe:
        found = None
        if isinstance(step, Distill):
            found = step.data
        elif isinstance(step, Mapping) and step.get("step") == "distill" and step.get("data") is not None:
            found = step["data"]
            step = {**step, "data": UNREAD}
        steps.append(dict(step) if isinstance(step, Mapping) else step)
        data.append(found)
    return steps, tuple(data)
