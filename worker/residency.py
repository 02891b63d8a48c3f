"""Models in memory: loaded once, pinned from claim to close, the least recently used leaves first."""

import gc
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from contracts.errors import ModelTooLarge
from contracts.models import ModelSpec
from storage.claims import Capacity, worth_loading
from storage.plans import Plan
from worker.engines.base import Engine

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Resident:
    """A model that is in memory, or on its way there."""

    model: ModelSpec
    bytes: int
    """As estimated until it is loaded, then as measured."""
    pins: int = 0
    loaded: tuple[Engine, Plan] | None = None
    failure: Exception | None = None
    """Why it could not be loaded: who waited for it hears of that, and does not try again."""
    loading: threading.Lock = field(default_factory=threading.Lock)


class ModelCache:
    """Keeps models in memory up to a limit.

    Args:
        limit: Bytes that models may take together.
        load: Loads one and tells its plan; raises a ModelError or an ArtifactError. It may ask for more bytes than the
            model is registered with, and is told whether they could be had.
        clock: In seconds.
        left: Told of each model that leaves for another.
        divisible: Whether a model that is larger than the limit can be laid over several devices; it has this one to
            itself then, but for models that are pinned.
    """

    def __init__(
        self,
        limit: int,
        load: Callable[[ModelSpec, Callable[[int], bool]], tuple[Engine, Plan]],
        clock: Callable[[], float] = time.monotonic,
        left: Callable[[ModelSpec], None] = lambda _: None,
        divisible: Callable[[ModelSpec], bool] = lambda _: False,
    ) -> None:
        self.limit = limit
        self._load = load
        self._clock = clock
        self._left = left
        self._divisible = divisible
        self._settled_at = -math.inf
        """When the model that was loaded last will have earned what loading it cost."""
        self._residents: OrderedDict[int, Resident] = OrderedDict()
        self._lock = threading.Lock()

    def capacity(self, *, idle: bool) -> Capacity:
        """What could be claimed now: models that are here, or that fit once unpinned ones have left."""
        with self._lock:
            residents = self._residents.values()
            return Capacity(
                loaded=list(self._residents),
                free_bytes=self.limit - sum(resident.bytes for resident in residents if resident.pins),
                vacant_bytes=self.limit - self._used(),
                total_bytes=self.limit,
                idle=idle,
                settled=self._clock() >= self._settled_at,
            )

    def contents(self) -> tuple[list[int], int]:
        """Ids of the models in memory, and the bytes that they take together."""
        with self._lock:
            return list(self._residents), self._used()

    def pin(self, model: ModelSpec) -> Resident:
        """Keep a model from leaving, and make room for it when it is not there yet.

        Raises:
            ModelTooLarge: It does not fit even by itself, and cannot be laid over several devices.
        """
        with self._lock:
            resident = self._residents.get(model.id)
            if resident is None:
                resident = self._residents[model.id] = Resident(model, self._make_room(model))
            self._residents.move_to_end(model.id)
            resident.pins += 1
            return resident

    def load(self, resident: Resident) -> tuple[Engine, Plan]:
        """A pinned model with its plan; the first caller loads it, the others wait.

        Raises:
            ModelError: It cannot be loaded.
            ArtifactError: Its files cannot be had.
        """
        with resident.loading:
            if resident.failure is not None:
                raise resident.failure
            if resident.loaded is None:
                # bitsandbytes' 4-bit weights stand in cycles: those that left would take memory until it is too late.
                gc.collect()
                try:
                    engine, plan = self._load(resident.model, partial(self._grow, resident))
                except Exception as error:
                    resident.failure = error
                    raise
                resident.loaded = engine, plan
                with self._lock:
                    resident.bytes = engine.memory_bytes
                    self._settled_at = self._clock() + worth_loading(plan.load_seconds or 0.0)
            return resident.loaded

    def forget(self, model_id: int) -> None:
        """Let a model leave now, so that it is loaded anew when it is needed; one that is pinned stays."""
        with self._lock:
            resident = self._residents.get(model_id)
            if resident is not None and resident.pins == 0:
                del self._residents[model_id]
                self._left(resident.model)

    def unpin(self, resident: Resident) -> None:
        """Let a model leave when its room is needed; one that could not be loaded leaves at once."""
        with self._lock:
            resident.pins -= 1
            useless = resident.failure is not None or (resident.pins == 0 and resident.loaded is None)
            if useless and self._residents.get(resident.model.id) is resident:
                del self._residents[resident.model.id]

    def _make_room(self, model: ModelSpec) -> int:
        """Let models leave until this one finds room; how much it needs here."""
        if model.memory_bytes > self.limit and not self._divisible(model):
            raise ModelTooLarge(
                f"{model.reference} needs about {model.memory_bytes:,} bytes of memory, models may take "
                f"{self.limit:,} here: quantize it further, or raise BATCHMILL_MODEL_MEMORY"
            )
        needed = min(model.memory_bytes, self.limit)
        self._leave(needed, model)
        return needed

    def _grow(self, resident: Resident, size: int) -> bool:
        """Let a pinned model have so many bytes in all, where others that are not pinned can make room for it."""
        with self._lock:
            pinned = sum(other.bytes for other in self._residents.values() if other.pins and other is not resident)
            # What it was pinned with it has, or it could be loaded nowhere.
            if size > max(self.limit - pinned, resident.bytes):
                return False
            self._leave(size - resident.bytes, resident.model)
            resident.bytes = max(resident.bytes, size)
            return True

    def _leave(self, needed: int, arriving: ModelSpec) -> None:
        """Have models that are not pinned leave until so many more bytes are free, the least recently used first."""
        used = self._used()
        for resident in list(self._residents.values()):
            if used + needed <= self.limit:
                break
            if resident.pins == 0:
                used -= resident.bytes
                del self._residents[resident.model.id]
                self._left(resident.model)
                log.info("%s leaves memory for %s", resident.model.reference, arriving.reference)

    def _used(self) -> int:
        return sum(resident.bytes for resident in self._residents.values())
