import argparse
import json

import pytest

from rlcore.cli import report
from rlcore.errors import RlcoreError
from rlcore.telemetry.run_folder import RunFolder


def call(*arguments):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_page_is_written_into_the_run_and_named(tmp_path, capsys):
    RunFolder.create(tmp_path, resume=False).close()
    assert call(tmp_path) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_scripts_get_json(tmp_path, capsys):
    RunFolder.create(tmp_path, resume=False).close()
    call(tmp_path, "--json")
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "report.html")}


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RlcoreError, match=str(tmp_path / "nothing")):
        call(tmp_path / "nothing")
