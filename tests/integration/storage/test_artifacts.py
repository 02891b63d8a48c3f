import errno
import hashlib
import io
import multiprocessing
import os
import random
import resource
import signal
import uuid
from pathlib import Path

import fsspec
import pytest

from contracts.errors import ArtifactError, ArtifactsUnavailable, ConfigurationError
from contracts.models import ArtifactFile
from storage.artifacts import ArtifactStore, manifest_digest

FILES = {
    "config.json": b"{}",
    "model.safetensors": random.Random(1).randbytes(100_000),
    "1_Pooling/config.json": b"{}",
    "e.txt": b"",
}


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "source"
    for path, content in FILES.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    return source


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        return ArtifactStore(str(tmp_path / "store"))
    return ArtifactStore(f"memory://{uuid.uuid4().hex}/models")


def stored(store: ArtifactStore) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(store.url)
    return {path.removeprefix(root): fs.cat_file(path) for path in fs.find(root)}


def location(file: ArtifactFile) -> str:
    return f"/sha256/{file.sha256[:2]}/{file.sha256}"


def overwrite(store: ArtifactStore, file: ArtifactFile, content: bytes | None) -> None:
    fs, root = fsspec.core.url_to_fs(store.url)
    if content is None:
        fs.rm_file(root + location(file))
    else:
        fs.pipe_file(root + location(file), content)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_added_comes_back(store, folder, tmp_path):
    manifest = store.add(folder)
    assert [f.path for f in manifest] == sorted(FILES)
    for file in manifest:
        assert file.sha256 == hashlib.sha256(FILES[file.path]).hexdigest()
        assert file.size == len(FILES[file.path])
    assert stored(store) == {location(f): FILES[f.path] for f in manifest}  # equal files once, nothing else
    fetched = store.fetch(manifest, tmp_path / "cache")
    assert fetched == tmp_path / "cache" / manifest_digest(manifest)
    assert contents(fetched) == FILES
    assert not any(path.is_symlink() for path in fetched.rglob("*"))
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_only_the_files_named_are_taken_and_links_are_followed(store, folder, tmp_path):
    (folder / "linked.json").symlink_to(folder / "config.json")
    manifest = store.add(folder, ["linked.json", "1_Pooling/config.json"])
    fetched = store.fetch(manifest, tmp_path / "cache")
    assert contents(fetched) == {"linked.json": b"{}", "1_Pooling/config.json": b"{}"}
    assert not (fetched / "linked.json").is_symlink()
    with pytest.raises(ArtifactError, match=r"gone\.json"):
        store.add(folder, ["gone.json"])


def test_what_is_there_is_not_written_again_unless_its_size_is_wrong(store, folder):
    manifest = store.add(folder)
    weights = next(f for f in manifest if f.path == "model.safetensors")
    marked = bytes(weights.size)
    overwrite(store, weights, marked)
    assert store.add(folder) == manifest
    assert stored(store)[location(weights)] == marked
    overwrite(store, weights, b"cut")
    assert store.add(folder) == manifest
    assert stored(store)[location(weights)] == FILES["model.safetensors"]


def test_the_digest_of_a_manifest_ignores_order_and_sees_every_field(store, folder):
    files = store.add(folder)
    assert manifest_digest(files) == manifest_digest(reversed(files))
    for change in ({"path": "x"}, {"sha256": "0" * 64}, {"size": 5}):
        assert manifest_digest([files[0].model_copy(update=change), *files[1:]]) != manifest_digest(files)


@pytest.mark.parametrize("content", [None, b"short", bytes(100_000)], ids=["missing", "cut", "altered"])
def test_a_wrong_file_in_the_store_is_named_and_nothing_is_left(store, folder, tmp_path, content):
    manifest = store.add(folder)
    weights = next(f for f in manifest if f.path == "model.safetensors")
    overwrite(store, weights, content)
    with pytest.raises(ArtifactError, match=rf"model\.safetensors.*{weights.sha256}") as caught:
        store.fetch(manifest, tmp_path / "cache")
    if content is not None:
        assert f"found {hashlib.sha256(content).hexdigest()}" in str(caught.value)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    overwrite(store, weights, FILES["model.safetensors"])
    assert contents(store.fetch(manifest, tmp_path / "cache")) == FILES


def test_a_cache_is_used_again_and_mended(store, folder, tmp_path):
    manifest = store.add(folder)
    fetched = store.fetch(manifest, tmp_path / "cache")
    inode = (fetched / "model.safetensors").stat().st_ino
    assert (store.fetch(manifest, tmp_path / "cache") / "model.safetensors").stat().st_ino == inode
    for damage in (lambda: (fetched / "model.safetensors").write_bytes(b"x"), (fetched / "config.json").unlink):
        damage()
        assert contents(store.fetch(manifest, tmp_path / "cache")) == FILES
    assert set(stored(store)) == {location(f) for f in manifest}
    (fetched / "model.safetensors").write_bytes(b"x")  # what a worker does to its cache stays there
    assert FILES["model.safetensors"] in stored(store).values()


def flip(path: Path) -> None:
    """Change one bit in the middle, as a failing disk may; size and time stay."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_damaged_cache_is_seen_by_its_sums_at_every_fetch(store, folder, tmp_path, caplog):
    manifest = store.add(folder)
    fetched = store.fetch(manifest, tmp_path / "cache")
    for path in ("model.safetensors", "1_Pooling/config.json"):
        caplog.clear()
        flip(fetched / path)
        assert contents(store.fetch(manifest, tmp_path / "cache")) == FILES
        assert caplog.messages == [f"{fetched}: fetched anew, for it is damaged: {path}"]
    caplog.clear()
    assert store.fetch(manifest, tmp_path / "cache") == fetched
    assert caplog.messages == []


def test_damage_in_cache_and_store_is_refused(store, folder, tmp_path):
    manifest = store.add(folder)
    weights = next(f for f in manifest if f.path == "model.safetensors")
    fetched = store.fetch(manifest, tmp_path / "cache")
    overwrite(store, weights, bytes(weights.size))
    assert store.fetch(manifest, tmp_path / "cache") == fetched  # what is here is sound
    flip(fetched / "model.safetensors")
    for _ in range(2):
        with pytest.raises(ArtifactError, match=rf"model\.safetensors.*expected SHA-256 {weights.sha256}.*found"):
            store.fetch(manifest, tmp_path / "cache")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ".", "", "a//b", "./a", "a/", "a\\..\\b", "a\0", ".."])
def test_paths_that_lead_out_are_refused(store, tmp_path, path):
    with pytest.raises(ArtifactError, match="in a manifest"):
        store.fetch([ArtifactFile(path=path, sha256="0" * 64, size=0)], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_other_nonsense_in_manifests_is_refused(store, tmp_path):
    good = ArtifactFile(path="a", sha256="0" * 64, size=0)
    with pytest.raises(ArtifactError, match="no SHA-256"):
        store.fetch([ArtifactFile(path="a", sha256="../../../../etc/passwd", size=0)], tmp_path)
    with pytest.raises(ArtifactError, match="twice"):
        store.fetch([good, good], tmp_path)


def _fetch(url, manifest, cache, barrier):
    store = ArtifactStore(url)
    barrier.wait()
    for _ in range(5):
        assert contents(store.fetch(manifest, cache)) == FILES


def test_processes_that_fetch_and_add_at_once(folder, tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    manifest = store.add(folder)
    (tmp_path / "cache" / manifest_digest(manifest)).mkdir(parents=True)  # an incomplete one, in everybody's way
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    args = (store.url, manifest, tmp_path / "cache", barrier)
    processes = [context.Process(target=_fetch, args=args) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_fetch_that_was_killed_is_begun_anew(store, folder, tmp_path):
    manifest = store.add(folder)
    partial = tmp_path / "cache" / f".{manifest_digest(manifest)}.partial"
    partial.mkdir(parents=True)
    (partial / "old.bin").write_bytes(b"half")
    assert contents(store.fetch(manifest, tmp_path / "cache")) == FILES
    assert not partial.exists()


def test_a_write_that_the_system_refuses_leaves_nothing(folder, tmp_path):
    """A real refusal in the middle of a file, by the limit on file sizes."""
    store = ArtifactStore(str(tmp_path / "store"))
    manifest = store.add(folder)
    other = ArtifactStore(str(tmp_path / "other"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ArtifactsUnavailable, match=r"cache.*File too large"):
            store.fetch(manifest, tmp_path / "cache")
        with pytest.raises(ArtifactsUnavailable, match=r"artifact store .*other.*File too large"):
            other.add(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    assert not [path for path in stored(other) if "partial" in path]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "disk is full: free"), (errno.EROFS, "read-only: choose"), (errno.EACCES, "permission denied")],
)
def test_what_the_system_refuses_says_what_to_do(folder, tmp_path, monkeypatch, number, message):
    store = ArtifactStore(str(tmp_path / "store"))
    manifest = store.add(folder)

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(ArtifactsUnavailable, match=message):
        store.fetch(manifest, tmp_path / "cache")
    with pytest.raises(ArtifactsUnavailable, match=message):
        ArtifactStore(str(tmp_path / "other")).add(folder)


def test_a_file_that_changes_while_it_is_added(folder, tmp_path, monkeypatch):
    real = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda stream, name: real(io.BytesIO(b"before"), name))
    store = ArtifactStore(str(tmp_path / "store"))
    with pytest.raises(ArtifactError, match="changed while it was read"):
        store.add(folder)
    assert stored(store) == {}


@pytest.mark.parametrize("url", ["nosuch://x", "ftpx://a"])
def test_an_unknown_store_is_a_wrong_setting(url):
    with pytest.raises(ConfigurationError, match=url):
        ArtifactStore(url)
