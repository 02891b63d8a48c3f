import os
from pathlib import Path

import pytest

from contracts.names import COMPRESSION_POOL, DEFAULT_POOL
from contracts.settings import Settings, load_settings
from stack.programs import BEAT, COMPRESSOR, RUNNER, WEBHOOKS, WORKER, environment, programs_of
from stack.state import StackAddresses


def test_children_read_the_same_settings_wherever_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "lib")
    monkeypatch.setenv("BATCHMILL_POOL", "other")
    settings = Settings(home=Path("home"), artifacts="models", pool="fast", slots=7, lease_seconds=0.5)
    child = environment(settings)
    assert str(tmp_path / "lib") in child["PYTHONPATH"].split(os.pathsep)
    for name in list(os.environ):
        if name.startswith("BATCHMILL_"):
            monkeypatch.delenv(name)
    for name, value in child.items():
        monkeypatch.setenv(name, value)
    expected = settings.model_copy(update={"home": tmp_path / "home", "artifacts": str(tmp_path / "models")})
    assert load_settings() == expected


@pytest.mark.parametrize(
    ("given", "ports"), [(None, set()), (0, {"0"}), (9108, {"9108", "9109", "9110", "9111", "9112"})]
)
def test_each_program_has_a_port_of_its_own_for_its_probes(tmp_path: Path, given: int | None, ports: set[str]) -> None:
    settings = Settings(home=tmp_path, flower_port=0, metrics_port=given)
    programs = programs_of(settings, StackAddresses("postgresql:///a", "redis://b"))
    found = {program.name: program.environment.get("BATCHMILL_METRICS_PORT") for program in programs}
    assert {port for port in found.values() if port is not None} == ports
    if given:
        assert found == {WORKER: "9108", WEBHOOKS: "9109", BEAT: "9110", COMPRESSOR: "9111", RUNNER: "9112"}


def test_the_worker_comes_before_beat_and_is_told_where_everything_is(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, flower_port=0)
    programs = programs_of(settings, StackAddresses("postgresql:///a", "redis://b"))
    assert [program.name for program in programs] == [WORKER, BEAT, WEBHOOKS, RUNNER, COMPRESSOR]
    for program in programs:
        role = {WEBHOOKS: "webhooks", RUNNER: "producer"}.get(program.name, "worker")
        assert program.environment["BATCHMILL_DATABASE_URL"] == f"postgresql://batchmill_{role}@/a"
        assert program.environment["BATCHMILL_BROKER_URL"] == "redis://b"
        assert program.environment["BATCHMILL_ARTIFACTS"] == settings.artifacts_url
    pools = {program.name: program.environment["BATCHMILL_POOL"] for program in programs}
    assert pools[WORKER] == DEFAULT_POOL
    assert pools[COMPRESSOR] == COMPRESSION_POOL
    workers = [programs[0], programs[-1]]
    stale = [Path(worker.environment["BATCHMILL_READY_FILE"]) for worker in workers]
    stale[0].parent.mkdir()
    for worker, file in zip(workers, stale, strict=True):
        file.touch()
        worker.before()
        assert not file.exists()
    assert stale[0] != stale[1]
