"""Requirements: the plain ones are read without `packaging` and must mean what it says they mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

import rlcore
from rlcore.registry import requirements
from rlcore.registry.requirements import install_command, unmet

releases = st.lists(st.integers(0, 12), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
clauses = st.tuples(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), releases).map("".join)


@given(st.lists(clauses, min_size=1, max_size=3), releases)
def test_plain_specifiers_admit_what_packaging_admits(parts, version):
    specifier = ",".join(parts)
    assert requirements._admits(specifier, version) == SpecifierSet(specifier).contains(version)


@pytest.mark.parametrize(
    "line",
    ["rlcore", "rlcore>=0.0.1", "rlcore ~= 0.1", "rlcore[train] >=0.1, <9", "rlcore!=5.*", "RLCore>=0.1.dev1"],
)
def test_this_rlcore_satisfies(line, monkeypatch):
    monkeypatch.setattr(rlcore, "__version__", "0.1.0")
    assert unmet([line]) is None


@pytest.mark.parametrize("line", ["rlcore>1", "rlcore<0.1", "rlcore~=2.0", "rlcore===0.1.1", "rlcore==0.2.*"])
def test_this_rlcore_does_not_satisfy(line, monkeypatch):
    monkeypatch.setattr(rlcore, "__version__", "0.1.0")
    assert unmet([line]).state == "incompatible"


def test_requirements_of_another_platform_or_of_an_extra_do_not_count():
    lines = [
        "no-such-one; python_version < '3'",
        'no-such-two; extra == "gpu"',
        "no-such-three; extra == 'a' and os_name == 'b'",
    ]
    assert unmet(lines) is None


def test_a_module_of_an_extra_is_installed_by_the_extra():
    assert install_command("megatron.core") == "pip install 'rlcore[train]'"
    assert install_command("sglang") == "pip install 'rlcore[sglang]'"
    assert install_command("judge_client.http") == "pip install judge_client"
