"""Webhook secrets: made here, and encrypted as long as they rest in the database."""

import base64
import os
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from contracts.errors import ConfigurationError
from contracts.settings import Settings

KEY_FILE = "secret.key"
_SECRET_BYTES = 32
_PREFIX = "whsec_"


def new_secret() -> str:
    """A secret as Standard Webhooks 1.0 writes it: `whsec_` and 32 random bytes in base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


class Keyring:
    """Encrypts with its first key and decrypts with any (Fernet: AES-128-CBC with HMAC-SHA256).

    Args:
        keys: Fernet keys, 32 bytes in base64.

    Raises:
        ConfigurationError: There is no key, or one that is none; the message does not quote it.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError:
            raise ConfigurationError(f"BATCHMILL_SECRET_KEY: {_HOW}") from None

    @classmethod
    def load(cls, settings: Settings) -> "Keyring":
        """The keys of the setting, or those that `<home>/secret.key` holds.

        Raises:
            ConfigurationError: There is neither, or the file cannot be read.
        """
        if settings.secret_key is not None:
            text = settings.secret_key.get_secret_value()
        else:
            file = settings.home.expanduser() / KEY_FILE
            try:
                text = file.read_text()
            except FileNotFoundError:
                raise ConfigurationError(
                    f"BATCHMILL_SECRET_KEY is not set, and webhook secrets are encrypted with it: {_HOW}"
                ) from None
            except OSError as error:
                raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
        return cls([key.strip() for key in text.split(",") if key.strip()])

    def encrypt(self, secret: str) -> bytes:
        """What the database may hold."""
        return self._fernet.encrypt(secret.encode())

    def decrypt(self, sealed: bytes) -> str:
        """The secret.

        Raises:
            ConfigurationError: None of the keys encrypted it.
        """
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken:
            raise ConfigurationError(_OTHER_KEY) from None

    def reencrypt(self, sealed: bytes) -> bytes:
        """The same secret under the first key.

        Raises:
            ConfigurationError: None of the keys encrypted it.
        """
        try:
            return self._fernet.rotate(sealed)
        except InvalidToken:
            raise ConfigurationError(_OTHER_KEY) from None


def ensure_key_file(home: Path) -> None:
    """Make `<home>/secret.key`, readable by its owner alone, unless it stands; any number may call it at once."""
    file = home / KEY_FILE
    if file.exists():
        return
    descriptor, temporary = tempfile.mkstemp(dir=home, prefix=f".{KEY_FILE}.")  # 0600
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(Fernet.generate_key() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):  # somebody was faster: theirs counts
            os.link(temporary, file)
    finally:
        os.unlink(temporary)


_HOW = "give one or more keys of 32 bytes in base64, as `openssl rand -base64 32` prints them, with commas between"
_OTHER_KEY = (
    "a webhook secret was encrypted with a key that BATCHMILL_SECRET_KEY does not hold: add that key at its end"
)
