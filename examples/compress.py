"""MiniLM made smaller and faster by a recipe of four steps, and scored with: `python -m examples.compress`.

The embedded stack runs all of it, on this machine's CPU: about ten minutes, most of them training.
"""

from rich.console import Console

from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM
from producer import Client

console = Console(highlight=False)
REPORT = "compression.html"


def main() -> None:
    """Compress, and score with the result."""
    texts = sorted(set(stdlib_docstrings()))
    unseen, learned = texts[::20], [text for i, text in enumerate(texts) if i % 20]
    with Client() as client:
        client.models.add("minilm", str(MINILM))
        recipe = [
            {"step": "prune", "method": "structured", "keep_ratio": 0.75},
            {"step": "distill", "data": learned, "max_tokens": 64},
            {"step": "export", "format": "onnx"},
            {"step": "quantize", "method": "int8"},
        ]
        job = client.compress("minilm", recipe, evaluate=unseen, accept={"fidelity": 0.9, "size_ratio": 0.3})
        job.wait(progress=True)
        console.print(f"{job.model}: {job.report().verdict}, see {job.save_report(REPORT)}")
        for result in client.submit(job.model, ["parse a date", "open a socket"]).wait().results():
            console.print(result.output[:4])


if __name__ == "__main__":
    main()
