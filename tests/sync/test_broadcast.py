"""A sender that nobody comes to is let go, and not left waiting."""

import threading
import time

import pytest

from rlcore.errors import RlcoreError
from rlcore.sync.broadcast import Broadcaster, open_store
from rlcore.sync.parcel import Meeting


def test_a_meeting_whose_store_is_closed_ends_for_the_sender_that_waits():
    store = open_store("127.0.0.1", 2)
    meeting = Meeting("nobody", "127.0.0.1", store.port, 2, "gloo")
    errors = []

    def wait_for_others():
        with pytest.raises(RlcoreError, match="not all of 1 server ranks came") as caught:
            Broadcaster(meeting)
        errors.append(caught.value)

    waiting = threading.Thread(target=wait_for_others)
    waiting.start()
    # The sender says that it is there.
    while store.num_keys() < 1:
        time.sleep(0.01)
    del store
    waiting.join(timeout=60)
    assert errors
