"""How much may be in flight: a bound for all, and one for each endpoint that its answers widen and narrow.

So an endpoint that hangs holds a slot or two while the others use the rest. Pure: no clock, no I/O.
"""

from dataclasses import dataclass

START, MOST = 4, 32
"""Attempts in flight to an endpoint: at first, and once it has answered well for a while."""
TOTAL = 512
FAILING = 8
"""Failures in a row after which an endpoint is tried one delivery at a time."""


@dataclass
class _Lane:
    busy: int = 0
    limit: int = START
    failures: int = 0


class Lanes:
    """What is in flight, by endpoint."""

    fresh = START
    """What an endpoint may take that is not named by `free`."""

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}

    @property
    def free(self) -> dict[int, int]:
        """How many more each endpoint that was seen before may take."""
        return {endpoint_id: max(0, lane.limit - lane.busy) for endpoint_id, lane in self._lanes.items()}

    @property
    def room(self) -> int:
        """How many more there may be in all."""
        return TOTAL - sum(lane.busy for lane in self._lanes.values())

    def take(self, endpoint_id: int) -> None:
        """Note that an attempt begins."""
        self._lanes.setdefault(endpoint_id, _Lane()).busy += 1

    def give(self, endpoint_id: int, *, good: bool, throttled: bool = False) -> None:
        """Note that an attempt ended, whether well, and whether the endpoint asked for fewer."""
        lane = self._lanes[endpoint_id]
        lane.busy -= 1
        if good:
            lane.failures = 0
            lane.limit = min(MOST, max(START, lane.limit + 1))
            return
        lane.failures += 1
        if throttled:
            lane.limit = max(1, lane.limit // 2)
        if lane.failures >= FAILING:
            lane.limit = 1
