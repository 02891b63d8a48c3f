"""compose.yaml, as Compose itself reads it: by profile and broker, and without its secrets."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.names import COMPRESSION_POOL, DEFAULT_POOL
from storage.secrets import Keyring

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "docs" / "how-to" / "production.md"
ALWAYS = {"postgres", "migrate", "beat", "deliver", "runner", "flower"}
PROFILES = {
    "redis": {"redis"},
    "rabbitmq": {"rabbitmq"},
    "cpu": {"worker"},
    "gpu": {"worker-gpu"},
    "compress": {"compressor"},
    "client": {"client"},
    "monitoring": {"prometheus", "grafana"},
}
EXAMPLE = (ROOT / ".env.example").read_text()
SECRETS = re.findall(r"^([A-Z_]+)=$", EXAMPLE, re.MULTILINE)
WORKERS = ("worker", "worker-gpu", "compressor")
OURS = ("migrate", "worker", "worker-gpu", "compressor", "beat", "deliver", "runner", "flower", "client")


@pytest.fixture(scope="session")
def compose() -> list[str]:
    """Compose as a plugin of docker or as a program; where tests must not be left out, one has to be installed."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    reason = "Compose is not installed (apt-get install docker-compose)"
    return pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


class Reader:
    """Has Compose read the file with the variables of the example."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._read: dict[str, dict[str, Any]] = {}

    def run(self, *profiles: str, without: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        filled = re.sub(r"^([A-Z_]+)=$", r"\1=canary-\1", EXAMPLE, flags=re.MULTILINE)
        lines = [line for line in filled.splitlines() if not (without and line.startswith(f"{without}="))]
        settings = {"COMPOSE_PROFILES": ",".join(profiles), **variables}
        kept = [line for line in lines if line.partition("=")[0] not in settings]
        (self._folder / ".env").write_text("\n".join([*kept, *(f"{n}={v}" for n, v in settings.items())]) + "\n")
        command = [*self._command, "--env-file", str(self._folder / ".env"), "--file", str(ROOT / "compose.yaml")]
        clean = {"PATH": os.environ["PATH"], "HOME": str(self._folder)}
        return subprocess.run([*command, "config"], env=clean, cwd=ROOT, capture_output=True, text=True, check=False)

    def services(self, *profiles: str, **variables: str) -> dict[str, Any]:
        key = f"{profiles} {variables}"
        if key not in self._read:
            done = self.run(*profiles, **variables)
            assert done.returncode == 0, done.stderr
            self._read[key] = yaml.safe_load(done.stdout)["services"]
        found = self._read[key]
        # One Compose leaves out what no profile asks for, another does not.
        return {n: s for n, s in found.items() if not s.get("profiles") or set(s["profiles"]) & set(profiles)}


@pytest.fixture(scope="session")
def read(compose: list[str], tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(compose, tmp_path_factory.mktemp("compose"))


@pytest.mark.parametrize(
    "profiles",
    [("redis", "cpu"), ("rabbitmq", "gpu"), ("redis", "cpu", "compress", "monitoring"), tuple(PROFILES)],
    ids=",".join,
)
def test_a_profile_brings_what_it_is_called_after(read: Reader, profiles: tuple[str, ...]) -> None:
    assert set(read.services(*profiles)) == ALWAYS.union(*(PROFILES[profile] for profile in profiles))


def test_both_brokers_reach_whoever_uses_them(read: Reader) -> None:
    amqp = "amqp://batchmill:${RABBITMQ_PASSWORD}@rabbitmq:5672//"
    for broker, given, url in (
        ("redis", {}, "redis://:canary-REDIS_PASSWORD@redis:6379/0"),
        ("rabbitmq", {"BROKER_URL": amqp}, "amqp://batchmill:canary-RABBITMQ_PASSWORD@rabbitmq:5672//"),
    ):
        services = read.services(broker, "cpu", "gpu", "compress", "client", **given)
        assert {services[name]["environment"]["BATCHMILL_BROKER_URL"] for name in OURS} == {url}


def test_without_a_secret_nothing_starts(read: Reader) -> None:
    text = (ROOT / "compose.yaml").read_text()
    for name in (*SECRETS, "BROKER_URL"):
        assert f"${{{name}:?set it in .env" in text
        assert not re.search(rf"\$\{{{name}[^:]|\$\{{{name}:[^?]|\${name}\b(?<!\$\${name})", text), name
    for name in ("GRAFANA_PASSWORD", "BROKER_URL"):
        refused = read.run("redis", "cpu", without=name)
        assert refused.returncode != 0
        assert "set it in .env" in refused.stderr
        assert "canary" not in refused.stdout


def test_the_guide_fills_in_every_secret(read: Reader, tmp_path: Path) -> None:
    (script,) = re.findall(r"```sh\n(cp \.env\.example .*?)```", GUIDE.read_text(), re.DOTALL)
    shutil.copy(ROOT / ".env.example", tmp_path)
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True)
    filled = dict(re.findall(r"^([A-Z_]+)=(.+)$", (tmp_path / ".env").read_text(), re.MULTILINE))
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    passwords = [filled[name] for name in SECRETS if name != "SECRET_KEY"]
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in passwords)
    assert len(set(passwords)) == len(passwords)
    Keyring([filled["SECRET_KEY"]])
    services = read.services(**filled)
    assert services["deliver"]["environment"]["BATCHMILL_SECRET_KEY"] == filled["SECRET_KEY"]


def test_no_secret_is_in_a_file_or_on_a_command_line(read: Reader) -> None:
    text = (ROOT / "compose.yaml").read_text()
    for name in re.findall(r"^ +(\w*(?:PASSWORD|SECRET_KEY)\w*): (.*)$", text, re.MULTILINE):
        assert re.fullmatch(r"\$\{\w+:\?set it in \.env\}", name[1]), name
    assert len(SECRETS) == 10
    for service in read.services(*PROFILES).values():
        told = {key: service.get(key) for key in ("command", "entrypoint", "healthcheck", "labels", "build")}
        assert "canary" not in str(told)


def test_every_service_is_confined_watched_and_started_again(read: Reader) -> None:
    services = read.services(*PROFILES)
    for name, service in services.items():
        once = name in ("migrate", "client")
        assert service["restart"] == ("no" if once else "unless-stopped"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only", False) or name == "rabbitmq", name
        assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}, name
        health = service["healthcheck"]
        assert (health.get("disable", False) or health["test"] == ["NONE"]) is once, name
        assert service["logging"]["options"]["max-size"], name
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), name
        for port in service.get("ports", ()):
            told = port if isinstance(port, str) else f"{port.get('host_ip')}:"
            assert told.startswith("127.0.0.1:"), name
    for name in OURS:
        assert services[name]["build"]["target"] == ("worker" if name in WORKERS else "client")
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_probes_ask_the_port_that_answers_them(read: Reader) -> None:
    services = read.services("redis", "cpu", "gpu", "compress")
    for name in (*WORKERS, "beat", "deliver", "runner"):
        port = services[name]["environment"]["BATCHMILL_METRICS_PORT"]
        assert f"http://127.0.0.1:{port}/readyz" in str(services[name]["healthcheck"]["test"]), name


def test_a_worker_computes_on_as_many_threads_as_it_has_cores(read: Reader) -> None:
    for given in ({}, {"WORKER_CPUS": "8", "COMPRESSOR_CPUS": "8"}):
        services = read.services("redis", "cpu", "gpu", "compress", **given)
        for name in WORKERS:
            cpus = float(services[name]["deploy"]["resources"]["limits"]["cpus"])
            assert float(services[name]["environment"]["BATCHMILL_THREADS"]) == cpus, name


def test_traces_go_where_the_environment_says(read: Reader) -> None:
    endpoint = "http://collector:4318"
    for given in ("", endpoint):
        services = read.services("redis", "cpu", "gpu", "client", OTEL_EXPORTER_OTLP_ENDPOINT=given)
        for name in ("worker", "worker-gpu", "client"):
            assert services[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == given, name


def test_what_is_mounted_stands_in_the_repository(read: Reader) -> None:
    mounted = set()
    for service in read.services(*PROFILES).values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0] if isinstance(volume, str) else volume.get("source", "")
            if "/deploy/" in source:
                mounted.add(source)
    assert len(mounted) == 4
    assert all(Path(source).exists() for source in mounted)


def test_compressions_have_workers_of_their_own(read: Reader) -> None:
    services = read.services("redis", "cpu", "compress")
    pools = {name: services[name]["environment"]["BATCHMILL_POOL"] for name in ("worker", "compressor")}
    assert pools == {"worker": DEFAULT_POOL, "compressor": COMPRESSION_POOL}
