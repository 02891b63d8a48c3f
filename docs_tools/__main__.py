"""Write each generated part of the reference into a folder, from which the pages include it."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from docs_tools import commands, errors, metrics, recipes, settings, tasks

PARTS: Mapping[str, Callable[[], str]] = {
    "commands": commands.render,
    "errors": errors.render,
    "itemcodes": errors.render_items,
    "metrics": metrics.render,
    "recipes": recipes.render,
    "settings": settings.render,
    "tasks": tasks.render,
}


def write(folder: Path) -> None:
    """Write every part as `<name>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, render in PARTS.items():
        (folder / f"{name}.md").write_text(render())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
