"""Options: all problems at once, each at its own place."""

import pickle

import pytest
from pydantic import BaseModel

from rlcore.errors import RlcoreError
from rlcore.registry.options import parse


class Inner(BaseModel):
    depth: int = 1


class Options(BaseModel):
    url: str
    retries: int = 3
    inner: Inner = Inner()


class Open(BaseModel, extra="allow"):
    url: str = ""


def problems(options):
    with pytest.raises(RlcoreError) as error:
        parse(Options, options, "rewards[0].options")
    return {problem.place: (problem.message, problem.remedy) for problem in error.value.problems}


def test_every_problem_is_reported_at_its_own_place():
    found = problems({"retrys": 1, "retries": "many", "inner": {"depth": None}})
    assert found["rewards[0].options.retrys"] == ("there is no such option", "did you mean retries?")
    assert found["rewards[0].options.url"] == ("this option must be given", "")
    assert "not 'many'" in found["rewards[0].options.retries"][0]
    assert "not None" in found["rewards[0].options.inner.depth"][0]


def test_an_unknown_option_far_from_any_lists_what_there_is():
    message = problems({"url": "x", "zzz": 1})["rewards[0].options.zzz"]
    assert message == ("there is no such option", "options are: inner, retries, url")


def test_a_model_that_allows_extra_options_gets_them():
    assert parse(Open, {"any": 1}, "").any == 1


def test_options_travel_to_other_processes():
    options = parse(Options, {"url": "x"}, "")
    assert pickle.loads(pickle.dumps(options)) == options
    assert type(options) is Options
