"""Folders of tiny models, made in a moment: files and words like those of real ones, and weights drawn by chance."""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.heads import PACKAGES
from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM

WIDTH, LAYERS, HEADS = 64, 2, 4
"""Some quantizations pack 64 numbers of a row at once."""
SPEAKER_WORDS = 2000
"""Words of the tiny language model."""
WHOLE = " horse zebra donkey word"
"""Words that a tiny tokenizer does not split, as no real one does: each stands in the texts often enough."""
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def save_encoder(folder: Path) -> Path:
    """A sentence encoder like MiniLM, with its tokenizer, in 64 dimensions and two layers."""
    from transformers import AutoConfig, AutoModel

    _begin(folder)
    _drawn(AutoModel, AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def save_classifier(folder: Path) -> Path:
    """A classifier of the labels of the real one."""
    return _save_head(folder, id2label=dict(enumerate(PACKAGES)), label2id={name: i for i, name in enumerate(PACKAGES)})


def save_reranker(folder: Path) -> Path:
    """A cross-encoder: one output."""
    return _save_head(folder, id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0})


def save_language_model(folder: Path) -> Path:
    """A language model like SmolLM2, with words of its own and 256 positions."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = speaker_tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    module = _drawn(AutoModelForCausalLM, config)
    # Some words are far likelier than others, as in real texts: two are seldom all but equally likely.
    with torch.no_grad():
        module.lm_head.weight *= torch.exp(0.7 * torch.randn(len(tokenizer), 1))
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def speaker_tokenizer() -> Any:
    """One like SmolLM2's: bytes joined to frequent words, and the special tokens of a chat."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=SPEAKER_WORDS,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*stdlib_docstrings(1000), *[WHOLE] * 100], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[2],
        unk_token=special[0],
        chat_template=CHAT,
        model_max_length=256,
    )


def _begin(folder: Path) -> None:
    """MiniLM's files but its weights, with a config and a pooling of fewer numbers."""
    left_out = shutil.ignore_patterns("model.safetensors", "*.md", "data_config.json")
    shutil.copytree(MINILM, folder, ignore=left_out, dirs_exist_ok=True)
    for name, changes in {
        "config.json": {
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 2 * WIDTH,
        },
        "1_Pooling/config.json": {"word_embedding_dimension": WIDTH},
    }.items():
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _save_head(folder: Path, **names: Any) -> Path:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    _begin(folder)
    config = AutoConfig.from_pretrained(folder, **names)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    _drawn(AutoModelForSequenceClassification, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _drawn(kind: Any, config: Any) -> Any:
    """A module with weights so large that what a text says shows in its outputs, and so do its neighbours' errors."""
    import torch

    torch.manual_seed(0)
    module = kind.from_config(config).eval()
    for weight in module.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return module
