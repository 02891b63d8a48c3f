"""Torch's default dtype, which every thread sees: models compute under it side by side, and one load changes it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """A lock that many threads may share, or one thread has to itself; a thread may take it again while it has it.

    Whoever wants it alone is not kept waiting by threads that come later.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharers: dict[int, int] = {}
        """By thread, how often it took it."""
        self._owner: int | None = None
        self._depth = 0
        self._waiting = 0

    def share(self) -> None:
        """Take it beside others."""
        me = threading.get_ident()
        with self._changed:
            if me not in self._sharers and me != self._owner:
                self._changed.wait_for(lambda: self._owner is None and not self._waiting)
            self._sharers[me] = self._sharers.get(me, 0) + 1

    def unshare(self) -> None:
        """Let it go, once for each time that it was taken."""
        me = threading.get_ident()
        with self._changed:
            self._sharers[me] -= 1
            if not self._sharers[me]:
                del self._sharers[me]
            self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have it to oneself."""
        me = threading.get_ident()
        with self._changed:
            if self._owner != me:
                self._waiting += 1
                self._changed.wait_for(lambda: self._owner is None and not set(self._sharers) - {me})
                self._waiting -= 1
                self._owner = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                self._changed.notify_all()


DEFAULT_DTYPE = SharedLock()
"""Shared by passes through any model; had alone by a load while torch's default dtype is that of the model to come."""
