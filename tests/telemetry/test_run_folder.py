import os
import subprocess
import sys
from asyncio import CancelledError

import pytest

from rlcore.errors import RlcoreError
from rlcore.telemetry.events import read_events
from rlcore.telemetry.run_folder import RunFolder, RunPaths, is_being_written

HOLD_THE_RUN = """
import sys
from pathlib import Path
from rlcore.telemetry.run_folder import RunFolder
run = RunFolder.create(Path(sys.argv[1]), resume=False)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_new_run_has_its_folders_and_its_first_attempt(tmp_path):
    with RunFolder.create(tmp_path / "run", resume=False) as run:
        assert run.attempt == 1
        assert run.paths.rollouts.is_dir()
        assert run.paths.logs.is_dir()
        assert run.paths.checkpoints.is_dir()


def test_an_empty_folder_will_do(tmp_path):
    RunFolder.create(tmp_path, resume=False).close()
    assert RunPaths(tmp_path).is_run()


def test_every_start_is_a_new_attempt_with_its_end_recorded(tmp_path):
    RunFolder.create(tmp_path, resume=False).close()
    with RunFolder.create(tmp_path, resume=True) as run:
        assert run.attempt == 2
    events = [(event["attempt"], event["kind"]) for event in read_events(run.paths.events)]
    assert events == [(1, "start"), (1, "end"), (2, "start"), (2, "end")]


def test_the_start_tells_the_environment(tmp_path):
    RunFolder.create(tmp_path, resume=False).close()
    environment = read_events(RunPaths(tmp_path).events)[0]["environment"]
    assert environment["python"].startswith("3.")
    assert environment["cpus"] >= 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (CancelledError(), "interrupted"), (ValueError("bad"), "failed")],
)
def test_a_run_that_breaks_off_says_how(tmp_path, error, status):
    with pytest.raises(type(error)), RunFolder.create(tmp_path, resume=False):
        raise error
    assert read_events(RunPaths(tmp_path).events)[-1]["status"] == status


def test_a_run_is_not_overwritten_and_the_way_out_is_named(tmp_path):
    RunFolder.create(tmp_path, resume=False).close()
    with pytest.raises(RlcoreError, match=r"a run is already here: .*\n.*--resume .*another --run-dir"):
        RunFolder.create(tmp_path, resume=False)


@pytest.mark.parametrize("resume", [True, False])
def test_a_foreign_folder_is_left_alone(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RlcoreError, match=r"thesis\.tex"):
        RunFolder.create(tmp_path, resume=resume)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_what_does_not_exist_creates_nothing(tmp_path):
    with pytest.raises(RlcoreError, match="it does not exist"):
        RunFolder.create(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RlcoreError, match="is a file"):
        RunFolder.create(tmp_path / "run", resume=False)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RlcoreError, match=r"file/run: cannot be written: Not a directory"):
        RunFolder.create(tmp_path / "file" / "run", resume=False)


def test_two_processes_never_write_one_run(tmp_path):
    path = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_RUN, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "ready\n"
    assert is_being_written(path)
    with pytest.raises(RlcoreError, match=rf"another process is writing this run \(pid {holder.pid} "):
        RunFolder.create(path, resume=True)
    holder.kill()
    holder.communicate()
    with RunFolder.create(path, resume=True) as run:
        assert run.attempt == 2


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    run = RunFolder.create(tmp_path, resume=False)
    (child_is_up, say_up), (wait, let_go) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(let_go)
        os.write(say_up, b"!")
        os.read(wait, 1)
        os._exit(0)
    os.read(child_is_up, 1)
    run.close()
    assert not is_being_written(tmp_path)
    os.close(let_go)
    os.waitpid(child, 0)
