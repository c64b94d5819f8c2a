"""A sender that nobody comes to is let go, and not left waiting."""

import multiprocessing
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

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


def stay(port):
    """Comes to the meeting, as a server does, and takes nothing."""
    where = dist.PrefixStore("m", dist.TCPStore("127.0.0.1", port, 2, is_master=False, wait_for_workers=False))
    join = dist.distributed_c10d._new_process_group_helper
    group, _ = join(2, 1, [], dist.Backend("gloo"), where, group_name="m", timeout=timedelta(seconds=60))
    time.sleep(600)
    del group


def test_a_sender_leaves_a_bundle_that_nobody_takes_and_is_done_once_the_other_is_gone():
    store = open_store("127.0.0.1", 2)
    other = multiprocessing.get_context("spawn").Process(target=stay, args=(store.port,), daemon=True)
    other.start()
    sender = Broadcaster(Meeting("m", "127.0.0.1", store.port, 2, "gloo"))
    sender.send(torch.zeros(100_000, dtype=torch.uint8))
    sender.leave()
    assert not sender.is_over
    other.kill()
    while not sender.is_over:
        time.sleep(0.01)
