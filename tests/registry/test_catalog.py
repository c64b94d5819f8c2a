"""The catalog: every state a plugin can be in, and what one who asks for it is told."""

import sys

import pytest

from rlcore.errors import RlcoreError
from rlcore.registry import Catalog


def message(call, *args):
    """What a user reads when the call fails."""
    with pytest.raises(RlcoreError) as error:
        call(*args)
    return str(error.value)


def made_up(catalog):
    """(name, dist, state) of the distributions made for the test."""
    return [(one.name, one.dist, one.state) for one in catalog.candidates if one.dist.startswith("test-")]


def test_a_plugin_is_found_without_being_imported(distribution):
    distribution("test-one", "[rlcore.rewards]\nsteps = steps_reward:plugin", steps_reward="raise SystemExit")
    found = Catalog.installed().find("reward", "steps")
    assert (found.kind, found.name, found.dist, found.version) == ("reward", "steps", "test-one", "1.0")
    assert (found.value, found.state) == ("steps_reward:plugin", "found")
    assert "steps_reward" not in sys.modules


def test_the_core_lists_its_own_plugins_by_the_same_way(distribution):
    catalog = Catalog.installed()
    assert {"clip", "gspo", "cispo"} <= set(catalog.names("policy_loss"))
    assert {"grpo", "rloo", "reinforce"} <= set(catalog.names("advantage_estimator"))
    assert "nonzero_std" in catalog.names("sampling_filter")


def test_a_name_that_is_not_installed_gets_the_nearest_one(distribution):
    distribution("test-one", "[rlcore.rewards]\nsteps = one:plugin")
    text = message(Catalog.installed().find, "reward", "stebs", "rewards[0].use")
    assert text.startswith("rewards[0].use: no reward 'stebs' is installed; there are:")
    assert "did you mean steps?" in text


def test_two_distributions_that_claim_a_name_are_both_named_with_the_way_out(distribution):
    distribution("test-one", "[rlcore.rewards]\nsteps = one:plugin")
    distribution("test-two", "[rlcore.rewards]\nsteps = two:plugin", version="2.0")
    catalog = Catalog.installed()
    assert made_up(catalog) == [("steps", "test-one", "conflict"), ("steps", "test-two", "conflict")]
    text = message(catalog.find, "reward", "steps")
    assert "test-one 1.0 and test-two 2.0 claim reward 'steps'" in text
    assert "write test-one:steps or test-two:steps, or deny one of them" in text
    assert catalog.find("reward", "test-two:steps").value == "two:plugin"
    assert catalog.find("reward", "Test_Two:steps").value == "two:plugin"


def test_denying_one_claim_ends_a_conflict(distribution):
    distribution("test-one", "[rlcore.rewards]\nsteps = one:plugin")
    distribution("test-two", "[rlcore.rewards]\nsteps = two:plugin")
    assert Catalog.installed(deny=["test-one:steps"]).find("reward", "steps").dist == "test-two"


def test_a_name_may_mean_one_plugin_of_each_kind(distribution):
    distribution("test-one", "[rlcore.rewards]\nboth = one:a\n[rlcore.losses]\nboth = one:b")
    catalog = Catalog.installed()
    assert catalog.find("reward", "both").value == "one:a"
    assert catalog.find("policy_loss", "both").value == "one:b"


@pytest.mark.parametrize("selector", ["steps", "test-one:steps", "reward:steps"])
def test_a_denied_plugin_is_disabled_by_name_distribution_or_kind(distribution, selector):
    distribution("test-one", "[rlcore.rewards]\nsteps = one:plugin")
    catalog = Catalog.installed(deny=[selector])
    assert made_up(catalog) == [("steps", "test-one", "disabled")]
    assert "steps" not in catalog.names("reward")
    text = message(catalog.find, "reward", "steps")
    assert f"is disabled: denied by {selector!r}" in text


def test_a_plugin_made_for_another_rlcore_is_incompatible(distribution):
    distribution("test-one", "[rlcore.rewards]\nsteps = one:plugin", requires=["rlcore>=7,<8"])
    text = message(Catalog.installed().find, "reward", "steps")
    assert "test-one 1.0 (one:plugin) is incompatible: it needs rlcore>=7,<8, this is rlcore " in text
    assert "pip install 'rlcore>=7,<8'" in text


def test_a_plugin_without_what_it_needs_gets_the_pip_command(distribution):
    needs = ["rlcore", "no-such-judge>=2", "no-such-parser", "only-with-extra; extra == 'gpu'"]
    distribution("test-one", "[rlcore.rewards]\nsteps = one:plugin", requires=needs)
    text = message(Catalog.installed().find, "reward", "steps")
    assert "is missing-dependency: it needs no-such-judge>=2, no-such-parser, not installed" in text
    assert "pip install 'no-such-judge>=2' 'no-such-parser'" in text


def test_of_several_copies_of_a_distribution_the_first_counts(distribution, site, tmp_path, monkeypatch):
    distribution("test-one", "[rlcore.rewards]\nsteps = one:new", version="2.0")
    distribution("Test_One", "[rlcore.rewards]\nsteps = one:old", folder=tmp_path / "stale")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "stale")])
    catalog = Catalog.installed()
    assert catalog.find("reward", "steps").version == "2.0"
    assert catalog.shadowed == (f"Test_One 1.0 in {tmp_path / 'stale'}",)


def test_what_is_required_must_be_there_and_sound(distribution):
    distribution("test-one", "[rlcore.rewards]\nsteps = one:plugin")
    distribution("test-two", "[rlcore.rewards]\nold = two:plugin", requires=["rlcore<0.0.1"])
    assert [one.name for one in Catalog.installed(require=["test-one:steps"]).required()] == ["steps"]
    text = message(Catalog.installed(require=["stepz", "reward:old", "steps"]).required)
    assert "required plugin 'stepz' is not installed" in text
    assert "did you mean steps?" in text
    assert "old' of test-two 1.0 (two:plugin) is incompatible" in text


def test_a_group_that_does_not_exist_is_pointed_out(distribution):
    distribution("test-one", "[rlcore.reward]\nsteps = one:plugin")
    (row,) = (one for one in Catalog.installed().candidates if one.dist == "test-one")
    assert (row.kind, row.state) == ("unknown", "broken")
    assert row.reason == "rlcore has no entry-point group rlcore.reward"
    assert row.remedy == "did you mean rlcore.rewards?"


def test_a_malformed_line_spoils_no_other(distribution):
    distribution("test-one", "[rlcore.rewards]\nthis is no entry\nsteps = one:plugin\nbad = one two!")
    assert made_up(Catalog.installed()) == [
        ("bad", "test-one", "broken"),
        ("steps", "test-one", "found"),
        ("this is no entry", "test-one", "broken"),
    ]
    assert "line 4 of entry_points.txt" in message(Catalog.installed().find, "reward", "bad")


def not_utf8(info):
    (info / "entry_points.txt").write_bytes(b"[rlcore.rewards]\nsteps = \xff\xfe")


def metadata_not_utf8(info):
    (info / "METADATA").write_bytes(b"Name: test-one\nVersion: \xff\xfe")


def metadata_missing(info):
    (info / "METADATA").unlink()


def metadata_a_folder(info):
    (info / "METADATA").unlink()
    (info / "METADATA").mkdir()


def entry_points_a_folder(info):
    (info / "entry_points.txt").unlink()
    (info / "entry_points.txt").mkdir()


def version_of_nonsense(info):
    (info / "METADATA").write_text("Name: test-one\nVersion: not.a!version\n")


def requirement_of_nonsense(info):
    (info / "METADATA").write_text("Name: test-one\nVersion: 1\nRequires-Dist: rlcore ?? 3\n")


def no_name(info):
    (info / "METADATA").write_text("Summary: nothing else\n")


@pytest.mark.parametrize(
    "damage",
    [
        not_utf8,
        metadata_not_utf8,
        metadata_missing,
        metadata_a_folder,
        entry_points_a_folder,
        version_of_nonsense,
        requirement_of_nonsense,
        no_name,
    ],
)
def test_nothing_that_is_installed_stops_the_listing(distribution, damage):
    damage(distribution("test-one", "[rlcore.rewards]\nsteps = one:plugin"))
    distribution("test-two", "[rlcore.rewards]\nsound = two:plugin")
    assert Catalog.installed().find("reward", "sound").state == "found"


def test_an_import_hook_that_raises_hides_no_plugin(distribution, monkeypatch):
    class Rude:
        @staticmethod
        def find_distributions(context):
            raise RuntimeError("no")

    monkeypatch.setattr(sys, "meta_path", [Rude, *sys.meta_path])
    distribution("test-one", "[rlcore.rewards]\nsteps = one:plugin")
    assert Catalog.installed().find("reward", "steps").state == "found"
