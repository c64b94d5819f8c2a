import os
import subprocess
import sys

import pytest

from rlcore.telemetry.memory import MemoryMeter, tree_rss

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
