from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import CompressionFailed, ModelLoadFailed
from contracts.names import Quantization, Task
from tests.distilling import distillation
from tests.models import MINILM
from worker.compression.artifacts import KINDS, save
from worker.compression.distillation.student import keep_layers, load_student
from worker.compression.order import Order
from worker.loading import load_module

IDS = torch.tensor([[101, 7592, 2088, 102]])


def order(source: Path, tmp_path: Path, task: Task = Task.EMBED, **more: Any) -> Order:
    none = Quantization.NONE
    return Order(task, source, none, source, tmp_path / "out", tmp_path / "scratch", **more)


def test_an_encoder_computes_through_the_layers_that_are_left(tmp_path: Path) -> None:
    whole = load_module(MINILM, Quantization.NONE, "cpu")
    student = load_student(distillation(student=(0, 4)), order(MINILM, tmp_path))
    assert student.config.num_hidden_layers == 2
    with torch.inference_mode():
        hidden = whole.embeddings(IDS)
        for layer in (0, 4):
            found = whole.encoder.layer[layer](hidden, None)
            hidden = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(student(IDS).last_hidden_state, hidden)
    save(student, MINILM, tmp_path / "saved")
    again = load_module(tmp_path / "saved", Quantization.NONE, "cpu")
    with torch.inference_mode():
        torch.testing.assert_close(again(IDS).last_hidden_state, hidden)


def test_a_decoder_keeps_a_cache_of_the_layers_that_are_left(language_model: Path, tmp_path: Path) -> None:
    step = distillation(student=(1,))
    student = load_student(step, order(language_model, tmp_path, Task.GENERATE))
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0]
    save(student, language_model, tmp_path / "saved")
    again = load_module(tmp_path / "saved", Quantization.NONE, "cpu", KINDS[Task.GENERATE])
    ids = torch.tensor([[5, 9, 300, 17, 42]])
    with torch.inference_mode():
        for module in (student, again):
            begun = module(ids[:, :3], use_cache=True)
            rest = module(ids[:, 3:], past_key_values=begun.past_key_values, use_cache=True)
            torch.testing.assert_close(rest.logits, student(ids).logits[:, 3:], rtol=0, atol=1e-4)


def test_what_the_config_says_of_each_layer_is_cut_with_them(language_model: Path) -> None:
    module = load_module(language_model, Quantization.NONE, "cpu", KINDS[Task.GENERATE])
    module.config.layer_types = ["sliding_attention", "full_attention"]
    keep_layers(module, (1,))
    assert module.config.layer_types == ["full_attention"]
    assert module.config.num_hidden_layers == 1


def test_a_layer_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressionFailed, match="student layer 6: bert has 6 layers, 0 to 5"):
        load_student(distillation(student=(0, 6)), order(MINILM, tmp_path))


def test_a_model_without_a_list_of_layers_is_refused(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertModel

    shared = AlbertModel(
        AlbertConfig(
            hidden_size=16,
            num_attention_heads=2,
            intermediate_size=16,
            embedding_size=8,
            vocab_size=20,
            num_hidden_layers=4,
        )
    )
    with pytest.raises(CompressionFailed, match="albert has no list of 4 equal layers"):
        keep_layers(shared, (0, 1))


def test_another_model_is_the_student_where_it_is_named(language_model: Path, tmp_path: Path) -> None:
    student = load_student(distillation(student="other@1"), order(language_model, tmp_path, student=MINILM))
    assert student.config.model_type == "bert"
    with pytest.raises(CompressionFailed, match=r"the student other@1 were not handed over"):
        load_student(distillation(student="other@1"), order(MINILM, tmp_path))


def test_a_quantized_student_is_refused(tmp_path: Path) -> None:
    packed = load_module(MINILM, Quantization.NF4, "cpu")
    save(packed, MINILM, tmp_path / "packed")
    with pytest.raises(ModelLoadFailed, match="stored as nf4"):
        load_student(distillation(), order(tmp_path / "packed", tmp_path))


def test_the_pooler_of_an_encoder_does_not_learn(tmp_path: Path) -> None:
    student = load_student(distillation(), order(MINILM, tmp_path))
    still = {name for name, weight in student.named_parameters() if not weight.requires_grad}
    assert still == {"pooler.dense.weight", "pooler.dense.bias"}
