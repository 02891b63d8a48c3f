"""Mills whose programs are forked, and a model that costs nothing."""

from pathlib import Path

import pytest

from tests.acceptance.forked import forked as forked
from tests.acceptance.forked import nursery as nursery
from tests.acceptance.forked import running as running
from tests.acceptance.tiny import save_encoder
from tests.conftest import MadeOnce


@pytest.fixture(scope="session")
def encoder(made_once: MadeOnce) -> Path:
    """The folder of a tiny sentence encoder."""
    return made_once("encoder_of_letters", save_encoder)
