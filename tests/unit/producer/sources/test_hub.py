import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.models import MINILM
from tests.weights import put, safetensors, write_gguf

COMMIT = "c" * 40


def etag(name: str) -> str:
    return name.replace("/", "-")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a snapshot needs: one repository, `org/model`, on branch `main`."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        root = self.server.folder
        files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        api, file = "/api/models/org/model", f"/org/model/resolve/{COMMIT}/"
        path = self.path.partition("?")[0]
        if not path.startswith((api, "/org/model/")):
            self.reply(404, {"X-Error-Code": "GatedRepo" if "gated" in path else "RepoNotFound"})
        elif path in (api, f"{api}/revision/main"):
            self.reply(200, {}, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": etag(name)}
                for name, content in files.items()
            ]
            self.reply(200, {}, json.dumps(tree).encode())
        elif path.startswith(file):
            name = path.removeprefix(file)
            self.server.served.add(name)
            self.reply(200, {"ETag": f'"{etag(name)}"', "X-Repo-Commit": COMMIT}, files[name])
        else:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copytree(MINILM, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    put(folder, "model.safetensors", safetensors({"a": ("F32", [10, 10], 400)}))
    put(folder, "pytorch_model.bin", b"pickle")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder, server.served, server.cache = folder, set(), tmp_path / "hub-cache"
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(hub, *calls: tuple[str, str | None, str], port: int | None = None) -> list[list[str]]:
    """What `find_model` says in a process of its own; the address of the hub is read at its import."""
    code = """
import json, sys
from contracts.errors import BatchmillError
from contracts.names import Quantization, Task
from producer.sources import find_model
for source, revision, task in json.loads(sys.argv[1]):
    try:
        found = find_model(source, Task(task), Quantization.NONE, revision)
        print(json.dumps([found.source, found.revision, str(found.folder), *found.files]))
    except BatchmillError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_ENDPOINT": f"http://127.0.0.1:{port or hub.server_port}",
        "HF_HOME": str(hub.cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", code, json.dumps(calls)]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=300).stdout
    return [json.loads(line) for line in output.splitlines()]


def test_a_model_of_the_hub_is_pinned_and_its_pickles_stay_there(hub):
    asked = [("org/model", None), ("org/model", COMMIT), ("org/model", "v9"), ("org/modle", None), ("org/gated", None)]
    found, pinned, revision, unknown, gated = ask(hub, *((*call, "embed") for call in asked))
    assert found[:2] == pinned[:2] == ["org/model", COMMIT]
    assert (Path(found[2]) / "config.json").is_symlink()  # the hub's cache is made of links
    assert "model.safetensors" in found[3:]
    assert "model.safetensors" in hub.served
    assert not {"pytorch_model.bin", "README.md"} & hub.served
    assert revision == ["ModelRefused", "org/model has no revision 'v9': give a branch, a tag or a commit"]
    assert unknown[0] == "ModelRefused"
    assert "no such model on the hub" in unknown[1]
    assert gated[0] == "ModelRefused"
    assert "accept its terms" in gated[1]


def test_all_that_a_chat_needs_is_fetched(hub):
    beside = ("chat_template.jinja", "generation_config.json", "merges.txt", "special_tokens_map.json", "vocab.json")
    for name in beside:
        put(hub.folder, name, "{}")
    put(hub.folder, "config.json", '{"architectures": ["LlamaForCausalLM"]}')
    [found] = ask(hub, ("org/model", None, "generate"))
    assert {*beside, "config.json", "tokenizer.json", "model.safetensors"} < {*found[3:]}


def test_a_gguf_file_of_the_hub_is_named(hub):
    write_gguf(hub.folder / "tiny-q4.gguf")
    write_gguf(hub.folder / "full" / "tiny-f16.gguf")
    (hub.folder / "model.safetensors").unlink()
    asked = ["org/model:tiny-q4.gguf", "org/model:full/tiny-f16.gguf", "org/model:gone.gguf", "org/model"]
    top, below, gone, unnamed = ask(hub, *((source, None, "generate") for source in asked))
    assert (top[:2], top[3:]) == ([asked[0], COMMIT], ["tiny-q4.gguf"])
    assert (below[:2], below[3:]) == ([asked[1], COMMIT], ["tiny-f16.gguf"])
    assert "org/model has no file gone.gguf" in gone[1]
    assert "GGUF files and no safetensors: name one of them, as in org/model:full/tiny-f16.gguf" in unnamed[1]
    assert {name for name in hub.served if name.endswith(".gguf")} == {"tiny-q4.gguf", "full/tiny-f16.gguf"}


def test_a_hub_out_of_reach(hub):
    ask(hub, ("org/model", None, "embed"))
    cached, unknown = ask(hub, ("org/model", None, "embed"), ("other/model", None, "embed"), port=9)
    assert cached[1] == COMMIT
    assert unknown[0] == "UnavailableError"
    assert "does not answer" in unknown[1]
    assert "give its folder" in unknown[1]


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from producer import sources, writing; import producer.reading.opening; "
        "assert not {'torch', 'transformers', 'safetensors', 'huggingface_hub', 'gguf'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_graph_is_fetched_where_there_are_no_safetensors(hub):
    for name in ("model.onnx", "model.onnx.data", "onnx/model.onnx"):
        put(hub.folder, name, "graph")
    [dense] = ask(hub, ("org/model", None, "embed"))
    assert "model.safetensors" in dense
    assert not {name for name in hub.served if "onnx" in name}
    (hub.folder / "model.safetensors").unlink()
    shutil.rmtree(hub.cache)
    [found] = ask(hub, ("org/model", None, "embed"))
    assert {name for name in found[3:] if "onnx" in name} == {"model.onnx", "model.onnx.data"}
    assert {name for name in hub.served if "onnx" in name} == {"model.onnx", "model.onnx.data"}
