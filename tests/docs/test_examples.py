"""Every fenced block of the README and the docs is run, page by page, or says above itself why it is not.

All are run with tiny models, and, marked `verify`, with the real ones that pages speak of.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from benchmarks.weights import MINILM, SMOLLM2
from producer import Client
from tests.conftest import wait_until
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of
from tests.docs.world import REVIEWS, World

BLOCKS = {str(page.relative_to(ROOT)): list(blocks_of(page)) for page in PAGES}


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.verify)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="bm-"))
    if request.param == "real":
        world = World(folder, MINILM, SMOLLM2)
    else:
        world = World(folder, request.getfixturevalue("encoder"), request.getfixturevalue("speaker"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in world.environment.items():
            patch.setenv(name, value)
        try:
            world.start()
            yield world
        finally:
            world.stop()
    shutil.rmtree(folder)


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if any(not b.not_run for b in blocks)])
def test_the_examples_of_a_page_run(page: str, world: World) -> None:
    with world.page(page) as here:
        for block in BLOCKS[page]:
            if not block.not_run:
                here.run(block)


def test_a_table_is_scored_into_a_table_every_night_in_under_fifteen_lines(world: World) -> None:
    block = next(block for block in BLOCKS["docs/how-to/nightly.md"] if block.language == "python")
    assert len(block.code.splitlines()) < 15
    with world.page("a night") as here, Client() as client:
        if not client.schedules.list():  # the page has not run before this test
            here.run(block)
            client.schedules.run_now("reviews")

        def ended() -> bool:
            last = client.schedules.get("reviews").last
            return last is not None and last.state.terminal

        wait_until(ended, 120)
        last = client.schedules.get("reviews").last
        assert last is not None
        assert (last.state, last.error_message, last.progress.rows_written) == ("succeeded", None, REVIEWS)
        with psycopg.connect(str(client.settings.database_url)) as database:
            query = "SELECT count(*) FROM reviews JOIN review_vectors AS v ON v.id::text = reviews.id::text"
            assert database.execute(query).fetchone() == (REVIEWS,)


def test_a_model_is_compressed_and_scored_with_in_under_ten_lines() -> None:
    (block,) = (block for block in BLOCKS["docs/how-to/compression.md"] if block.language == "python")
    lines = block.code.splitlines()
    assert len(lines) < 10
    assert [line for line in lines if "import" in line] == ["from producer import Client"]
    assert re.findall(r'"step": "(\w+)"', block.code) == ["prune", "distill", "export", "quantize"]


@pytest.mark.parametrize("block", [b for blocks in BLOCKS.values() for b in blocks if b.not_run], ids=str)
def test_what_is_not_run_says_why(block: Block) -> None:
    assert block.not_run is not None
    assert len(block.not_run.split()) > 2, f"{block}: {block.not_run!r} is no reason"
    pytest.skip(f"{block}: {block.not_run}")
