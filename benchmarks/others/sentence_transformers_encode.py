"""`SentenceTransformer.encode`, which sorts texts by length itself."""

from collections.abc import Iterator

import torch
from sentence_transformers import SentenceTransformer
from trial import Encode, model_and_texts, report


def main() -> None:
    folder, texts = model_and_texts()
    report(_settings(folder), texts)


def _settings(folder: str) -> Iterator[tuple[str, Encode]]:
    for dtype in (torch.float32, torch.bfloat16):
        model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})
        for size in (8, 32):
            yield (
                f"{str(dtype).removeprefix('torch.')}, batch_size={size}",
                lambda texts, model=model, size=size: len(model.encode(texts, batch_size=size)),
            )


if __name__ == "__main__":
    main()
