import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("module", ["worker.batcher"])
def test_examples_in_docstrings_are_true(module: str) -> None:
    failed, attempted = doctest.testmod(import_module(module))
    assert attempted > 0
    assert failed == 0
