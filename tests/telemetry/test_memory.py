import os
import subprocess
import sys
import threading

import pytest

from rlcore.telemetry.memory import MemoryMeter, descendants, tree_rss

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

EAT = "import sys; block = bytearray(200_000_000); print('ready', flush=True); sys.stdin.read()"


def test_children_are_counted_while_they_live_and_remembered_after():
    with MemoryMeter() as meter:
        child = subprocess.Popen([sys.executable, "-c", EAT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        both = tree_rss(os.getpid())
        meter.peak_gb()
        child.communicate()
    assert both - tree_rss(os.getpid()) > 150_000_000
    assert meter.peak_gb() - tree_rss(os.getpid()) / 1e9 > 0.15


def test_children_are_found_while_threads_come_and_go():
    child = subprocess.Popen(["sleep", "60"])
    ended = threading.Event()

    def churn():
        while not ended.is_set():
            threads = [threading.Thread(target=int) for _ in range(20)]
            for thread in threads:
                thread.start()

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        assert all(child.pid in descendants(os.getpid()) for _ in range(200))
    finally:
        ended.set()
        churning.join()
        child.kill()
        child.wait()
