"""TLS to the servers: what the settings name, put into the servers' URLs, where every part of the program finds it.

Where TLS is on, the server's certificate and name are verified; there is no setting that turns this off.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from contracts.errors import ConfigurationError

SYSTEM = "system"
"""Instead of a file: the certificate authorities that this machine trusts."""
BROKER_SCHEMES = ("rediss", "amqps")


def database_url(url: str, ca: str | None) -> str:
    """The address of a Postgres to which only verified TLS is spoken, where a `ca` is named.

    Source of the names: libpq's documentation, "Parameter Key Words".

    Raises:
        ConfigurationError: There is no such file.
    """
    if ca is None:
        return url
    return _with(url, {"sslmode": "verify-full", "sslrootcert": _file("DATABASE_CA", ca)})


def broker_url(url: str, ca: str | None, certificate: Path | None, key: Path | None) -> str:
    """The address of a broker with whom it trusts, and who we are, where these are named.

    Raises:
        ConfigurationError: The URL asks for no TLS, there is no such file, or a key has no certificate.
    """
    if ca is None and certificate is None and key is None:
        return url
    if urlsplit(url).scheme not in BROKER_SCHEMES:
        raise ConfigurationError(
            "BATCHMILL_BROKER_URL: certificates are set for it, and it asks for no TLS: write rediss://… or amqps://…"
        )
    if key is not None and certificate is None:
        raise ConfigurationError("BATCHMILL_BROKER_KEY goes with BATCHMILL_BROKER_CERTIFICATE, which is not set")
    files = {"ca_certs": None if ca is None else _file("BROKER_CA", ca)}
    files["certfile"] = None if certificate is None else _file("BROKER_CERTIFICATE", str(certificate))
    files["keyfile"] = None if key is None else _file("BROKER_KEY", str(key))
    return _with(url, {f"ssl_{name}": path for name, path in files.items() if path is not None})


def _file(setting: str, path: str) -> str:
    if path == SYSTEM:
        return path
    absolute = Path(path).expanduser().absolute()
    if not absolute.is_file():
        raise ConfigurationError(f"BATCHMILL_{setting}: there is no file {absolute}")
    return str(absolute)


def _with(url: str, options: Mapping[str, str]) -> str:
    parts = urlsplit(url)
    kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in options]
    query = urlencode([*kept, *options.items()])
    # Put together by hand: urlunsplit drops the slashes of an address without a host.
    return f"{url.partition('?')[0].partition('#')[0]}?{query}"
