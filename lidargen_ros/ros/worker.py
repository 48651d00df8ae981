# SPDX-License-Identifier: Apache-2.0
"""One worker thread with a queue of one, in which the newest wins."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Worker(Generic[Item]):
    """Runs ``work(item)`` on a thread of its own, for the newest item only.

    Args:
        work: may raise; ``failed`` then hears of it and the thread goes on.
        replaced: hears of an item that a newer one pushed out before its turn, or that :meth:`stop` left behind.
        failed: called on the worker's thread with the item and what was raised.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Item], None],
        *,
        replaced: Callable[[Item], None],
        failed: Callable[[Item, Exception], None],
    ) -> None:
        self.name = name
        self._work, self._replaced, self._failed = work, replaced, failed
        self._condition = threading.Condition()
        self._next: list[Item] = []
        self._since: float | None = None  # when the item at hand was begun
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        with self._condition:
            return self._since is None and not self._next

    @property
    def busy_s(self) -> float:
        """Seconds since the item at hand was begun; 0 without one."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, item: Item) -> None:
        """Hand over an item; never blocks on the work."""
        with self._condition:
            pushed_out = [item] if self._stopping else self._next
            if not self._stopping:
                self._next = [item]
                self._condition.notify()
        for old in pushed_out:
            self._replaced(old)

    def stop(self, timeout_s: float = 10.0, *, drain: bool = False) -> bool:
        """Finish the item at hand, or the next one where none is; returns whether the thread ended in time.

        Args:
            drain: finish the next one as well.
        """
        with self._condition:
            self._stopping = True
            left: list[Item] = []
            if self._since is not None and not drain:
                left, self._next = self._next, []
            self._condition.notify()
        for item in left:
            self._replaced(item)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._since = None
                while not self._next and not self._stopping:
                    self._condition.wait()
                if not self._next:
                    return
                item, self._next = self._next[0], []
                self._since = time.monotonic()
            try:
                self._work(item)
            except Exception as e:  # noqa: BLE001  # nothing is hidden: failed() reports it, and the thread must live
                self._failed(item, e)
