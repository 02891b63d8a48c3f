"""Others on the same texts, weights and cores, each in an environment of its own, with the best of its settings."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import console, print_table, stack
from benchmarks.texts import mixed_docstrings
from benchmarks.weights import MINILM
from contracts.names import Quantization
from producer import Client

SCRIPTS = Path(__file__).parent / "others"
ENVIRONMENTS = Path(".venv-peers")
OURS = ("bf16", "nf4", "ONNX int8")
TEXTS = 6_000
INSTALL_SECONDS = 900
PATIENCE = 3600


class Peer(NamedTuple):
    """Another way to compute the same."""

    name: str
    script: str
    requirements: Sequence[str] = ()
    """What its environment holds; without any it runs in this one."""


TORCH = "torch==2.13.0"  # the build for CPUs
PEERS = (
    Peer("SentenceTransformer.encode", "sentence_transformers_encode"),
    Peer("Infinity", "infinity", ("infinity-emb[torch]", TORCH)),
    Peer("Ray Data, map_batches", "ray_data", ("ray[data]", "sentence-transformers", TORCH)),
    Peer("one Celery task a text", "celery_item"),
)


def main() -> None:
    texts = mixed_docstrings(TEXTS)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bm-peers-") as folder, stack(tick_seconds=1.0) as client:
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps(texts))
        rates = _ours(client, texts)
        for peer in PEERS:
            try:
                found = _run(peer, file, {"ITEM_BROKER": str(client.settings.broker_url)})
            except (subprocess.SubprocessError, OSError) as error:
                rows.append([peer.name, "not measured", _first_line(error), ""])
            else:
                rows.append(
                    [
                        peer.name,
                        f"{found['rate']:,.0f}",
                        str(found["setting"]),
                        f"{rates['bf16'] / float(found['rate']):.2f}",
                    ]
                )
            console.print(*rows[-1])
    ours = [
        [f"batchmill, {name}", f"{rate:,.0f}", "defaults", f"{rates['bf16'] / rate:.2f}"]
        for name, rate in rates.items()
    ]
    print_table(
        f"peers: {len(texts):,} docstrings, all-MiniLM-L6-v2, two cores",
        ["", "texts/s", "best setting", "batchmill bf16, of it"],
        [*ours, *rows],
    )


def _ours(client: Client, texts: list[str]) -> dict[str, float]:
    """Texts a second from the submission to the last result read."""
    rates = {}
    for name in OURS:
        if name in list(Quantization):
            spec = client.models.add(name, str(MINILM), quantization=name)
        else:
            recipe = [{"step": "export", "format": "onnx"}, {"step": "quantize", "method": "int8"}]
            spec = client.models.get(client.compress("bf16", recipe, name="graph").wait(PATIENCE).model)
        client.submit(spec.reference, texts[:64]).wait(PATIENCE)
        client.models.invalidate(spec.reference)
        begin = time.perf_counter()
        job = client.submit(spec.reference, texts).wait(PATIENCE)
        read = sum(result.error is None for result in job.results())
        rates[name] = len(texts) / (time.perf_counter() - begin)
        if (read, job.counts.computed) != (len(texts), len(texts)):
            raise AssertionError(f"{name}: read {read} of {len(texts)}, {job.counts}")
    return rates


def _run(peer: Peer, texts: Path, variables: Mapping[str, str]) -> dict[str, float | str]:
    """What its script says last."""
    python = _python(peer)
    command = [python, str(SCRIPTS / f"{peer.script}.py"), str(MINILM), str(texts)]
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    said: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return said


def _python(peer: Peer) -> str:
    """The interpreter of its environment, made when it is first needed."""
    if not peer.requirements:
        return sys.executable
    folder = ENVIRONMENTS / peer.script
    python = folder.absolute() / "bin" / "python"
    if not (folder / ".made").exists():
        for command in (
            [sys.executable, "-m", "virtualenv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *peer.requirements],
        ):
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=INSTALL_SECONDS)
        (folder / ".made").touch()
    return str(python)


def _first_line(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
    return str(said).strip().splitlines()[-1][:120]


if __name__ == "__main__":
    main()
