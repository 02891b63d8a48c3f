from pathlib import Path

import pytest

from contracts.errors import StackError
from stack.sockets import socket_folder


@pytest.fixture
def long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    return tmp_path / ("x" * 100)


def test_a_folder_that_others_may_enter_is_refused(long: Path) -> None:
    folder = socket_folder(long)
    try:
        assert socket_folder(long) == folder
        folder.chmod(0o755)
        with pytest.raises(StackError, match=f"{folder} is not a folder that only"):
            socket_folder(long)
    finally:
        folder.rmdir()


def test_a_link_that_someone_put_there_is_refused(long: Path, tmp_path: Path) -> None:
    folder = socket_folder(long)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(StackError, match=f"{folder} is not a folder that only"):
            socket_folder(long)
    finally:
        folder.unlink()


def test_a_path_too_long_for_the_kernel_is_named(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(StackError, match="too long for a socket; set XDG_RUNTIME_DIR"):
        socket_folder(long)
