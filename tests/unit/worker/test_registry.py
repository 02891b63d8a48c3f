import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from contracts.errors import ModelLoadFailed
from worker.engines import registry
from worker.engines.embed import EmbedEngine
from worker.engines.fake import FakeEngine

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What pyproject.toml declares is offered, whether or not the project is installed; and some that are wrong."""
    (tmp_path / "module_that_exits.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    declared = [
        *PROJECT["entry-points"][registry.GROUP].items(),
        *[("gone", "worker.engines.gone:Gone"), ("odd", "pathlib:Path"), ("ends", "module_that_exits:Engine")],
        *[("twice", "one:Engine"), ("twice", "two:Engine"), ("fake", "worker.engines.fake:FakeEngine")],
    ]
    points = EntryPoints(EntryPoint(name, value, registry.GROUP) for name, value in declared)
    monkeypatch.setattr(registry, "entry_points", lambda **select: points.select(**select))


def test_what_is_declared_is_found() -> None:
    assert registry.engine_class("fake") is FakeEngine
    assert registry.engine_class("embed") is EmbedEngine


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "imbed",
            r"'imbed' is not installed on this worker \(installed: classify, embed, ends, fake, generate, gone, ",
        ),
        ("ends", r"engine 'ends' \(module_that_exits:Engine\): SystemExit: 3"),
        ("twice", r"offered more than once: one:Engine, two:Engine; uninstall one"),
        ("gone", r"worker\.engines\.gone:Gone\): ModuleNotFoundError: No module named"),
        ("odd", r"pathlib:Path\) is not a subclass"),
    ],
)
def test_what_cannot_be_had_is_named(name: str, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        registry.engine_class(name)
