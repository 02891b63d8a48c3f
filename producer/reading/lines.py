"""Lines of input files: what a reader hands over, and the physical lines beneath it."""

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from contracts.errors import InvalidInput
from producer.reading.files import DAMAGE, File

MAX_ID_CHARACTERS = 512

_BOM = b"\xef\xbb\xbf"


class Entry(NamedTuple):
    """One line of a file: an item, or what is wrong with it."""

    where: str
    """What names it in messages: `reviews.jsonl, line 70123`; rows of parquet count from 1."""
    custom_id: str | None
    value: Any
    """The input, not yet canonicalized; None beside an error."""
    error: InvalidInput | None

    @classmethod
    def item(cls, where: str, custom_id: Any, value: Any) -> "Entry":
        """An item, when its id is one and its input is given; else what is wrong."""
        try:
            custom_id = check_custom_id(custom_id)
        except InvalidInput as error:
            return cls.bad(where, error.reason)
        if value is None:
            return cls.bad(where, "the input is null: give a value, or leave the line out")
        return cls(where, custom_id, value, None)

    @classmethod
    def bad(cls, where: str, reason: str) -> "Entry":
        """A line that cannot be taken."""
        return cls(where, None, None, InvalidInput(reason, where))


class RawLine(NamedTuple):
    """One physical line."""

    number: int
    """From 1."""
    offset: int
    """Bytes of the file before it, unpacked."""
    data: bytes
    """With its newline; empty when it is too long."""
    problem: str | None
    """Why it cannot be taken: it is too long."""

    def not_text(self, error: UnicodeDecodeError) -> str:
        """Why bytes of this line are no text, and where they stand."""
        return (
            f"invalid UTF-8 at byte {self.offset + error.start:,} of the file (0x{self.data[error.start]:02x}): "
            "convert the file to UTF-8"
        )


def check_custom_id(value: Any) -> str | None:
    """The caller's id of an item as text: a string or an integer; None stays None.

    Raises:
        InvalidInput: It is something else, empty, too long, or holds what Postgres cannot keep.
    """
    if value is None:
        return None
    if type(value) is int:
        value = digits(value)
    if type(value) is not str:
        raise InvalidInput(f"the id is of type {type(value).__name__}: give a string or an integer")
    if not value or len(value) > MAX_ID_CHARACTERS or "\0" in value or not _is_unicode(value):
        raise InvalidInput(
            f"the id {value[:40]!a} is empty, longer than {MAX_ID_CHARACTERS} characters, or holds a NUL or half of "
            "a surrogate pair: change it, or leave it out"
        )
    return value


def digits(number: int) -> str:
    """A number as the text of an id; one of thousands of digits, which Python refuses to write, as one too long."""
    return str(number) if number.bit_length() < 4 * MAX_ID_CHARACTERS else hex(number)


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def too_long(size: int, limit: int) -> str:
    """Why a line or an input of so many bytes is not taken."""
    return f"{size:,} bytes, and an input may take {limit:,} (BATCHMILL_MAX_INPUT_BYTES): split it"


def raw_lines(file: File, max_bytes: int) -> Iterator[RawLine]:
    """The physical lines of a file, without a byte order mark; one that is too long is not kept in memory.

    Raises:
        InvalidInput: The file cannot be opened, is damaged, shrinks while it is read, or its device fails.
        UnavailableError: A server that holds it does not answer.
    """
    number, offset, most = 1, 0, max_bytes + len(b"\r\n")
    # Of a packed file the packer's own end mark says whether it is whole.
    expected = 0 if file.compression else file.size
    with file.opened() as stream:
        while True:
            try:
                data = stream.readline(most)
                skipped = _skip_rest(stream, data, most) if len(data) == most else 0
            except DAMAGE as error:
                raise file.broken(error, f"line {number}") from None
            end = offset + len(data) + skipped
            if end < expected and not skipped and not data.endswith(b"\n"):
                raise InvalidInput(
                    f"the file had {expected:,} bytes when it was opened and ends here after {end:,}: something "
                    "shortened it meanwhile; submit it again when nothing writes to it",
                    f"{file.name}, line {number}",
                )
            if not data:
                return
            begin = len(_BOM) if number == 1 and data.startswith(_BOM) else 0
            if end - offset > max_bytes:
                size = end - offset - begin if skipped else len(data.rstrip(b"\r\n")) - begin
                if size > max_bytes:
                    yield RawLine(number, offset, b"", f"the line has {too_long(size, max_bytes)}")
                    number, offset = number + 1, end
                    continue
            yield RawLine(number, offset + begin, data[begin:], None)
            number, offset = number + 1, end


def _skip_rest(stream: IO[bytes], data: bytes, most: int) -> int:
    """Pass over what is left of a line that is too long; the number of bytes."""
    skipped = 0
    piece = data
    while len(piece) == most and not piece.endswith(b"\n"):
        piece = stream.readline(most)
        skipped += len(piece)
    return skipped
