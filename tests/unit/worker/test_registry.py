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
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pyproject.toml declares is offered, whether or not the project is installed; and some that are wrong."""
    declared = PROJECT["entry-points"][registry.GROUP] | {"gone": "worker.engines.gone:Gone", "odd": "pathlib:Path"}
    points = EntryPoints(EntryPoint(name, value, registry.GROUP) for name, value in declared.items())
    monkeypatch.setattr(registry, "entry_points", lambda **select: points.select(**select))


def test_what_is_declared_is_found() -> None:
    assert registry.engine_class("fake") is FakeEngine
    assert registry.engine_class("embed") is EmbedEngine


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("imbed", r"'imbed' is not installed \(installed: classify, embed, fake, gone, generate, odd, rerank, score\)"),
        ("gone", r"worker\.engines\.gone:Gone\): ModuleNotFoundError: No module named"),
        ("odd", r"pathlib:Path\) is not a subclass"),
    ],
)
def test_what_cannot_be_had_is_named(name: str, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        registry.engine_class(name)
