from datetime import date

import pytest

from contracts.errors import ConfigurationError, InvalidRequest
from producer.databases import open_engine
from producer.urls import database_url, dated, shown


def test_the_day_of_a_run() -> None:
    assert dated("out/{date}/a-{date}.csv", date(2026, 3, 9)) == "out/2026-03-09/a-2026-03-09.csv"
    assert dated("out/a.csv", None) == "out/a.csv"
    with pytest.raises(InvalidRequest, match=r"out/\{date\}.csv: \{date\} stands for the day of a run, and this has"):
        dated("out/{date}.csv", None)


def test_passwords_are_not_shown() -> None:
    assert shown("sftp://me:hush@host/a.csv") == "sftp://me:***@host/a.csv"
    assert shown("s3://bucket/a@b:c.csv") == "s3://bucket/a@b:c.csv"


def test_a_url_out_of_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE", "postgresql://me:hush@host/name")
    url = database_url("env:WAREHOUSE", "sink")
    assert (url.drivername, url.password) == ("postgresql+psycopg", "hush")
    assert "hush" not in url.render_as_string()
    monkeypatch.delenv("WAREHOUSE")
    with pytest.raises(InvalidRequest, match=r"sink env:WAREHOUSE: the variable WAREHOUSE is not set in this process"):
        database_url("env:WAREHOUSE", "sink")


def test_what_is_no_url_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("me:hush@host", "env:WAREHOUSE"):
        monkeypatch.setenv("WAREHOUSE", "me:hush@host")
        with pytest.raises(InvalidRequest, match="no URL of a database; write postgresql://") as caught:
            database_url(url, "sink")
        assert "hush" not in str(caught.value)


def test_databases_that_nobody_knows() -> None:
    for url in ("strange://host/name", "mysql+nosuchdriver://me:hush@host/name"):
        with pytest.raises(ConfigurationError, match="install (the package that teaches it|its driver)") as caught:
            open_engine(database_url(url, "sink"), "sink")
        assert "hush" not in str(caught.value)
