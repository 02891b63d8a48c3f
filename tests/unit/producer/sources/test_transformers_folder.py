import json
import shutil
import struct
from pathlib import Path

import pytest

from contracts.errors import ModelRefused
from contracts.names import Quantization, Task
from producer.sources.transformers_folder import inspect
from tests.models import MINILM
from tests.weights import put, safetensors


@pytest.fixture
def model(tmp_path):
    """A copy of MiniLM that a test may spoil; the weights are a link until it does."""
    folder = tmp_path / "model"
    shutil.copytree(MINILM, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(MINILM / "model.safetensors")
    return folder


def modules(*names: str) -> str:
    """A modules.json; the first module is the folder itself."""
    paths = ["", *(f"{index}_{name}" for index, name in enumerate(names[1:], 1))]
    kinds = [f"sentence_transformers.models.{name}" for name in names]
    return json.dumps([{"type": kind, "path": path} for kind, path in zip(kinds, paths, strict=True)])


def look(folder: Path, quantization: Quantization = Quantization.BF16):
    return inspect(folder, Task.EMBED, quantization)


def test_a_real_model():
    facts = look(MINILM, Quantization.NONE)
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
