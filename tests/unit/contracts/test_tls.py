from pathlib import Path

import pytest

from contracts import tls
from contracts.errors import ConfigurationError
from contracts.settings import load_settings

DATABASE = "postgresql://me:p%40ss@db/name?application_name=x&sslmode=prefer"


@pytest.fixture
def ca(tmp_path: Path) -> str:
    (tmp_path / "ca one.pem").touch()
    return str(tmp_path / "ca one.pem")


def test_a_ca_of_the_database_means_verified_tls_whatever_the_url_says(ca: str) -> None:
    secured = tls.database_url(DATABASE, ca)
    quoted = ca.replace("/", "%2F").replace(" ", "+")
    assert secured == (f"postgresql://me:p%40ss@db/name?application_name=x&sslmode=verify-full&sslrootcert={quoted}")
    assert tls.database_url(secured, ca) == secured
    assert tls.database_url("postgresql:///name", "system") == (
        "postgresql:///name?sslmode=verify-full&sslrootcert=system"
    )
    assert tls.database_url(DATABASE, None) == DATABASE


def test_what_the_broker_is_verified_by_and_shown_is_in_its_url(ca: str) -> None:
    secured = tls.broker_url("rediss://:p@mq:6380/3", ca, Path(ca), None)
    assert secured.startswith("rediss://:p@mq:6380/3?ssl_ca_certs=")
    assert "ssl_certfile=" in secured
    assert tls.broker_url(secured, ca, Path(ca), None) == secured
    assert tls.broker_url("redis://mq", None, None, None) == "redis://mq"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"broker_url": "redis://mq"}, "asks for no TLS: write rediss://"),
        ({"broker_ca": "/nowhere/ca.pem"}, "BATCHMILL_BROKER_CA: there is no file /nowhere/ca.pem"),
        ({"database_ca": "/nowhere/ca.pem"}, "BATCHMILL_DATABASE_CA: there is no file"),
        ({"broker_ca": None, "broker_key": "/nowhere/key.pem"}, "goes with BATCHMILL_BROKER_CERTIFICATE"),
        ({"broker_url": None, "database_url": None}, "the embedded servers speak no TLS"),
    ],
)
def test_settings_that_cannot_be_meant(
    changes: dict[str, str | None], message: str, ca: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "BROKER_URL"):
        monkeypatch.delenv(f"BATCHMILL_{name}", raising=False)
    settings = {"database_url": "postgresql:///name", "broker_url": "rediss://mq", "broker_ca": ca} | changes
    with pytest.raises(ConfigurationError, match=message):
        load_settings(**settings)
