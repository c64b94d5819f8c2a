"""A process is told from another that has its number, and only the one meant is ended."""

import subprocess
import sys
from dataclasses import replace

import pytest

from rlcore.cluster.process_id import end, identify


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_the_process_meant_is_ended(sleeper):
    end(identify(sleeper.pid))
    assert sleeper.wait(timeout=60) == -9


@pytest.mark.parametrize("other", [{"started": "1"}, {"system": "another machine"}])
def test_a_process_that_has_its_number_is_let_alone(sleeper, other):
    end(replace(identify(sleeper.pid), **other))
    assert sleeper.poll() is None


def test_the_reaper_ends_what_it_was_told_of_and_nothing_that_has_its_number(sleeper, tmp_path):
    meant = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    folder = tmp_path / "ray"
    folder.mkdir()
    named = [f"{meant.pid}:{identify(meant.pid).started}", f"{sleeper.pid}:1"]
    subprocess.run([sys.executable, "-m", "rlcore.cluster.reaper", folder, *named], input=b"", check=True)
    assert meant.wait(timeout=60) == -9
    assert sleeper.poll() is None
    assert not folder.exists()


def test_what_has_ended_is_nobody(sleeper):
    sleeper.kill()
    sleeper.wait()
    assert identify(sleeper.pid) is None
