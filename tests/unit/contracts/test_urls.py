"""What is shown of URLs."""

import pytest

from contracts.urls import shown


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("postgresql://u:hush@db:5432/app", "postgresql://u:***@db:5432/app"),
        ("postgresql+psycopg://u:hu/s:h@db/app", "postgresql+psycopg://u:***@db/app"),
        ("postgresql://:hush@db/app", "postgresql://:***@db/app"),
        ("postgresql://u@db:5432/app", "postgresql://u@db:5432/app"),
        ("postgresql:///app?host=/run&password=hush&user=u", "postgresql:///app?host=/run&password=***&user=u"),
        ("https://b.example/r?X-Amz-Signature=hush#top", "https://b.example/r?X-Amz-Signature=***#top"),
        ("postgresql://u:a hush@h/x", "postgresql://u:***@h/x"),
        ("postgresql://u: hush@h/x", "postgresql://u:***@h/x"),
        ("sink postgresql://u:a hush@h/x: gone", "sink postgresql://u:***@h/x: gone"),
        ("postgresql://u@server:hush@h/x", "postgresql://u@server:***@h/x"),
        ("sftp://u:a@hush@h/x", "sftp://u:***@h/x"),
        ("s3://bucket: no such bucket", "s3://bucket: no such bucket"),
        ("http://h:80 does not answer me@h", "http://h:80 does not answer me@h"),
        ("see s3://k:hush@b/x and s3://k:hush@b/y", "see s3://k:***@b/x and s3://k:***@b/y"),
        ("env:NAME", "env:NAME"),
        ("/data/a:b@c.jsonl", "/data/a:b@c.jsonl"),
        ("C:/data/in.jsonl", "C:/data/in.jsonl"),
        ("", ""),
    ],
)
def test_passwords_are_not(url: str, seen: str) -> None:
    assert shown(url) == seen
    assert "hush" not in seen
