"""The command line as a whole: help that teaches, exit codes, and errors without tracebacks."""

import argparse
import subprocess
import sys

import pytest

from rlcore.cli import main as cli
from rlcore.errors import fail


@pytest.fixture
def command(monkeypatch):
    """Replace what `rlcore doctor` does by a function."""

    class Module:
        """What it does."""

        @staticmethod
        def add_arguments(parser):
            parser.add_argument("--number", type=int)

    def replace(function):
        Module.run = staticmethod(function)
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: Module)

    return replace


def raising(error):
    def run(args):
        raise error

    return run


def test_help_names_every_command_and_the_first_steps(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert [name for name in cli.COMMANDS if f"  {name} " not in out] == []
    assert "first steps:" in out


def test_no_command_is_wrong_usage_and_shows_the_help(capsys):
    assert cli.main([]) == 2
    assert "first steps:" in capsys.readouterr().err


def test_an_unknown_command_gets_the_nearest_one(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["reciped"])
    assert end.value.code == 2
    assert "no command 'reciped'; did you mean recipes?" in capsys.readouterr().err


def test_wrong_arguments_are_wrong_usage(command):
    command(lambda args: 0)
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--number", "x"])
    assert end.value.code == 2


def test_the_exit_code_is_the_command_s(command):
    command(lambda args: args.number)
    assert cli.main(["doctor", "--number", "1"]) == 1


def test_an_error_for_the_user_is_said_on_stderr(command, capsys):
    command(raising(fail("recipe.yaml:3", "no such key", "did you mean seed?")))
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "error: recipe.yaml:3: no such key\n    try: did you mean seed?\n"


def test_a_missing_extra_gets_the_pip_command(command, capsys):
    command(raising(ModuleNotFoundError("No module named 'torch'", name="torch")))
    assert cli.main(["doctor"]) == 1
    assert "pip install 'rlcore[train]'" in capsys.readouterr().err


def test_an_unexpected_error_shows_no_traceback_unless_asked(command, capsys):
    command(raising(KeyError("x")))
    assert cli.main(["doctor"]) == 1
    assert "unexpected KeyError: 'x'" in capsys.readouterr().err
    for argv in (["--debug", "doctor"], ["doctor", "--debug"]):
        with pytest.raises(KeyError):
            cli.main(argv)


def test_resuming_nothing_asks_for_the_folder_of_a_run(capsys):
    assert cli.main(["train", "--resume"]) == 1
    assert "--run-dir DIR" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(command):
    command(raising(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130


def test_a_reader_that_goes_away_is_no_error():
    code = "import sys; from rlcore.cli.main import main; sys.exit(main(['list-plugins']))"
    pipe = f'{sys.executable} -c "{code}" | true; exit ${{PIPESTATUS[0]}}'
    run = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("name", ["list-plugins", "recipes", "doctor"])
def test_a_command_module_has_the_two_functions(name):
    module = cli.importlib.import_module(cli.COMMANDS[name][0])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert callable(module.run)
