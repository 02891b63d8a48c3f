"""What is shown of a URL that may hold a password."""

import re

# A password may hold a slash, as SQLAlchemy reads it: what lies behind the colon goes up to the `@`, at worst a port.
_USER = re.compile(r"(?<=://)([^/@:\s]*):[^@\s]*(?=@)")
_QUERY = re.compile(r"(?<=[?&])([^=&\s]*(?:password|passwd|secret|token|sig|signature|key)[^=&\s]*)=[^&#\s]*", re.I)


def shown(url: str) -> str:
    """The URL, or the text that holds URLs, as people see it: without passwords."""
    return _QUERY.sub(r"\1=***", _USER.sub(r"\1:***", url)) if "://" in url else url
