"""A compression as its caller holds it: a job with a report, and a model at its end."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from contracts.compression import CompressionInfo, Report
from contracts.errors import InvalidRequest, JobFailed, WrongState
from contracts.jobs import JobInfo
from contracts.models import ArtifactFile
from producer.compression import teaching
from producer.compression.teaching import Scorer
from producer.job import Job
from producer.publisher import Publisher
from producer.retry import is_to_be_retried, retry_failed
from producer.submission import Accepted
from storage import compressions
from storage.artifacts import ArtifactStore
from storage.database import Database


class CompressionJob(Job):
    """A handle on a job that makes a model smaller.

    >>> job = client.compress("minilm", [{"step": "quantize", "method": "nf4"}])  # doctest: +SKIP
    >>> vectors = client.submit(job.wait().model, ["one text", "another"])  # doctest: +SKIP
    """

    def __init__(
        self, database: Database, publisher: Publisher, info: JobInfo, artifacts_url: str, score: Scorer
    ) -> None:
        super().__init__(database, publisher, info)
        self._artifacts_url = artifacts_url
        self._score = score

    def _handle(self, info: JobInfo) -> "CompressionJob":
        return CompressionJob(self._database, self._publisher, info, self._artifacts_url, self._score)

    def _retry(self) -> Accepted:
        if not is_to_be_retried(self._database, self.id):  # nobody is to teach then
            return retry_failed(self._database, self.id)
        store = ArtifactStore(self._artifacts_url)
        teachers = teaching.have_scored_again(self._database, store, self.id, self._score)
        return retry_failed(self._database, self.id, teachers)

    @property
    def compression(self) -> CompressionInfo:
        """What it is asked, how far its step is, and what came of it: read anew each time.

        Raises:
            JobNotFound: The job was removed.
        """
        with self._database.transaction() as connection:
            return compressions.info(connection, self.id)

    @property
    def model(self) -> str:
        """The model that it made, `name@version`, rejected or not.

        Raises:
            WrongState: There is none yet, or none came of it.
        """
        if (model := self.compression.model) is None:
            raise WrongState(f"job {self.id} is {self.refresh().state}, and has no model: {self._why_not()}")
        return model

    def report(self) -> Report:
        """What was measured.

        Raises:
            WrongState: There is no report yet, or none came of it.
        """
        if (report := self.compression.report) is None:
            raise WrongState(f"job {self.id} is {self.refresh().state}, and has no report: {self._why_not()}")
        return report

    def save_report(self, path: str | Path) -> Path:
        """The report as a file: `.html` for a page with plots that needs nothing else, `.json` for its numbers.

        Raises:
            InvalidRequest: No such format, or no such folder.
            WrongState: There is no report yet, or none came of it.
            ArtifactError: The page is not in the artifact store.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".json"):
            raise InvalidRequest(f"{path}: a report is written as .html or .json")
        if not path.parent.is_dir():
            raise InvalidRequest(f"{path}: there is no folder {path.parent}; make it first")
        if path.suffix.lower() == ".json":
            path.write_text(self.report().model_dump_json(indent=2) + "\n")
            return path
        with TemporaryDirectory(prefix="batchmill-") as folder:
            page = self._page()
            store = ArtifactStore(self._artifacts_url)
            shutil.copyfile(store.fetch([page], Path(folder)) / page.path, path)
        return path

    def _page(self) -> ArtifactFile:
        if (page := self.compression.html) is None:
            self.report()
            raise WrongState(f"the report of job {self.id} has no page: write it as .json")
        return page

    def check_success(self) -> None:
        """Nothing when a model came of it, as far as is known; one that was rejected is one.

        Raises:
            JobFailed: None did; says which step failed, and why.
        """
        super().check_success()
        if self.counts.failed:
            raise JobFailed(f"job {self.id} failed: {self._why_not()}")

    def _why_not(self) -> str:
        if not self.state.terminal:
            return "wait for it with job.wait()"
        failed = next((result for result in self.results() if result.error is not None), None)
        return "it was not evaluated" if failed is None or failed.error is None else failed.error.message

    def __repr__(self) -> str:
        return f"<CompressionJob {self.id} {self.state} {self.info.model}>"
