"""Ray Data's `map_batches` with one actor that holds the model, on the two cores that there are."""

import logging
import os
from collections.abc import Iterator

# No telemetry, no progress on stdout, which is for the figure.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DATA_DISABLE_PROGRESS_BARS="1", RAY_DEDUP_LOGS="0")

import ray
import torch
from sentence_transformers import SentenceTransformer
from trial import Encode, model_and_texts, report


class Embedder:
    """One actor."""

    def __init__(self, folder: str, dtype: str) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        self._model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})

    def __call__(self, batch: dict) -> dict:
        return {"vector": self._model.encode(list(batch["text"]), batch_size=32)}


def main() -> None:
    folder, texts = model_and_texts()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    report(_settings(folder), texts)


def _settings(folder: str) -> Iterator[tuple[str, Encode]]:
    for dtype in ("float32", "bfloat16"):
        for size in (256, 2048):
            yield (
                f"one actor, {dtype}, batch_size={size}, encode in 32s",
                lambda texts, dtype=dtype, size=size: _embed(folder, texts, dtype, size),
            )


def _embed(folder: str, texts: list[str], dtype: str, size: int) -> int:
    data = ray.data.from_items([{"text": text} for text in texts])
    embedded = data.map_batches(
        Embedder,
        fn_constructor_args=(folder, dtype),
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    return sum(len(batch["vector"]) for batch in embedded.iter_batches(batch_size=1024))


if __name__ == "__main__":
    main()
