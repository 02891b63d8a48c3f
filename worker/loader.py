"""How a registered model gets into memory, and its compute plan with it."""

import gc
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from contracts.errors import BatchmillError, ModelLoadFailed, describe
from contracts.models import ModelSpec, is_graph
from contracts.names import Quantization
from contracts.params import parse_params
from contracts.settings import Settings
from storage import plans
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.plans import Plan
from worker import budget
from worker.budget import Measured
from worker.device import Device, yield_to_others
from worker.engines.base import Engine
from worker.engines.registry import engine_class
from worker.hardware import Hardware
from worker.lanes import Lanes
from worker.planning import find_plan, undisturbed
from worker.variants import Variant, choices, most_bytes, stored

log = logging.getLogger(__name__)
T = TypeVar("T")
Grow = Callable[[int], bool]
"""Takes the bytes that a model is to have in all; whether they could be had."""


class ModelLoader:
    """Fetches a model's files, loads them, and measures what no worker on such a device has measured yet."""

    def __init__(self, settings: Settings, database: Database, hardware: Hardware, device: Device) -> None:
        self._settings = settings
        self._database = database
        self._hardware = hardware
        self._device = device
        self._artifacts = ArtifactStore(settings.artifacts_url)
        self._memory = {hardware.device: hardware.model_memory, **hardware.others}

    def load(self, model: ModelSpec, grow: Grow) -> tuple[Engine, Plan]:
        """A model, ready to compute.

        Args:
            model: What is registered.
            grow: Makes room for a variant that takes more than what is registered.

        Raises:
            ModelError: It cannot be loaded.
            ArtifactError: Its files are missing, or not what was registered.
            CancelledError: The process ends.
        """
        try:
            folder = self._artifacts.fetch(model.files, self._settings.cache)
            kind = engine_class(model.engine)
        except BatchmillError:
            raise
        except Exception as error:  # whatever a library raises, the job hears of it
            raise ModelLoadFailed(f"{model.reference} cannot be loaded: {describe(error)}") from error
        bench = _DeviceBench(self._device, self._hardware, model, partial(self._engine, kind, model, folder))
        with self._database.transaction() as connection:
            plan = plans.get(connection, model.id, self._kind(model))
        if plan is not None and (lack := self._lacks(plan, model)):
            log.warning("%s: the plan for %s %s: it is measured anew", model.reference, self._kind(model), lack)
            plan = None
        since = "measured before"
        if plan is None:
            since = "measured now"
            engine, plan = self._measure(model, bench, grow)
        else:
            engine, plan = self._follow(model, plan, bench, grow)
        with self._database.transaction() as connection:
            # Not sooner: some libraries pack the weights in the first pass.
            plans.note_load(connection, model.id, self._kind(model), engine.memory_bytes, bench.load_seconds)
        told = model.reference, self._kind(model), plan.dtype, plan.width, plan.tokens, plan.tokens_per_second, since
        log.info("%s on %s: %s, lanes × threads %s, %d tokens a micro-batch, %.0f tokens/s, %s", *told)
        return engine, replace(plan, load_seconds=bench.load_seconds)

    def divisible(self, model: ModelSpec) -> bool:
        """Whether a model that is too large for the device can be laid over this and others, down to the disk.

        What bitsandbytes packs has to fit into GPUs, and ONNX Runtime has one device.

        Raises:
            ModelLoadFailed: Its engine is not installed.
        """
        if not _chooses(engine_class(model.engine)) or is_graph(model.files):
            return False
        gpus = sum(size for device, size in self._memory.items() if device != "cpu")
        return model.memory_bytes <= gpus or not stored(model).quantization.packed

    def lower_ceiling(self, model: ModelSpec, tokens: int) -> None:
        """Remember for every worker on such a device that passes of more tokens run out of memory.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.transaction() as connection:
            plans.lower_ceiling(connection, model.id, self._kind(model), tokens)

    def _measure(self, model: ModelSpec, bench: "_DeviceBench", grow: Grow) -> tuple[Engine, Plan]:
        """Find the plan, and keep it."""
        found = self._choices(model)
        in_parts = self._in_parts(model)
        fitting = [variant for variant in found if in_parts or grow(most_bytes(model, variant))]
        widths = [(1, self._hardware.cores)] if in_parts else self._hardware.widths()
        if not fitting:
            fitting = [stored(model)]
            log.warning(
                "%s: in %s it would take up to %d bytes, more than models have here: it is computed in %s, slowly",
                *(model.reference, found[0].dtype, most_bytes(model, found[0]), fitting[0].dtype),
            )
        engine, plan = find_plan(bench, fitting, widths)
        with self._database.transaction() as connection:
            return engine, plans.put(connection, model.id, self._kind(model), plan)

    def _follow(self, model: ModelSpec, plan: Plan, bench: "_DeviceBench", grow: Grow) -> tuple[Engine, Plan]:
        """Load the model as the plan says, or as it is registered where there is no room for that now."""
        planned = Variant(Quantization(plan.quantization), plan.dtype, plan.lanes, plan.threads)
        if grow(plan.memory_bytes or most_bytes(model, planned)):
            return bench.load(planned), plan
        variant = replace(stored(model), lanes=plan.lanes, threads=plan.threads)
        log.warning("%s: no room for its weights in %s now, only in %s", model.reference, plan.dtype, variant.dtype)
        return bench.load(variant), replace(plan, dtype=variant.dtype, quantization=variant.quantization)

    def _choices(self, model: ModelSpec) -> list[Variant]:
        """Variants to try: engines of torch have several, all others what is registered."""
        if not _chooses(engine_class(model.engine)) or is_graph(model.files) or self._in_parts(model):
            return [stored(model)]
        return choices(model, self._hardware)

    def _lacks(self, plan: Plan, model: ModelSpec) -> str:
        """Why a plan is not for this host; nothing where it is."""
        if plan.lanes * plan.threads > self._hardware.cores:
            return f"has {plan.width} lanes × threads, and there are {self._hardware.cores} here"
        if self._hardware.lanes not in (None, plan.lanes):
            return f"has {plan.lanes} lanes, and BATCHMILL_LANES says {self._hardware.lanes}"
        known = {(variant.quantization, variant.dtype) for variant in self._choices(model)}
        known.add((stored(model).quantization, stored(model).dtype))
        if (plan.quantization, plan.dtype) not in known:
            return f"holds {plan.quantization} and computes {plan.dtype}, which this host does not"
        return ""

    def _engine(self, kind: type[Engine], model: ModelSpec, folder: Path, variant: Variant) -> Engine:
        if not _chooses(kind):
            return kind.load(model, folder, self._hardware.device)
        from worker.engines.transformer import TransformerEngine
        from worker.layout import Layout

        assert issubclass(kind, TransformerEngine)
        if self._in_parts(model):
            return kind.load(model, folder, Layout(self._memory, self._settings.cache / "offload"), variant)
        return kind.load(model, folder, self._hardware.device, variant)

    def _in_parts(self, model: ModelSpec) -> bool:
        return model.memory_bytes > self._hardware.model_memory

    def _kind(self, model: ModelSpec) -> str:
        """What its plan is kept under: in parts it is slower, and larger passes pay."""
        return f"{self._hardware.kind}, in parts" if self._in_parts(model) else self._hardware.kind


class _DeviceBench:
    """Loads variants of a model, one at a time, and measures them on the device, which computes nothing else then."""

    def __init__(self, device: Device, hardware: Hardware, model: ModelSpec, load: Callable[[Variant], Engine]) -> None:
        self.reloads = is_graph(model.files)
        self.load_seconds = 0.0
        """What the last load took."""
        self._device = device
        self._hardware = hardware
        self._model = model
        self._load = load
        self._params = parse_params(model.task, {})

    def load(self, variant: Variant) -> Engine:
        """The model, computed so."""
        # bitsandbytes' 4-bit weights stand in cycles: those that left would take memory until it is too late.
        gc.collect()
        began = time.monotonic()
        try:
            engine = _on_a_thread_that_ends(lambda: self._load(variant))
        except BatchmillError:
            raise
        except Exception as error:  # whatever a library raises, the job hears of it
            raise ModelLoadFailed(f"{self._model.reference} cannot be loaded: {describe(error)}") from error
        self.load_seconds = time.monotonic() - began
        engine.checkpoint = self._device.checkpoint
        return engine

    def glance(self, engine: Engine, threads: int) -> Measured:
        """The speed in one lane."""

        def look() -> Measured:
            with Lanes(1, threads, self._hardware.enter_lane):
                return budget.glance(engine, self._params, self._device.checkpoint)

        return self._measured(threads, look)

    def measure(self, engine: Engine, lanes: int, threads: int) -> Measured:
        """The best size of a pass in so many lanes."""

        def look() -> Measured:
            with Lanes(lanes, threads, self._hardware.enter_lane) as several:
                return budget.measure(engine, self._params, self._device.checkpoint, lanes=several)

        return self._measured(lanes * threads, look)

    def _measured(self, threads: int, look: Callable[[], Measured]) -> Measured:
        if self._hardware.on_gpu:
            return self._device.call(look)
        return undisturbed(self._model.reference, threads, lambda: self._device.call(look))


def _chooses(kind: type[Engine]) -> bool:
    """Whether an engine can be told how to hold and compute a model."""
    from worker.engines.transformer import TransformerEngine  # seconds to import, as all engines of torch

    return issubclass(kind, TransformerEngine)


def _on_a_thread_that_ends(function: Callable[[], T]) -> T:
    """Call it on a thread of its own.

    Each thread that computes with torch on a CPU keeps a team of OpenMP's threads as long as it lives. Where all teams
    together have more threads than there are cores, libgomp lets those of every team sleep between two operations, and
    the device's passes take up to twice as long: no thread but the device's may have one while that computes.
    """
    # Threads that ONNX Runtime starts take after this one, and compute: others go before them.
    with ThreadPoolExecutor(1, "load", yield_to_others) as thread:
        return thread.submit(copy_context().run, function).result()
