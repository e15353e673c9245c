"""A bounded cache shared by threads: each value is read once, even if several threads request it at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """The most recently used values, up to a total size.

    Parameters
    ----------
    limit : maximum of the sum of `size` over all values; a value larger than a quarter of it is not kept
    size : of a value; by default each counts one
    """

    def __init__(self, limit: int, size: Callable[[Value], int] = lambda _: 1) -> None:
        self._limit, self._size = limit, size
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._reading: dict[Hashable, Future[Value]] = {}
        self._held = 0

    def get(self, key: Hashable, read: Callable[[], Value]) -> Value:
        """Return the value of `key`, by `read` if it is not cached.

        An error of `read` is raised in all threads that wait for the value.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            waiting = self._reading.get(key)
            if waiting is None:
                own = self._reading[key] = Future[Value]()
        if waiting is not None:
            return waiting.result()
        try:
            value = read()
        except BaseException as error:
            with self._lock:
                del self._reading[key]
            own.set_exception(error)
            raise
        with self._lock:
            del self._reading[key]
            self._keep(key, value)
        own.set_result(value)
        return value

    @property
    def held(self) -> int:
        """Sum of the sizes."""
        return self._held

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()
            self._held = 0

    def _keep(self, key: Hashable, value: Value) -> None:
        size = self._size(value)
        if 4 * size > self._limit:
            return
        self._values[key] = value
        self._held += size
        while self._held > self._limit:
            _, oldest = self._values.popitem(last=False)
            self._held -= self._size(oldest)
