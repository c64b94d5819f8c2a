"""plugins.lock.json: a run that goes on with other plugins than it began with is told so."""

import pytest

from rlcore.registry import Catalog, lock

SOURCE = "from rlcore.plugin import reward\n@reward\ndef steps(sample): return 1.0\n"


@pytest.fixture
def locked(distribution, tmp_path):
    """A lock file of one plugin; returns its path."""
    distribution("test-one", "[rlcore.rewards]\nsteps = lock_probe:steps", lock_probe=SOURCE)
    path = tmp_path / "plugins.lock.json"
    lock.write(path, lock.make([Catalog.installed().load("reward", "steps")]))
    return path


def differences(path):
    """What has changed for a run that would now be made with every sound reward of this distribution."""
    lock._digest.cache_clear()
    catalog = Catalog.installed()
    ours = [one for one in catalog.candidates if one.dist == "test-one"]
    entries = lock.make([catalog.load(one.kind, one.name) for one in ours])
    return [problem.message for problem in lock.verify(path, entries)]


def test_it_holds_what_identifies_a_plugin(locked):
    (entry,) = lock.read(locked)
    assert (entry.kind, entry.name, entry.distribution) == ("reward", "steps", "test-one")
    assert (entry.version, entry.entry_point, len(entry.sha256)) == ("1.0", "lock_probe:steps", 64)


def test_nothing_changed(locked):
    assert differences(locked) == []


def test_a_changed_file_is_noticed(locked, site):
    (site / "lock_probe.py").write_text(SOURCE.replace("1.0", "2.0"))
    assert differences(locked) == ["the files of test-one 1.0 have changed"]


def test_a_new_version_is_named(locked, site):
    (site / "test_one-1.0.dist-info" / "METADATA").write_text("Name: test-one\nVersion: 2.0\n")
    (message,) = differences(locked)
    assert message == (
        "the run was made with test-one 1.0 (lock_probe:steps), now there is test-one 2.0 (lock_probe:steps)"
    )


def test_a_plugin_that_is_gone_is_named(locked, site):
    (site / "test_one-1.0.dist-info" / "entry_points.txt").unlink()
    assert differences(locked) == ["the run was made with test-one 1.0, which is gone"]


def test_a_plugin_that_the_run_did_not_have_is_named(locked):
    entries = [*lock.read(locked), *lock.make([Catalog.installed().load("policy_loss", "clip")])]
    assert [problem.message for problem in lock.verify(locked, entries)] == ["the run was made without it"]


def test_every_file_of_a_package_counts_but_compiled_ones(distribution, site):
    distribution("test-one", "[rlcore.rewards]\nsteps = lock_package:steps")
    folder = site / "lock_package"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__init__.py").write_text(SOURCE)
    (folder / "preset.json").write_text("{}")
    before = lock._digest("lock_package")
    (folder / "__pycache__" / "x.pyc").write_text("compiled")
    lock._digest.cache_clear()
    assert lock._digest("lock_package") == before
    (folder / "preset.json").write_text("[]")
    lock._digest.cache_clear()
    assert lock._digest("lock_package") != before
