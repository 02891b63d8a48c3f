import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from contracts.errors import ConfigurationError
from contracts.settings import Settings, load_settings
from storage.secrets import KEY_FILE, Keyring, ensure_key_file, new_secret

OLD = base64.b64encode(b"o" * 32).decode()  # as `openssl rand -base64 32` prints it
NEW = base64.b64encode(bytes(range(224, 256))).decode()


def test_a_secret_is_what_standard_webhooks_takes() -> None:
    secret = new_secret()
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert secret != new_secret()
    Webhook(secret)


def test_the_first_key_encrypts_and_every_key_decrypts() -> None:
    sealed = Keyring([OLD]).encrypt("whsec_x")
    assert b"whsec" not in sealed
    both = Keyring([NEW, OLD])
    assert both.decrypt(sealed) == "whsec_x"
    assert Keyring([NEW]).decrypt(both.reencrypt(sealed)) == "whsec_x"
    with pytest.raises(ConfigurationError, match="does not hold"):
        Keyring([NEW]).decrypt(sealed)
    with pytest.raises(ConfigurationError, match="does not hold"):
        Keyring([NEW]).reencrypt(sealed)


@pytest.mark.parametrize("keys", ["", ",", "short", f"{OLD},short", "ü" * 44])
def test_a_wrong_key_is_not_quoted(keys: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="openssl rand") as caught:
        Keyring.load(Settings(home=tmp_path, secret_key=SecretStr(keys)))
    assert "short" not in str(caught.value)


def test_the_setting_comes_before_the_file(tmp_path: Path) -> None:
    ensure_key_file(tmp_path)
    own = Keyring.load(Settings(home=tmp_path))
    assert own.decrypt(own.encrypt("s")) == "s"
    given = Keyring.load(Settings(home=tmp_path, secret_key=SecretStr(f"{NEW}, {OLD}")))
    assert given.decrypt(Keyring([OLD]).encrypt("s")) == "s"
    with pytest.raises(ConfigurationError):
        given.decrypt(own.encrypt("s"))


def test_without_a_key_one_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"BATCHMILL_SECRET_KEY is not set.*openssl rand -base64 32"):
        Keyring.load(Settings(home=tmp_path))


def test_many_that_start_at_once_make_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        for made in [pool.submit(ensure_key_file, tmp_path) for _ in range(64)]:
            made.result()
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    Keyring.load(Settings(home=tmp_path))


def test_settings_do_not_show_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_SECRET_KEY", OLD)
    settings = load_settings()
    assert OLD not in f"{settings} {settings!r} {settings.model_dump(mode='json')}"
