"""A sentence encoder that is made in milliseconds: two layers with a vocabulary of single letters."""

import json
import string
from pathlib import Path

WIDTH = 256
"""Four heads of 64: nf4 on the CPU wants rows of a multiple of 64, also once heads are pruned."""
_LETTERS = [*string.ascii_lowercase, *string.digits, *string.punctuation]
_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
_FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": True},
    "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True},
}


def save_encoder(folder: Path) -> Path:
    """Write its Hugging Face folder, as sentence-transformers lays it out."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(11)
    config = BertConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(_VOCABULARY) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    for name, content in _FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder
