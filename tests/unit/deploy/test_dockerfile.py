"""The images as the Dockerfile describes them; nothing is built."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[3]
TARGETS = ("client", "worker")


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """By name: a stage's instructions, those of the stages that it is made of first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for step in DockerfileParser(path=str(ROOT / "Dockerfile")).structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "FROM":
            source, _, name = value.partition(" AS ")
            found[name] = list(found.get(source, []))
        if instruction != "COMMENT":
            found[name].append((instruction, value))
    return found


def values(steps: Iterable[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in steps if name == instruction]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_in_particular_from_a_pinned_base(
    stages: dict[str, list[tuple[str, str]]], target: str
) -> None:
    steps = stages[target]
    assert values(steps, "USER")[-1] == "10001:10001"
    base = values(steps, "FROM")[0]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+ AS base", base)
    assert base.split()[0] == values(stages["build"], "FROM")[0].split()[0]  # or the packages would not fit
    assert len(values(steps, "HEALTHCHECK")) == 1
    assert json.loads(values(steps, "CMD")[-1])[0] == "batchmill"
    assert "org.opencontainers.image.version" in "".join(values(steps, "LABEL"))


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_holds_what_was_installed_and_not_what_installed_it(
    stages: dict[str, list[tuple[str, str]]], target: str
) -> None:
    steps = stages[target]
    assert not any("pip " in run or "apt-get" in run for run in values(steps, "RUN"))
    (copied,) = values(steps, "COPY")
    build = "build" if target == "client" else "build-worker"
    assert copied == f"--from={build} /opt/batchmill /opt/batchmill"
    installs = [run for run in values(stages[build], "RUN") if "pip install" in run]
    assert ("[worker]" in " ".join(installs)) is (target == "worker")
    environment = " ".join(values(stages[build], "ENV"))
    assert "PIP_CONSTRAINT=/src/constraints.txt" in environment
    assert "PIP_ONLY_BINARY=:all:" in environment


def test_nothing_is_fetched_by_the_way_and_no_secret_is_baked_in(stages: dict[str, list[tuple[str, str]]]) -> None:
    steps = [step for stage in stages.values() for step in stage]
    assert not values(steps, "ADD")
    given = " ".join(values(steps, "ENV") + values(steps, "ARG") + values(steps, "RUN")).lower()
    assert not re.search(r"password|secret|token|curl|wget", given)


def test_what_is_copied_is_let_in(stages: dict[str, list[tuple[str, str]]]) -> None:
    copied = {name for copy in values(stages["build"], "COPY") for name in copy.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert ignored[1] == "*"
    assert all((ROOT / name).exists() for name in copied)
