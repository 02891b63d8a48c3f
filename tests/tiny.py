"""Folders of tiny models, made in a moment: files and words like those of real ones, and weights drawn by chance."""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.heads import PACKAGES
from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM

WIDTH, HEADS = 64, 4
"""Some quantizations pack 64 numbers of a row at once."""
WORDS, SPEAKER_WORDS = 4000, 2000
"""Of MiniLM's vocabulary, the most frequent ones; and of the language model."""
WHOLE = "Once upon a time horse zebra donkey word closes file"
"""Words that no tokenizer splits here, as no real one does."""
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def save_encoder(folder: Path, layers: int = 6) -> Path:
    """A sentence encoder like MiniLM, with its tokenizer, in 64 dimensions."""
    from transformers import AutoConfig, AutoModel

    _begin(folder, layers)
    config = (folder / "config.json").read_bytes()
    _drawn(AutoModel, AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    (folder / "config.json").write_bytes(config)  # or the library would say more in it than MiniLM's says
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
        num_hidden_layers=2,
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


def save_speaker(folder: Path) -> Path:
    """The language model as one GGUF file, as llama.cpp writes it: `folder/speaker.gguf`."""
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
    from safetensors.torch import load_file

    source = save_language_model(folder / "source")
    words = json.loads((source / "tokenizer.json").read_text())["model"]
    names = sorted(words["vocab"], key=words["vocab"].get)
    weights = {name: tensor.numpy() for name, tensor in load_file(source / "model.safetensors").items()}
    shutil.rmtree(source)
    writer = GGUFWriter(folder / "speaker.gguf", "llama")
    writer.add_name("speaker")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(names))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(names)
    writer.add_token_types([TokenType.CONTROL if name.startswith("<|") else TokenType.NORMAL for name in names])
    writer.add_token_merges([" ".join(pair) for pair in words["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT)
    for name, weight in weights.items():
        kind = GGMLQuantizationType.Q4_1 if weight.ndim > 1 else GGMLQuantizationType.F32
        if (heads := {"q_proj": HEADS, "k_proj": HEADS // 2}.get(name.split(".")[-2])) is not None:
            # llama.cpp turns neighbouring numbers, where transformers turns the halves of a head.
            weight = weight.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(_gguf_name(name), quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "speaker.gguf"


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""What llama.cpp calls the parts of a Llama."""


def _gguf_name(name: str) -> str:
    for theirs, its in GGUF_NAMES.items():
        name = name.replace(theirs, its)
    return name


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


def _begin(folder: Path, layers: int = 2) -> None:
    """MiniLM's files but its weights, with fewer words, and with a config and a pooling of fewer numbers."""
    left_out = shutil.ignore_patterns("model.safetensors", "vocab.txt", "*.md", "data_config.json")
    shutil.copytree(MINILM, folder, ignore=left_out, dirs_exist_ok=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = {word: place for word, place in tokenizer["model"]["vocab"].items() if place < WORDS}
    unused = (word for word in list(words) if word.startswith("[unused"))
    for word in WHOLE.lower().split():
        if word not in words:
            words[word] = words.pop(next(unused))
    tokenizer["model"]["vocab"] = words
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name, changes in {
        "config.json": {
            "vocab_size": WORDS,
            "hidden_size": WIDTH,
            "num_hidden_layers": layers,
            "num_attention_heads": HEADS,
            "intermediate_size": 2 * WIDTH,
        },
        "1_Pooling/config.json": {"word_embedding_dimension": WIDTH},
    }.items():
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _save_head(folder: Path, **names: Any) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    _begin(folder)
    config = AutoConfig.from_pretrained(folder, **names)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    module = _drawn(AutoModelForSequenceClassification, config)
    # No label is what most texts have.
    tokens = tokenizer(stdlib_docstrings(64), truncation=True, max_length=24, padding=True, return_tensors="pt")
    with torch.no_grad():
        module.classifier.bias -= module(**tokens).logits.mean(0)
    module.save_pretrained(folder)
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
