import subprocess
import sys

import pytest

import producer


def test_every_exported_name_is_there() -> None:
    for name in producer.__all__:
        assert getattr(producer, name).__name__ == name

    assert sorted(producer.__all__) == [
        "Check",
        "Client",
        "CompressionJob",
        "ItemError",
        "Job",
        "Result",
        "read",
        "verify_webhook",
    ]


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        _ = producer.Klient


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("producer", {"numpy", "pyarrow", "sqlalchemy", "celery", "torch"}),
        ("stack.cli", {"numpy", "pyarrow", "sqlalchemy", "celery", "torch", "psycopg", "pydantic"}),
        ("producer.client", {"pyarrow", "celery", "torch"}),
        ("producer.verification", {"sqlalchemy", "celery", "psycopg", "cryptography"}),
        ("worker.webhooks.__main__", {"torch", "transformers", "celery", "numpy"}),
        ("stack.embedded", {"redis", "sqlalchemy"}),
        ("stack.doctor", {"torch", "transformers"}),
    ],
)
def test_what_is_imported_is_what_is_needed(module: str, absent: set[str]) -> None:
    script = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()

    assert not absent & set(loaded)
