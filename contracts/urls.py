"""What URLs of databases may be, and what is shown of one that may hold a password."""

import re

VARIABLE = "env:"
"""How the URL of a database begins that is in a variable of the process."""

# A password may hold a slash, as SQLAlchemy reads it: what lies behind the colon goes up to the `@`, at worst a port.
# It may hold an `@` too, and blanks; behind a port, or in a text behind a blank, they are another word's.
_PASSWORD = r'(?:[^@\s]*|(?!\s|\d+\b)[^@"\n]*)(?:@[^/@\s"]*)*(?=@)'
_USER = re.compile(rf"(?<=://)([^/:\s]*):{_PASSWORD}")
_WHOLE = re.compile(r"\A((?!https?:)\w[\w+.-]*://[^/:]*):[^@]*(?:@[^/@]*)*(?=@)")
_QUERY = re.compile(r"(?<=[?&])([^=&\s]*(?:password|passwd|secret|token|sig|signature|key)[^=&\s]*)=[^&#\s]*", re.I)


def shown(url: str) -> str:
    """The URL, or the text that holds URLs, as people see it: without passwords."""
    if "://" not in url:
        return url
    for pattern, mask in ((_WHOLE, r"\1:***"), (_USER, r"\1:***"), (_QUERY, r"\1=***")):
        url = pattern.sub(mask, url)
    return url
