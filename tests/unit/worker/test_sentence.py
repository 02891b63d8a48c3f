import json
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ModelLoadFailed
from tests.models import MINILM, model_spec
from worker.engines.embed import EmbedEngine
from worker.engines.sentence import SentenceModel, read_sentence_model

TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"}
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
MEAN = {"1_Pooling/config.json": {"pooling_mode": "mean"}}
PROMPT = {"config_sentence_transformers.json": {"prompts": {"q": "query: "}, "default_prompt_name": "q"}}


def write(folder: Path, files: dict[str, Any]) -> Path:
    for path, value in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_a_real_folder() -> None:
    assert read_sentence_model(MINILM) == SentenceModel(MINILM, ("mean",), normalize=True, max_tokens=256)


def test_the_old_layout_keeps_the_transformer_apart(tmp_path: Path) -> None:
    files = MEAN | PROMPT | {
        "modules.json": [TRANSFORMER | {"path": "0_Transformer"}, POOLING],
        "0_Transformer/sentence_roberta_config.json": {"max_seq_length": 128, "do_lower_case": True},
    }  # fmt: skip
    assert read_sentence_model(write(tmp_path, files)) == SentenceModel(
        tmp_path / "0_Transformer", ("mean",), max_tokens=128, lower_case=True, prompt="query: "
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"modules.json": "["}, r"modules\.json: "),
        ({"modules.json": {}}, r"modules\.json: expected a JSON list"),
        ({"modules.json": [TRANSFORMER, POOLING, DENSE]}, "Transformer > Pooling > Dense; what is computed"),
        ({"modules.json": [TRANSFORMER]}, "Transformer; what is computed"),
        ({"modules.json": [TRANSFORMER, POOLING | {"type": "custom_st.Pooling"}]}, "'custom_st.Pooling' is code"),
        ({"modules.json": [TRANSFORMER | {"path": "../other"}, POOLING]}, r"'\.\./other' leads out of"),
        ({"1_Pooling/config.json": {"pooling_mode": "weightedmean"}}, "pooling 'weightedmean' is not computed"),
        ({"1_Pooling/config.json": {"pooling_mode_weightedmean_tokens": True}}, "pooling 'weightedmean'"),
        (
            PROMPT | {"1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False}},
            "leaves out the prompt",
        ),
        ({"2_Normalize/config.json": {"module_input_name": "token_embeddings"}}, "only the sentence embedding"),
        ({"sentence_bert_config.json": {"transformer_task": "retrieval"}}, 'transformer_task "retrieval"'),
        ({"sentence_bert_config.json": {"processing_kwargs": {"text": {"max_length": 9}}}}, "processing_kwargs"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write(tmp_path, MEAN | {"modules.json": [TRANSFORMER, POOLING, NORMALIZE]} | files)
    with pytest.raises(ModelLoadFailed, match=said):
        read_sentence_model(folder)


def test_a_missing_pooling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"1_Pooling/config\.json is missing"):
        read_sentence_model(write(tmp_path, {"modules.json": [TRANSFORMER, POOLING]}))


def test_a_decoder_must_say_how_it_is_pooled(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="LlamaForCausalLM needs a modules.json"):
        read_sentence_model(write(tmp_path, {"config.json": {"architectures": ["LlamaForCausalLM"]}}))


def test_the_engine_does_no_other_task() -> None:
    with pytest.raises(ModelLoadFailed, match="small@1: the embed engine does not classify"):
        EmbedEngine.load(model_spec(task="classify"), MINILM, "cpu")
