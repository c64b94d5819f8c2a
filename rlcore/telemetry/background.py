"""A daemon thread that does something again and again while the body of a `with` runs."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Background:
    """Calls `action` every `seconds`, first after the first wait; leaving the body waits for the last call."""

    def __init__(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        self._seconds = seconds
        self._action = action
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)

    def _repeat(self) -> None:
        while not self._stop.wait(self._seconds):
            self._action()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
