# SPDX-License-Identifier: Apache-2.0
"""One worker thread with a queue of one, in which the newest wins."""

import threading
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
        self._work, self._replaced, self._failed = work, replaced, failed
        self._condition = threading.Condition()
        self._next: list[Item] = []
        self._busy = self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        with self._condition:
            return not self._busy and not self._next

    def submit(self, item: Item) -> None:
        """Hand over an item; never blocks on the work."""
        with self._condition:
            pushed_out = [item] if self._stopping else self._next
            if not self._stopping:
                self._next = [item]
                self._condition.notify()
        for old in pushed_out:
            self._replaced(old)

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Finish the item at hand, leave the next; returns whether the thread ended in time."""
        with self._condition:
            self._stopping = True
            left, self._next = self._next, []
            self._condition.notify()
        for item in left:
            self._replaced(item)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._next and not self._stopping:
                    self._condition.wait()
                if self._stopping:
                    return
                item, self._next = self._next[0], []
                self._busy = True
            try:
                self._work(item)
            except Exception as e:  # noqa: BLE001  # nothing is hidden: failed() reports it, and the thread must live
                self._failed(item, e)
            finally:
                with self._condition:
                    self._busy = False
