"""The negative controls: what each takes out of a process of the suite."""

from collections.abc import Callable

CONTROLS: dict[str, Callable[[], None]] = {}
