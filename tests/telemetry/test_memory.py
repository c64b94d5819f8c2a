import os
import subprocess
import sys

import pytest

from rlcore.telemetry.memory import MemoryMeter, tree_rss

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

EAT = "import sys; block = bytearray(200_000_000); print('ready', flush=True); sys.stdin.read()"


def test_children_are_counted_while_they_live_and_remembered_after():
    with MemoryMeter() as meter:
        before = tree_rss(os.getpid())
        child = subprocess.Popen([sys.executable, "-c", EAT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        assert tree_rss(os.getpid()) - before > 190_000_000
        meter.peak_gb()
        child.communicate()
    assert meter.peak_gb() > (before + 190_000_000) / 1e9
