"""`client.compress` and `batchmill compress`, as far as the database; no worker runs."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from benchmarks.heads import PACKAGES
from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM, SMOLLM2
from contracts.compression import StepProgress
from contracts.errors import (
    DoesNotFit,
    IdempotencyConflict,
    InvalidInput,
    InvalidRequest,
    ItemFailed,
    JobFailed,
    JobNotFound,
    NothingToRetry,
    UnknownEndpoint,
    UnknownModel,
    WrongState,
)
from contracts.names import COMPRESSION_POOL
from contracts.recipes import Distill, Quantize
from producer import Client, CompressionJob
from producer.cli.app import app
from producer.cli.session import Session
from producer.compression.plan import Preflight
from storage import compressions, models, workers
from storage.artifacts import ArtifactStore
from storage.counting import ShardOutcome
from storage.database import Database
from storage.workers import WorkerReport
from tests.compressions import claim, close, complete
from tests.conftest import Mill
from tests.jobs import execute, query
from tests.models import variant
from tests.weights import put, safetensors

NF4 = [{"step": "quantize", "method": "nf4"}]
TEXTS = stdlib_docstrings(40)
HALF = {"step": "prune", "method": "structured", "keep_ratio": 0.5}
CONFIG = json.loads((MINILM / "config.json").read_text())


def taught(student: str) -> dict[str, Any]:
    return {"step": "distill", "data": TEXTS, "student": student}


def headed(folder: Path, labels: list[str]) -> Path:
    """The encoder with a config that tells of a head; nothing here loads it."""
    shutil.copytree(MINILM, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    head = {"architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(labels))}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | head))
    return folder


def cut(folder: Path, layers: int) -> Path:
    """The encoder with its first layers alone."""
    variant(folder, {"config.json": CONFIG | {"num_hidden_layers": layers}, "model.safetensors": None})
    weights = load_file(MINILM / "model.safetensors")
    gone = tuple(f"encoder.layer.{number}." for number in range(layers, CONFIG["num_hidden_layers"]))
    save_file({name: w for name, w in weights.items() if not name.startswith(gone)}, folder / "model.safetensors")
    return folder


def add_students(client: Client, folder: Path) -> None:
    """Models that are like others but for what the name says."""
    speaker = CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    words = json.loads((MINILM / "tokenizer.json").read_text())
    words["model"]["vocab"]["batchmill"] = words["model"]["vocab"].pop("the")
    both = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    for name, task, files in (
        ("narrow", "embed", {"config.json": CONFIG | {"hidden_size": 256}}),
        ("doubled", "embed", {"1_Pooling/config.json": both}),
        ("alien", "embed", {"config.json": CONFIG | {"model_type": "albert"}}),
        ("speaker", "score", {"config.json": speaker}),
        ("fewer-words", "score", {"config.json": speaker | {"vocab_size": 100}}),
        ("other-words", "score", {"config.json": speaker, "tokenizer.json": words}),
    ):
        made = variant(folder / name, {**files, "model.safetensors": None})
        put(made, "model.safetensors", safetensors({"weight": ("F32", [2], 8)}))  # nobody loads it
        client.models.add(name, str(made), task=task)
    client.models.add("tiny", str(cut(folder / "tiny", 2)))
    client.models.add("moods", str(headed(folder / "moods", ["good", "bad"])), task="classify")


@pytest.fixture(scope="module")
def still_mill(
    tmp_path_factory: pytest.TempPathFactory,
    make_database: Callable[..., str],
    make_broker: Callable[[], str],
) -> Iterator[Mill]:
    """Servers with models and without a worker."""
    mill = Mill(tmp_path_factory.mktemp("mill"), make_database(), make_broker())
    classifier = headed(tmp_path_factory.mktemp("classifier"), PACKAGES)
    reranker = headed(tmp_path_factory.mktemp("reranker"), ["score"])
    with mill.client() as client:
        client.models.add("minilm", str(MINILM))
        client.models.add("packed", str(MINILM), quantization="nf4")
        client.models.add("packages", str(classifier), task="classify")
        client.models.add("ranker", str(reranker), task="rerank")
        client.models.add("writer", str(SMOLLM2), task="generate")
        client.models.add("fake", "fake:")
        add_students(client, tmp_path_factory.mktemp("students"))
    yield mill
    mill.close()


@pytest.fixture
def client(still_mill: Mill) -> Iterator[Client]:
    with still_mill.client() as client:
        yield client
        for job in client.jobs(limit=1000):
            if not job.state.terminal:
                job.cancel()


@pytest.fixture
def database(client: Client) -> Database:
    return client._database


@pytest.fixture
def batchmill(still_mill: Mill, client: Client) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        done = CliRunner().invoke(app, arguments, obj=Session(still_mill.client))
        assert done.exit_code in (0, 1, 2), done.output
        return done

    return run


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def rows_of(client: Client, data: Any) -> list[Any]:
    """What a dataset's file holds."""
    store = ArtifactStore(client.settings.artifacts_url)
    file = store.fetch([data.file], client.settings.home / "rows") / data.file.path
    return [json.loads(line) for line in file.read_text().splitlines()]


def spec_of(client: Client, job: CompressionJob) -> Any:
    with client._database.transaction() as connection:
        return compressions.get(connection, job.id)


def test_a_recipe_is_a_job_of_its_prefixes(client: Client, database: Database) -> None:
    recipe = [{"step": "prune", "method": "structured", "keep_ratio": 0.5}, *NF4]
    job = client.compress("minilm", recipe, metadata={"night": 7}, expires_in=3600)
    assert isinstance(job, CompressionJob)
    assert (job.info.operation, job.info.pool, job.info.model) == ("compress", COMPRESSION_POOL, "minilm@1")
    assert (job.counts.items, job.state, job.info.metadata) == (3, "queued", {"night": 7})
    assert job.info.expires_at is not None
    spec = spec_of(client, job)
    assert (spec.name, spec.evaluate, spec.teachers) == ("minilm-small", None, {})
    steps = [step.model_dump(mode="json") for step in spec.recipe]
    items = query(
        database,
        "SELECT custom_id, payload FROM items JOIN inputs ON inputs.id = input_id WHERE job_id = :id ORDER BY position",
        id=job.id,
    )
    assert [tuple(row) for row in items] == [
        ("step 1", {"compress": steps[:1]}),
        ("step 2", {"compress": steps}),
        ("finish", {"finish": str(job.id)}),
    ]
    assert query(database, "SELECT count(*) FROM shards WHERE job_id = :id", id=job.id) == [(1,)]


def test_what_recipes_begin_with_alike_is_computed_once(client: Client, database: Database) -> None:
    recipe = [{"step": "prune", "method": "structured", "keep_ratio": 0.6}, *NF4]
    first = client.compress("minilm", recipe, name="six")
    close(database, claim(database))
    assert first.refresh().counts.computed == 3
    longer = client.compress("minilm", [*recipe[:1], {"step": "export"}], name="onnx")
    again = client.compress("minilm", recipe, name="six")
    assert (longer.counts.distinct, longer.counts.cached) == (3, 1)
    assert (again.counts.distinct, again.counts.cached, again.state) == (3, 2, "queued")


def test_the_teacher_is_scored_by_a_job_of_the_models_own_pool(client: Client) -> None:
    recipe = [{"step": "distill", "student": [0, 2, 4], "data": TEXTS}, {"step": "distill", "data": TEXTS}]
    job = client.compress("minilm", recipe, evaluate=TEXTS[:5])
    spec = spec_of(client, job)
    distill = spec.recipe[0]
    assert isinstance(distill, Distill)
    assert (distill.data.rows, distill.data.labelled, distill.student) == (len(TEXTS), False, (0, 2, 4))
    assert rows_of(client, distill.data) == [{"input": text} for text in TEXTS]
    assert rows_of(client, spec.evaluate.data) == [{"input": text} for text in TEXTS[:5]]
    [(sha256, teacher_id)] = spec.teachers.items()  # of both: their rows are the same
    assert sha256 == distill.data.file.sha256
    teacher = client.job(teacher_id)
    assert (teacher.info.model, teacher.info.pool, teacher.info.operation) == ("minilm@1", "default", "embed")
    assert teacher.info.params["precision"] == "float32"
    assert teacher.counts.items == len(TEXTS)


def test_language_models_are_taught_without_a_job(client: Client) -> None:
    job = client.compress("writer", [{"step": "distill", "data": TEXTS[:3]}])
    assert spec_of(client, job).teachers == {}


def test_typed_objects_and_data_of_every_kind(client: Client, tmp_path: Path) -> None:
    job = client.submit("minilm", TEXTS[:3])
    texts = [" ".join(text.split()) for text in TEXTS[:3]]
    csv = tmp_path / "texts.csv"
    csv.write_text("input,other\n" + "".join(f'"{text.replace(chr(34), "")}",1\n' for text in texts))
    pq.write_table(pa.table({"input": texts}), tmp_path / "texts.parquet")
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    kinds = [
        jsonl(tmp_path / "bare.jsonl", TEXTS[:3]),
        str(jsonl(tmp_path / "objects.jsonl", [{"id": i, "input": text} for i, text in enumerate(TEXTS[:3])])),
        csv,
        tmp_path / "texts.parquet",
        tmp_path / "texts.txt",
        iter(TEXTS[:3]),
        [{"input": text} for text in TEXTS[:3]],
        job,
        job.info,
        job.id,
        f"job:{job.id}",
        f"batchmill://jobs/{job.id}",
    ]
    found = [client.dataset("minilm", data) for data in kinds]
    assert [one.rows for one in found] == [3] * len(kinds)
    assert len({one.file.sha256 for one in found}) <= 3  # as they are, on one line, and without quotes
    typed = [Distill(data=found[0], student=(0,)), Quantize(method="int8")]
    assert spec_of(client, client.compress("minilm", typed)).recipe == tuple(typed)


def test_labels_become_the_names_that_the_model_knows(client: Client, tmp_path: Path) -> None:
    labels = [PACKAGES[0], PACKAGES[1], 2, "3"]
    rows = [{"input": text, "label": label} for text, label in zip(TEXTS, labels, strict=False)]
    pq.write_table(pa.table({"input": TEXTS[:4], "label": PACKAGES[:4]}), tmp_path / "labelled.parquet")
    (tmp_path / "labelled.csv").write_text("input,label\na,0\nb,email\n")
    lines = jsonl(tmp_path / "labelled.jsonl", rows)
    for data, count in ((rows, 4), (lines, 4), (tmp_path / "labelled.parquet", 4), (tmp_path / "labelled.csv", 2)):
        found = client.dataset("packages", data)
        assert found.labelled
        assert [row["label"] for row in rows_of(client, found)] == PACKAGES[:count]
    assert not client.dataset("packages", TEXTS).labelled
    assert not client.dataset("minilm", rows).labelled  # to which they mean nothing
    job = client.compress("packages", [{"step": "distill", "data": rows, "hard_weight": 0.5}], evaluate=rows)
    (teacher_id,) = spec_of(client, job).teachers.values()
    assert client.job(teacher_id).info.params["top_k"] is None


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ("minilm", [], "evaluate: there is no row"),
        ("minilm", ["a", 7], "evaluate: item 2: expected a text, got a number"),
        ("minilm", [{"input": "a", "labels": 1}], "evaluate: item 1: the object has 'labels' beside 'input', which"),
        ("minilm", {"input": "a"}, "evaluate: dict is no data: give a .jsonl"),
        ("minilm", 7, "evaluate: int is no data"),
        ("minilm", "job:7", "evaluate: 'job:7' names no job"),
        ("minilm", "texts.docx", "evaluate: texts.docx: the suffix says what a file holds"),
        ("minilm", "nowhere.jsonl", "evaluate: nowhere.jsonl: the file cannot be read"),
        ("ranker", ["a"], "evaluate: item 1: expected a query with documents, got a text"),
        ("packages", [{"input": "a", "label": "email"}, "b"], "evaluate: item 2: the row has no label, and those bef"),
        ("packages", ["a", {"input": "b", "label": "email"}], "evaluate: item 2: the row has a label, and those befo"),
        ("packages", [{"input": "a", "label": "xml"}], "evaluate: item 1: the label 'xml' is none of the model's: asy"),
        ("packages", [{"input": "a", "label": 9}], "evaluate: item 1: the label 9 is none of the model's"),
    ],
)
def test_evaluation_data_of_the_wrong_kind(client: Client, model: str, data: Any, said: str) -> None:
    with pytest.raises((InvalidInput, InvalidRequest)) as raised:
        client.compress(model, NF4, evaluate=data)
    assert said in str(raised.value)
    assert not [job for job in client.jobs(states=["queued"]) if job.info.operation == "compress"]


def test_lines_of_files_are_named(client: Client, tmp_path: Path) -> None:
    for name, content, said in (
        ("a.jsonl", '"fine"\n{"text": 1}\n', "evaluate: a.jsonl, line 2: the object has no key 'input'"),
        ("b.jsonl", '"fine"\nnot json\n', "evaluate: b.jsonl, line 2: not JSON"),
        ("c.csv", "text\nfine\n", "evaluate: c.csv: column 'input' does not exist"),
        ("d.txt", "", "evaluate: there is no row"),
        ("e.csv", "input,label,label\na,email,email\n", "evaluate: e.csv: column 'label' stands more than once"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises((InvalidInput, InvalidRequest)) as raised:
            client.compress("minilm", NF4, evaluate=tmp_path / name)
        assert said in str(raised.value)


@pytest.mark.parametrize(
    ("model", "recipe", "options", "said"),
    [
        ("packed", NF4, {}, "step 1 of the recipe (quantize): the weights are nf4 already, and nothing is quantized t"),
        ("packed", [{"step": "export"}], {}, "step 1 of the recipe (export): the weights are nf4 already, and nothing"),
        ("writer", [{"step": "export"}], {}, "step 1 of the recipe (export): "),
        ("ranker", [{"step": "distill", "data": ["a"]}], {}, "nothing teaches a model that reranks"),
        ("minilm", [{"step": "distill", "data": ["a"], "loss": "kl"}], {}, "choose cosine or mse"),
        ("packages", [{"step": "distill", "data": ["a"], "hard_weight": 0.3}], {}, "and the data has no label"),
        ("minilm", [{"step": "distill", "data": [7]}], {}, "step 1 of the recipe (distill): item 1: expected a text"),
        ("minilm", [{"step": "distill"}], {}, "step 1 of the recipe (distill): data is missing"),
        ("minilm", [{"step": "distill", "data": TEXTS, "student": [0, 6]}], {}, "keeps layer 6, and the model has 6"),
        ("minilm", [{"step": "distill", "data": TEXTS, "student": "packed"}], {}, "the student packed@1 is nf4, whic"),
        ("minilm", [{"step": "distill", "data": TEXTS, "student": "ranker"}], {}, "ranker@1 does rerank, and minilm@"),
        ("minilm", [{"step": "distill", "data": TEXTS, "student": "fake"}], {}, "model fake@1 has no weights that are"),
        ("fake", NF4, {}, "model fake@1 has no weights that are known here: it is computed by fake"),
        ("alien", [HALF], {}, "(prune): alien@1 is of the family albert, whose parts are not known: only bert, camem"),
        ("minilm", [taught("alien"), HALF], {}, "step 2 of the recipe (prune): alien@1 is of the family albert"),
        ("minilm", [taught("narrow")], {}, "the student narrow@1 embeds in 256 dimensions, and minilm@1 in 384: take"),
        ("minilm", [taught("doubled")], {}, "the student doubled@1 embeds in 768 dimensions, and minilm@1 in 384"),
        ("packages", [taught("moods")], {}, "the student moods@1 has the labels good, bad, and packages@1 the labels"),
        ("speaker", [taught("fewer-words")], {}, "fewer-words@1 chooses among 100 tokens, and speaker@1 among 30,522"),
        ("speaker", [taught("other-words")], {}, "the student other-words@1 has another vocabulary than speaker@1, so"),
        ("minilm", NF4, {"name": "a b"}, "model name 'a b'"),
        ("minilm", NF4, {"accept": {"fidelity": 0.9}}, "give evaluate, some data"),
        ("minilm", NF4, {"accept": {"size": 1}, "evaluate": ["a"]}, "accept: nobody measures 'size'"),
        ("minilm", "nf4", {}, "a recipe is a list of steps"),
        ("minilm", NF4, {"expires_in": -1}, "expires_in -1"),
    ],
)
def test_what_is_refused_before_anything_is_stored(
    client: Client, database: Database, model: str, recipe: Any, options: dict[str, Any], said: str
) -> None:
    before = query(database, "SELECT count(*) FROM jobs")
    with pytest.raises((InvalidRequest, InvalidInput)) as raised:
        client.compress(model, recipe, **options)
    assert said in str(raised.value)
    assert query(database, "SELECT count(*) FROM jobs") == before


def test_models_and_endpoints_that_do_not_exist(client: Client) -> None:
    with pytest.raises(UnknownModel, match="nobody"):
        client.compress("nobody", NF4)
    with pytest.raises(UnknownModel, match="nobody"):
        client.compress("minilm", [{"step": "distill", "data": TEXTS, "student": "nobody"}])
    with pytest.raises(UnknownEndpoint):
        client.compress("minilm", NF4, callback_url="https://a.example/hook")
    with pytest.raises(JobNotFound):
        client.compress("minilm", NF4, evaluate="job:0198c0de-0000-7000-8000-000000000000")


def test_a_student_is_named_with_its_version(client: Client) -> None:
    job = client.compress("minilm", [{"step": "distill", "data": TEXTS, "student": "minilm"}])
    assert spec_of(client, job).recipe[0].student == "minilm@1"


@pytest.mark.parametrize(
    ("model", "student"), [("minilm", "tiny"), ("minilm", "alien"), ("packages", "packages"), ("speaker", "speaker")]
)
def test_a_student_that_suits_its_teacher_is_taken(client: Client, model: str, student: str) -> None:
    magnitude = {"step": "prune", "method": "magnitude", "keep_ratio": 0.5}
    assert client.compress(model, [taught(student), magnitude]).state == "queued"


def test_a_registered_student_is_reckoned_as_large_as_it_is(client: Client) -> None:
    alone = client.preflight("tiny", [{"step": "distill", "data": TEXTS}, *NF4], evaluated=False)
    found = client.preflight("minilm", [taught("tiny"), *NF4], evaluated=False)
    assert sizes(found) == sizes(alone)
    whole = client.preflight("minilm", [taught("minilm"), *NF4], evaluated=False)
    assert all(one < other for one, other in zip(sizes(found), sizes(whole), strict=True))


def sizes(preflight: Preflight) -> list[tuple[int, int]]:
    return [(need.memory_bytes, need.disk_bytes) for need in preflight.needs]


def test_a_key_gives_the_same_job(client: Client, database: Database) -> None:
    recipe = [{"step": "distill", "data": TEXTS[:7]}]
    job = client.compress("minilm", recipe, idempotency_key="once")
    before = query(database, "SELECT count(*) FROM jobs")
    assert client.compress("minilm", recipe, idempotency_key="once").id == job.id
    assert query(database, "SELECT count(*) FROM jobs") == before  # nor is the teacher asked again
    for model, other, options in (
        ("minilm", NF4, {}),
        ("minilm", recipe, {"name": "other"}),
        ("minilm", recipe, {"evaluate": ["a"]}),
    ):
        with pytest.raises(IdempotencyConflict):
            client.compress(model, other, idempotency_key="once", **options)
    client.submit("minilm", ["a"], idempotency_key="scoring")
    with pytest.raises(IdempotencyConflict):
        client.compress("minilm", NF4, idempotency_key="scoring")


@pytest.fixture
def small_worker(database: Database) -> Iterator[None]:
    said = WorkerReport("host:1", COMPRESSION_POOL, "cpu", 1, 0, [], 0, 700_000_000, 0, 0)
    with database.transaction() as connection:
        workers.report(connection, said)
    yield
    with database.transaction() as connection:
        workers.forget(connection, said.name)


def test_what_no_disk_holds_is_refused(client: Client, database: Database) -> None:
    said = WorkerReport("host:2", COMPRESSION_POOL, "cpu", 1, 0, [], 0, 2**40, 0, 0, disk_free=1_000_000)
    with database.transaction() as connection:
        workers.report(connection, said)
    try:
        before = query(database, "SELECT count(*) FROM jobs")
        with pytest.raises(
            DoesNotFit, match=r"its steps write about 0\.\d GB, and no worker of .* has more than 0\.0 GB"
        ):
            client.compress("minilm", NF4)
        assert query(database, "SELECT count(*) FROM jobs") == before
    finally:
        with database.transaction() as connection:
            workers.forget(connection, said.name)


def test_memory_and_disk_are_asked_of_one_worker(client: Client, database: Database) -> None:
    said = [
        WorkerReport(f"host:{number}", COMPRESSION_POOL, "cpu", 1, 0, [], 0, memory, 0, 0, disk_free=disk)
        for number, (memory, disk) in enumerate([(2**40, 1_000_000), (1_000_000, 2**40), (2**40, 2**40)], 3)
    ]
    try:
        with database.transaction() as connection:
            for one in said[:2]:
                workers.report(connection, one)
        with pytest.raises(DoesNotFit, match=r"quantize nf4 needs about 0\.\d GB of memory, .* 0\.\d GB, .* has both"):
            client.preflight("minilm", NF4)
        with database.transaction() as connection:
            workers.report(connection, said[2])
        assert client.preflight("minilm", NF4).workers == 3
    finally:
        with database.transaction() as connection:
            for one in said:
                workers.forget(connection, one.name)


@pytest.mark.usefixtures("small_worker")
def test_what_fits_no_worker_is_refused(client: Client, database: Database) -> None:
    found = client.preflight("minilm", NF4, evaluated=False)
    assert (found.workers, found.memory_bytes) == (1, 700_000_000)
    assert client.compress("minilm", NF4).state == "queued"
    before = query(database, "SELECT count(*) FROM jobs")
    with pytest.raises(DoesNotFit, match=r"does not fit: distill needs about 1\.\d GB of memory, and no worker"):
        client.compress("minilm", [{"step": "distill", "data": TEXTS}, *NF4])
    assert query(database, "SELECT count(*) FROM jobs") == before


def test_without_a_worker_nothing_is_known(client: Client) -> None:
    assert client.preflight("minilm", NF4).memory_bytes is None


def test_the_handle_gives_model_and_report(client: Client, database: Database, tmp_path: Path) -> None:
    job = client.compress("minilm", NF4, name="handled", evaluate=TEXTS[:5])
    for ask in (lambda: job.model, job.report, lambda: job.save_report(tmp_path / "report.json")):
        with pytest.raises(WrongState, match=r"is queued, and has no .*: wait for it"):
            ask()
    (tmp_path / "report.html").write_text("<html>plots</html>")
    (page,) = ArtifactStore(client.settings.artifacts_url).add(tmp_path, ["report.html"])
    reference = complete(database, html=page)
    assert job.wait(timeout=5).model == reference == "handled@1"
    assert job.compression.verdict == "accepted"
    assert job.report().model == "handled@1"
    saved = job.save_report(tmp_path / "saved.json")
    assert json.loads(saved.read_text())["criteria"][0]["found"] == 0.975
    assert job.save_report(tmp_path / "saved.html").read_text() == "<html>plots</html>"
    for path, said in (("report.pdf", "written as .html or .json"), ("nowhere/report.json", "there is no folder")):
        with pytest.raises(InvalidRequest, match=said):
            job.save_report(tmp_path / path)
    assert [result.output for result in job.results()] == [{"made": row[0]} for row in _inputs(database, job)]
    assert job.to_arrow().num_rows == 2
    assert "compress handled" not in job._repr_html_()
    assert "compress minilm@1" in job._repr_html_()
    assert "compress" in client.jobs(limit=1)._repr_html_()
    found = client.job(job.id)
    assert isinstance(found, CompressionJob)
    with pytest.raises(InvalidRequest, match="makes no model smaller"):
        client.compression(client.submit("minilm", ["a"]).id)


def _inputs(database: Database, job: CompressionJob) -> list[Any]:
    return query(database, "SELECT input_id FROM items WHERE job_id = :id ORDER BY position", id=job.id)


def test_a_job_whose_step_failed_says_why(client: Client, database: Database) -> None:
    job = client.compress("minilm", [{"step": "quantize", "method": "fp4"}], name="failing")
    lease = claim(database)
    why = ItemFailed("compression_failed", "quantize fp4: the disk is full")
    close(database, lease, ShardOutcome(dict.fromkeys(lease.input_ids, why)))
    with pytest.raises(JobFailed, match=r"failed: quantize fp4: the disk is full"):
        job.wait(timeout=5)
    with pytest.raises(WrongState, match="has no model: quantize fp4: the disk is full"):
        _ = job.model
    retry = job.retry_failed()
    assert isinstance(retry, CompressionJob)
    assert (retry.counts.items, retry.counts.cached) == (2, 0)
    assert spec_of(client, retry) == spec_of(client, job)


DISTILL = [{"step": "distill", "student": [0, 1], "data": TEXTS[:4]}]


def failed(client: Client, database: Database, model: str) -> tuple[CompressionJob, UUID]:
    """A distillation that failed at its first step, and the job of its teacher, which waits still."""
    job = client.compress(model, DISTILL, name="taught")
    lease = claim(database)
    assert lease.job_id == job.id
    why = ItemFailed("compression_failed", "distill: the teacher is gone")
    close(database, lease, ShardOutcome(dict.fromkeys(lease.input_ids, why)))
    (teacher,) = spec_of(client, job).teachers.values()
    return job, teacher


@pytest.mark.parametrize(
    "became",
    [
        "UPDATE jobs SET state = 'failed', finished_at = now() WHERE id = :id",
        "UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE id = :id",
        "UPDATE jobs SET state = 'expired', finished_at = now() WHERE id = :id",
        "UPDATE jobs SET state = 'succeeded', finished_at = now(), failed = 1 WHERE id = :id",
        "DELETE FROM jobs WHERE id = :id",
    ],
)
def test_a_retry_asks_a_teacher_again_that_did_not_succeed(client: Client, database: Database, became: str) -> None:
    job, teacher = failed(client, database, "minilm")
    execute(database, became, id=teacher)
    retry = job.retry_failed()
    (again,) = spec_of(client, retry).teachers.values()
    assert again != teacher
    asked = client.job(again)
    assert (asked.state, asked.info.model, asked.counts.items) == ("queued", "minilm@1", 4)
    before = query(database, "SELECT count(*) FROM jobs")
    assert job.retry_failed().id == retry.id
    assert query(database, "SELECT count(*) FROM jobs") == before  # nor is anybody asked once more


@pytest.mark.parametrize("state", ["queued", "running", "paused", "succeeded"])
def test_a_retry_keeps_a_teacher_that_is_at_work_or_done(client: Client, database: Database, state: str) -> None:
    job, teacher = failed(client, database, "minilm")
    execute(database, f"UPDATE jobs SET state = '{state}' WHERE id = :id", id=teacher)
    assert list(spec_of(client, job.retry_failed()).teachers.values()) == [teacher]


def test_a_retry_is_taught_by_the_model_as_it_is_now(client: Client, database: Database) -> None:
    client.models.add("aging", str(MINILM))
    job, teacher = failed(client, database, "aging")
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=teacher)
    client.models.invalidate("aging")
    (again,) = spec_of(client, job.retry_failed()).teachers.values()
    targets = query(database, "SELECT target_id FROM jobs WHERE id IN (:a, :b)", a=teacher, b=again)
    assert len(set(targets)) == 2


def test_nobody_is_asked_for_what_is_not_retried(client: Client, database: Database) -> None:
    job = client.compress("minilm", DISTILL, name="untroubled")
    before = query(database, "SELECT count(*) FROM jobs")
    with pytest.raises(WrongState):
        job.retry_failed()
    close(database, claim(database))
    (teacher,) = spec_of(client, job).teachers.values()
    execute(database, "UPDATE jobs SET state = 'failed', finished_at = now() WHERE id = :id", id=teacher)
    with pytest.raises(NothingToRetry):
        job.retry_failed()
    assert query(database, "SELECT count(*) FROM jobs") == before


def write(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def test_the_command_line_submits_shows_and_reports(
    batchmill: Callable[..., Result], client: Client, database: Database, tmp_path: Path
) -> None:
    jsonl(tmp_path / "texts.jsonl", TEXTS[:6])
    recipe = write(
        tmp_path / "recipe.yaml",
        "name: by-hand\nevaluate: texts.jsonl\naccept: {fidelity: 0.9}\nsteps:\n"
        "  - {step: distill, data: texts.jsonl, student: [0, 3]}\n  - {step: quantize, method: nf4}\n",
    )
    checked = batchmill("compress", "check", "minilm", recipe)
    assert "distill into 2 layers" in checked.stdout
    assert "evaluation" in checked.stdout
    assert "no worker compresses now" in checked.stderr
    needs = json.loads(batchmill("compress", "check", "minilm", recipe, "--json").stdout)["needs"]
    assert [need["title"] for need in needs] == ["distill into 2 layers", "quantize nf4", "evaluation"]

    done = batchmill("compress", "minilm", recipe, "--accept", "fidelity=0.95,size_ratio=0.5")
    assert done.exit_code == 0, done.output
    assert "needs at most" in done.stderr
    job = client.compression(done.stdout.strip())
    spec = spec_of(client, job)
    assert (spec.name, spec.accept.fidelity, spec.accept.size_ratio) == ("by-hand", 0.95, 0.5)
    assert spec.evaluate.data.rows == spec.recipe[0].data.rows == 6

    lease = claim(database)
    at_work = StepProgress(
        position=1, title="distill into 2 layers", fraction=0.5, seconds_left=90, message="epoch 2/3"
    )
    with database.transaction() as connection:
        compressions.note_progress(connection, lease, at_work)
    shown = batchmill("jobs", "show", str(job.id)).stdout
    assert "distill into 2 layers, 50% epoch 2/3" in shown
    assert "compress" in shown
    assert "becomes" in shown
    assert "operation" not in shown
    assert "compress minilm@1" in batchmill("jobs", "list").stdout
    execute(
        database,
        "UPDATE shards SET state = 'queued', token = NULL, lease_expires_at = NULL WHERE token = :t",
        t=lease.token,
    )
    assert isinstance(batchmill("compress", "report", str(job.id)).exception, WrongState)

    (tmp_path / "report.html").write_text("<html>plots</html>")
    (page,) = ArtifactStore(client.settings.artifacts_url).add(tmp_path, ["report.html"])
    complete(database, html=page)
    watched = batchmill("jobs", "watch", str(job.id)).stderr
    assert "by-hand@1" in watched
    assert "accepted" in watched
    report = batchmill("compress", "report", str(job.id)).stdout
    assert "asked: fidelity" in report
    assert "0.9750" in report
    assert "made the model slower here" in report
    flat = " ".join(report.split())
    assert "step 1 (quantize nf4): 16 weights stay as they are." in flat
    assert "held-out loss 0.4000 at update 0, 0.1250 at update 30; stopped early, and update 30 kept" in flat
    assert json.loads(batchmill("compress", "report", str(job.id), "--json").stdout)["model"] == "by-hand@1"
    out = tmp_path / "out.html"
    assert "the report is in" in batchmill("compress", "report", str(job.id), "--output", str(out)).stderr
    assert out.read_text() == "<html>plots</html>"
    model = batchmill("models", "show", "by-hand").stdout
    assert "minilm@1" in model
    assert "distill into 2 layers; quantize nf4" in model


def test_a_browser_is_shown_the_page(
    batchmill: Callable[..., Result],
    client: Client,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = client.compress("minilm", NF4, name="opened")
    (tmp_path / "report.html").write_text("<html>plots</html>")
    (page,) = ArtifactStore(client.settings.artifacts_url).add(tmp_path, ["report.html"])
    complete(database, html=page)
    browser = write(tmp_path / "browser", f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    Path(browser).chmod(0o700)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    assert batchmill("compress", "report", str(job.id), "--open").exit_code == 0
    opened = (tmp_path / "opened").read_text().strip().removeprefix("file://")
    assert Path(opened).read_text() == "<html>plots</html>"


def test_recipes_that_are_no_files_of_ours(batchmill: Callable[..., Result], tmp_path: Path) -> None:
    for content, said in (
        ("steps: 3", "give a list of steps, or a mapping with `steps`"),
        ("{steps: [], pool: x}", "there is no 'pool'; beside steps it takes name, evaluate"),
        ("[{", "recipe.yaml: not YAML"),
        ("- {step: squash}", "step 1 of the recipe (squash): there is no such step"),
    ):
        done = batchmill("compress", "minilm", write(tmp_path / "recipe.yaml", content))
        assert said in str(done.exception)
    assert "cannot be read" in str(batchmill("compress", "minilm", str(tmp_path / "none.yaml")).exception)


def test_a_rejected_model_is_marked(batchmill: Callable[..., Result], client: Client, database: Database) -> None:
    client.compress("minilm", NF4, name="missed", evaluate=TEXTS[:3], accept={"fidelity": 1.0})
    complete(database, rejected=True)
    assert "(rejected)" in batchmill("models", "list").stdout
    assert "rejected" in batchmill("models", "show", "missed").stdout
    with pytest.raises(UnknownModel, match="was rejected"):
        client.submit("missed", ["a"])
    with database.transaction() as connection:
        assert models.get(connection, "missed@1").rejected
