"""A lock for threads: shared by many, or exclusive to one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Threads enter together or alone; a thread that waits to be alone is not overtaken by later ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._waiting_alone = 0
        self._alone = False

    @contextmanager
    def enter(self, *, alone: bool) -> Iterator[None]:
        """Hold the lock; with `alone` no other thread is inside meanwhile."""
        with self._changed:
            self._waiting_alone += alone
            self._changed.wait_for(lambda: not (self._alone or (self._inside if alone else self._waiting_alone)))
            self._waiting_alone -= alone
            self._inside += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()
