"""Loading: what a sound plugin gives, and what is said of one that is not."""

import sys

import pytest

from rlcore.errors import RlcoreError
from rlcore.registry import Catalog
from rlcore.registry.options import NoOptions

CLASS_PLUGIN = """
    from pydantic import BaseModel
    from rlcore.plugin import RewardResult, hookimpl

    class Options(BaseModel):
        worth: float = 1.0

    class Fixed:
        def __init__(self, options):
            self.options = options
        async def score(self, samples):
            return [RewardResult(self.options.worth) for _ in samples]

    @hookimpl
    def reward(options: Options) -> Fixed:
        return Fixed(options)
"""


@pytest.fixture
def load(distribution):
    """Install a module of one reward and load it."""

    def make(source, entry="probe", kind="reward", group="rlcore.rewards"):
        distribution("test-one", f"[{group}]\nsteps = {entry}", probe=source)
        return Catalog.installed().load(kind, "steps")

    return make


@pytest.fixture
def refusal(load):
    """The message with which loading fails."""

    def make(source, *args, **kwargs):
        with pytest.raises(RlcoreError) as error:
            load(source, *args, **kwargs)
        return str(error.value)

    return make


def test_a_module_that_holds_a_factory_is_a_plugin(load):
    plugin = load(CLASS_PLUGIN)
    options = plugin.parse_options({"worth": 3}, "rewards[0].options")
    assert plugin.create(options).options.worth == 3.0
    assert type(options) is sys.modules["probe"].Options


def test_a_plugin_without_options_refuses_any(load):
    plugin = load("from rlcore.plugin import reward\n@reward\ndef steps(sample): return 1.0", "probe:steps")
    assert plugin.options_model is NoOptions
    with pytest.raises(RlcoreError, match="there is no such option"):
        plugin.parse_options({"any": 1}, "rewards[0].options")


def test_only_the_plugin_asked_for_is_imported(distribution, load):
    distribution("test-two", "[rlcore.rewards]\nother = other_probe", other_probe="raise RuntimeError")
    assert load(CLASS_PLUGIN).candidate.name == "steps"
    assert "other_probe" not in sys.modules


def test_a_broken_plugin_is_named_with_its_cause_line_and_remedy(refusal):
    text = refusal("\nvalue = 1 / 0\n")
    assert text.startswith(
        "reward 'steps' of test-one 1.0 (probe): is broken: ZeroDivisionError: division by zero"
    )
    assert "probe.py:2)" in text
    assert "pip uninstall test-one" in text


def test_a_plugin_that_exits_does_not_take_the_host_along(refusal):
    assert "is broken: SystemExit: 3" in refusal("import sys\nsys.exit(3)")


def test_a_syntax_error_names_its_line(refusal):
    assert "probe.py, line 1" in refusal("def (")


def test_a_missing_module_gets_the_pip_command(refusal):
    assert "pip install no_such_judge" in refusal("import no_such_judge.client")


def test_an_entry_point_that_leads_nowhere(refusal):
    assert "module 'probe' has no attribute 'gone'" in refusal("", "probe:gone")


def test_a_module_without_an_implementation_is_told_how_to_mark_one(refusal):
    text = refusal("def steps(sample): return 1.0")
    assert "it holds no implementation of the hook reward" in text
    assert "@hookimpl" in text
    assert "@reward" in text


def test_an_implementation_of_another_hook_is_not_enough(refusal):
    text = refusal("from rlcore.plugin import policy_loss\n@policy_loss\ndef steps(batch): ...", "probe:steps")
    assert "no implementation of the hook reward" in text


def test_a_hook_that_does_not_exist_is_an_error(refusal):
    text = refusal(CLASS_PLUGIN + "\n    @hookimpl\n    def rewards(options): ...\n")
    assert "unknown hook 'rewards'" in text


@pytest.mark.parametrize(
    ("definition", "complaint"),
    [
        ("def reward(option): ...", "it takes 'option'; the hook gives options"),
        ("def reward(options, more): ...", "it takes 'more'; the hook gives options"),
        ("def reward(**kwargs): ...", "it must name its argument (options) instead of *kwargs"),
        ("async def reward(options): ...", "it must be a plain function that returns the Reward, not async"),
        ("def reward(options) -> float: ...", "its return annotation is float: a Reward needs a method"),
        ("def reward(options) -> None: ...", "its return annotation is NoneType: a Reward needs a method"),
        ("def reward(options: dict): ...", "is annotated <class 'dict'>, which is no pydantic model"),
    ],
)
def test_a_wrong_signature_is_named_with_file_and_line(refusal, definition, complaint):
    text = refusal(f"from rlcore.plugin import hookimpl\n\n@hookimpl\n{definition}\n")
    assert complaint in text
    assert "probe.py:3" in text


@pytest.mark.parametrize(
    ("methods", "complaint"),
    [
        ("pass", "a Reward needs a method score(samples)"),
        ("def score(self, samples): ...", "score must be async"),
        ("async def score(self): ...", "score must take (samples)"),
    ],
)
def test_what_a_factory_returns_must_do_the_work(load, methods, complaint):
    source = f"""
    from rlcore.plugin import hookimpl

    class Wrong:
        {methods}

    @hookimpl
    def reward(options):
        return Wrong()
    """
    plugin = load(source)
    with pytest.raises(RlcoreError, match="which is no Reward") as error:
        plugin.create(plugin.parse_options({}, ""))
    assert complaint in str(error.value)


def test_fields_that_a_protocol_names_must_be_there(load):
    source = """
    from rlcore.plugin import hookimpl

    class Loss:
        def terms(self, batch): ...

    @hookimpl
    def policy_loss(options):
        return Loss()
    """
    plugin = load(source, kind="policy_loss", group="rlcore.losses")
    with pytest.raises(RlcoreError, match="it has no attribute 'needs'"):
        plugin.create(plugin.parse_options({}, ""))


def test_a_factory_that_raises_is_named_with_the_line(load):
    plugin = load(
        "from rlcore.plugin import hookimpl\n@hookimpl\ndef reward(options):\n    raise KeyError('judge')"
    )
    with pytest.raises(RlcoreError, match=r"its factory failed: KeyError: 'judge' \(.*probe.py:4\)"):
        plugin.create(plugin.parse_options({}, ""))


def test_a_factory_that_returns_nothing_is_refused(load):
    plugin = load("from rlcore.plugin import hookimpl\n@hookimpl\ndef reward(options): return None")
    with pytest.raises(RlcoreError, match="its factory returned None, which is no Reward"):
        plugin.create(plugin.parse_options({}, ""))
