"""Against a real IPython shell; what makes it a notebook is the kernel that it has."""

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from contracts.jobs import JobCounts
from producer.job import Job, JobList
from producer.notebook import ModelList, NotebookBar, in_notebook, job_html, progress_html
from tests.infos import info
from tests.models import model_spec

HOSTILE = "</td><script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;"


class Page(HTMLParser):
    """Tags in balance, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._open.append(tag)
        assert {name for name, _ in attrs} <= {"style", "role", "aria-label"}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    try:
        yield shell
    finally:
        InteractiveShell.clear_instance()


def test_a_notebook_is_a_shell_with_a_kernel(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_notebook()
    monkeypatch.setattr(shell, "kernel", object(), raising=False)
    assert in_notebook()


def test_nothing_that_a_user_wrote_becomes_markup() -> None:
    for state in ("running", "paused", "failed"):
        hostile = info(
            state=state, model=HOSTILE, metadata={HOSTILE: HOSTILE}, error_code="engine_error", error_message=HOSTILE
        )
        for html in (job_html(hostile), progress_html(hostile, 3.0), JobList([Job(Any, Any, hostile)])._repr_html_()):
            page = Page(html)
            assert page.tags <= {"div", "span", "table", "tr", "td", "th", "b", "code"}
            assert HOSTILE in page.text
    models = Page(ModelList([model_spec(name=HOSTILE, source=HOSTILE, pool=HOSTILE)])._repr_html_())
    assert "script" not in models.tags
    assert models.text.count(HOSTILE) == 3


def test_a_bar_is_drawn_once_and_brought_up_to_date_in_place(shell: InteractiveShell) -> None:
    with capture_output() as captured, NotebookBar() as bar:
        for done in (0, 400, 400):
            bar.show(info(state="running", finished_at=None, counts=JobCounts(items=800, distinct=800, computed=done)))
        bar.show(info())

    first, *updates = captured.outputs
    assert not first.update
    assert [update.update for update in updates] == [True, True]  # nothing where nothing changed
    assert len({output.transient["display_id"] for output in captured.outputs}) == 1
    assert "400/800" in Page(updates[0].data["text/html"]).text
    assert updates[1].data["text/plain"].startswith("succeeded  100 %  1,000/1,000")


def test_the_shell_shows_a_job_and_listings_as_html(shell: InteractiveShell) -> None:
    job = Job(Any, Any, info(metadata={"night": 12}))
    shown = {
        "job": (job, ['{"night":12}', "690 computed", "10 failed"]),
        "jobs": (JobList([job]), ["small@1", "1,200", "succeeded"]),
        "models": (ModelList([model_spec(memory_bytes=28_000_000)]), ["small@1", "28.0 MB"]),
        "none": (ModelList(), ["no models"]),
    }
    for value, parts in shown.values():
        data, _ = shell.display_formatter.format(value)
        page = Page(data["text/html"])
        assert not [part for part in parts if part not in page.text]
