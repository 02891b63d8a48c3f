"""Infinity in its own process, without its HTTP server: texts queue up and are batched as they wait."""

import asyncio
from collections.abc import Iterator

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from trial import Encode, model_and_texts, report


def main() -> None:
    folder, texts = model_and_texts()
    report(_settings(folder), texts)


def _settings(folder: str) -> Iterator[tuple[str, Encode]]:
    for dtype in ("float32", "bfloat16"):
        for size in (8, 32):
            arguments = EngineArgs(
                model_name_or_path=folder,
                engine="torch",
                device="cpu",
                dtype=dtype,
                batch_size=size,
                lengths_via_tokenize=True,
                model_warmup=False,
                bettertransformer=False,
            )
            engine = AsyncEmbeddingEngine.from_args(arguments)
            yield f"{dtype}, batch_size={size}", lambda texts, engine=engine: asyncio.run(_embed(engine, texts))


async def _embed(engine: AsyncEmbeddingEngine, texts: list[str]) -> int:
    async with engine:
        vectors, _ = await engine.embed(sentences=texts)
    return len(vectors)


if __name__ == "__main__":
    main()
