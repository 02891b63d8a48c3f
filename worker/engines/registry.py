"""Engines by name, from the entry points of what is installed."""

from importlib.metadata import entry_points

from contracts.errors import ModelLoadFailed
from worker.engines.base import Engine

GROUP = "batchmill.engines"


def engine_class(name: str) -> type[Engine]:
    """The engine that an installed distribution offers under the name.

    Raises:
        ModelLoadFailed: None does, or several do, or it cannot be imported, or it is no engine.
    """
    offered = entry_points(group=GROUP)
    points = {point.value: point for point in offered.select(name=name)}
    if not points:
        installed = ", ".join(sorted(offered.names)) or "none; install batchmill itself with pip"
        raise ModelLoadFailed(f"engine {name!r} is not installed on this worker (installed: {installed})")
    if len(points) > 1:
        raise ModelLoadFailed(f"engine {name!r} is offered more than once: {', '.join(sorted(points))}; uninstall one")
    [point] = points.values()
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise ModelLoadFailed(f"engine {name!r} ({point.value}): {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise ModelLoadFailed(f"engine {name!r} ({point.value}) is not a subclass of worker.engines.base.Engine")
    return found
