import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from contracts.names import Quantization, Task
from tests.models import model_spec, variant
from tests.steps import digest, loaded, run_step
from worker.compression.artifacts import save, stored_type
from worker.engines.classify import read_labels
from worker.engines.embed import EmbedEngine
from worker.loading import load_tokenizer

NF4 = {"step": "quantize", "method": "nf4"}
PRUNE = {"step": "prune", "method": "magnitude", "keep_ratio": 0.9}


def keys(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as stored:
        return set(stored.keys())


def test_all_but_weights_and_config_is_as_it_was(encoder: Path, tmp_path: Path) -> None:
    run_step(NF4, encoder, tmp_path / "out")
    for file in encoder.rglob("*"):
        if file.is_file() and file.name not in ("model.safetensors", "config.json"):
            assert (tmp_path / "out" / file.relative_to(encoder)).read_bytes() == file.read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (encoder, tmp_path / "out"))
    assert {key: after[key] for key in before if key in after and key != "transformers_version"} == {
        key: before[key] for key in before if key in after and key != "transformers_version"
    }
    assert str(tmp_path) not in json.dumps(after)


def test_a_transformer_in_a_folder_of_its_own(encoder: Path, tmp_path: Path) -> None:
    modules = json.loads((encoder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    nested = variant(tmp_path / "nested", {"modules.json": modules}, encoder)
    inner = nested / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (nested / name).rename(inner / name)
    run_step(PRUNE, nested, tmp_path / "out")
    run_step(PRUNE, encoder, tmp_path / "flat")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    both = []
    for folder in (tmp_path / "out", tmp_path / "flat"):
        engine = EmbedEngine.load(model_spec(task="embed"), folder, "cpu")
        both.append(engine.run(engine.prepare(["The same text"], {}).rows, {}))
    assert (both[0] == both[1]).all()


def test_labels_stay_in_the_file_where_the_library_leaves_out_its_own(classifier: Path, tmp_path: Path) -> None:
    module = loaded(classifier, Task.CLASSIFY)
    module.classifier.weight.data = module.classifier.weight.data[:2]
    module.classifier.bias.data = module.classifier.bias.data[:2]
    module.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    source, copy = tmp_path / "source", tmp_path / "copy"
    module.save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    assert "id2label" not in config
    (source / "config.json").write_text(json.dumps(config | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    save(loaded(source, Task.CLASSIFY), source, copy)
    assert read_labels(copy) == ["LABEL_0", "LABEL_1"]


def test_weights_that_nobody_trained_are_not_written(encoder: Path, tmp_path: Path) -> None:
    source = variant(tmp_path / "source", {"model.safetensors": None}, encoder)
    weights = load_file(encoder / "model.safetensors")
    bare = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    save_file(bare, source / "model.safetensors", {"format": "pt"})
    for number in range(2):
        run_step(NF4, source, tmp_path / f"{number}")
    assert not any(key.startswith("pooler.") for key in keys(tmp_path / "0"))
    assert digest(tmp_path / "0") == digest(tmp_path / "1")
    run_step(NF4, encoder, tmp_path / "with")
    assert any(key.startswith("pooler.") for key in keys(tmp_path / "with"))


def test_what_is_stored_in_16_bits_stays_so(encoder: Path, tmp_path: Path) -> None:
    source = variant(tmp_path / "source", {"model.safetensors": None}, encoder)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(encoder / "model.safetensors").items()}
    weights.pop("embeddings.position_ids", None)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    assert stored_type(source, Quantization.NONE) is Quantization.BF16
    outcome = run_step(PRUNE, source, tmp_path / "out")
    assert outcome.quantization is Quantization.NONE
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"BF16"}  # noqa: SIM118
    assert loaded(tmp_path / "out").dtype == torch.float32


def test_a_gguf_file_is_unpacked(language_model: Path, speaker: Path, tmp_path: Path) -> None:
    outcome = run_step(NF4, speaker.parent, tmp_path / "out", Task.GENERATE)
    assert "unpacked from speaker" in outcome.notes[0]
    assert not list((tmp_path / "out").glob("*.gguf"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in loaded(speaker.parent, Task.GENERATE, Quantization.NF4).state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    one, other = (load_tokenizer(folder) for folder in (tmp_path / "out", language_model))
    chat = [{"role": "user", "content": "What is a spline?"}]
    assert one.apply_chat_template(chat, tokenize=False) == other.apply_chat_template(chat, tokenize=False)
    assert one("Naïve café, 12 × 3")["input_ids"] == other("Naïve café, 12 × 3")["input_ids"]
    ends = [
        json.loads((folder / "generation_config.json").read_text()) for folder in (tmp_path / "out", language_model)
    ]
    assert ends[0]["eos_token_id"] == ends[1]["eos_token_id"]


@pytest.mark.parametrize("step", [PRUNE, NF4, {"step": "prune", "method": "structured", "keep_ratio": 0.5}])
def test_equal_steps_leave_equal_bytes(encoder: Path, step: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "other"):
        run_step(step, encoder, tmp_path / name)
    assert digest(tmp_path / "one") == digest(tmp_path / "other")
