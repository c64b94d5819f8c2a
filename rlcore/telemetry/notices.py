"""What parts of rlcore warn of while a run goes on, on the screen and among its events.

They warn through `logging`, so that none of them has to know that there is a run.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlcore.telemetry.events import EventLog


class _Notices(logging.Handler):
    def __init__(self, events: EventLog, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._events = events
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._note(text)
        self._events.record("warning", text=text, source=record.name)


@contextmanager
def noticed(events: EventLog, note: Callable[[str], None]) -> Iterator[None]:
    """Have warnings of rlcore's modules recorded and shown by `note` inside."""
    handler, logger = _Notices(events, note), logging.getLogger("rlcore")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
