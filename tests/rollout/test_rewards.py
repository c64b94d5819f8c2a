"""Rewards run in processes of their own: what they return, and what happens when they misbehave."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlcore.config.section import RewardsByMetadata, UseReward
from rlcore.data.datasets import Row
from rlcore.data.sample import Sample
from rlcore.errors import RlcoreError
from rlcore.registry import Catalog
from rlcore.rollout.rewards import RewardOutcome, RewardRunner

HEADER = "import os, re, signal, subprocess, sys, time\nfrom rlcore.plugin import RewardResult, reward\n"
LENGTH = "@reward\ndef length(sample):\n    return len(sample.response)\n"
MISBEHAVE = """
@reward
def moody(sample):
    if sample.response == "raise":
        raise ValueError("bad mood")
    if sample.response == "nan":
        return float("nan")
    if sample.response == "exit":
        os._exit(3)
    if sample.response == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if sample.response == "hang":
        re.match("(a+)+$", "a" * 40 + "b")
    if sample.response == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    return 1.0
"""

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution whose one module holds the rewards named; returns the module's file."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str, *names: str) -> str:
        module = f"rewards_of_{tmp_path.name}"
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {module}:{name}\n" for name in names)
        (info / "entry_points.txt").write_text(f"[rlcore.rewards]\n{lines}")
        file = tmp_path / f"{module}.py"
        file.write_text(HEADER + source)
        return str(file)

    return write


def group(*responses: str, number: int = 0, **metadata: str) -> list[Sample]:
    return [
        Sample("p", response=text, group=number, index=index, metadata=dict(metadata))
        for index, text in enumerate(responses)
    ]


def score(
    rewards: list[UseReward] | RewardsByMetadata, samples: list[Sample], failures: Path | None = None
) -> list[RewardOutcome]:
    async def run() -> list[RewardOutcome]:
        runner = RewardRunner.from_recipe(rewards, Catalog.installed(), failures=failures)
        try:
            return await runner.score(samples)
        finally:
            await runner.close()

    return asyncio.run(run())


def moody(**policy: object) -> list[UseReward]:
    return [UseReward(use="moody", **policy)]


def test_values_add_up_by_weight_and_parts_are_named_after_their_reward(install):
    install(
        LENGTH + '@reward\ndef two(sample):\n    return RewardResult(2.0, {"part": 0.5})\n', "length", "two"
    )
    samples = group("abc", "") + group("a", number=1)
    outcomes = score([UseReward(use="length", weight=10), UseReward(use="two", weight=0.5)], samples)
    assert [outcome.value for outcome in outcomes] == [31, 1, 11]
    assert outcomes[0].parts == {"length": 3, "two": 2, "two/part": 0.5}
    assert samples[0].reward == 31
    assert samples[0].reward_parts == outcomes[0].parts


def test_files_of_the_current_folder_take_no_modules_place(install, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pickle.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path / "here")
    install(LENGTH, "length")
    assert [outcome.value for outcome in score([UseReward(use="length")], group("ab"))] == [2]


def test_a_reward_used_twice_keeps_both_values(install):
    install(LENGTH, "length")
    (outcome,) = score([UseReward(use="length"), UseReward(use="length", weight=-1)], group("ab"))
    assert outcome.parts == {"length": 2, "length-2": 2}
    assert outcome.value == 0


@pytest.mark.parametrize(
    ("response", "cause"),
    [
        ("raise", "ValueError: bad mood"),
        ("nan", "value is nan"),
        ("exit", "exit status 3"),
        ("segfault", "SIGSEGV"),
        ("hang", "longer than 1 s and was killed"),
        ("stop", "longer than 1 s and was killed"),
    ],
)
def test_under_zero_only_the_sample_at_fault_loses_its_reward(install, response, cause):
    install(MISBEHAVE, "moody")
    outcomes = score(
        moody(on_error="zero", timeout=1.0 if "longer" in cause else 30.0),
        group("fine", response, "fine") + group("fine", number=1),
    )
    assert [outcome.value for outcome in outcomes] == [1, 0, 1, 1]
    assert cause in outcomes[1].error
    assert [outcome.error for outcome in outcomes[2:]] == [None, None]
    assert not outcomes[1].drop


def test_under_drop_the_sample_is_marked(install):
    install(MISBEHAVE, "moody")
    outcomes = score(moody(on_error="drop"), group("fine", "raise"))
    assert [outcome.drop for outcome in outcomes] == [False, True]


def test_under_fail_the_error_names_reward_sample_cause_line_and_a_way_to_see_it_again(install, tmp_path):
    file = install(MISBEHAVE, "moody")
    failures = tmp_path / "failures.jsonl"
    with pytest.raises(RlcoreError) as caught:
        score(moody(), group("fine", "fine", "raise", number=7), failures)
    line = (HEADER + MISBEHAVE).splitlines().index('        raise ValueError("bad mood")') + 1
    message = str(caught.value)
    assert "rewards.0 (moody): sample 2 of group 7 could not be scored" in message
    assert f"ValueError: bad mood ({file}:{line})" in message
    assert f"rlcore reward moody {failures}" in message
    assert json.loads(failures.read_text())["response"] == "raise"


def test_a_hung_reward_is_killed_and_the_line_where_it_hung_is_named(install):
    file = install(MISBEHAVE, "moody")
    with pytest.raises(RlcoreError, match="longer than") as caught:
        score(moody(timeout=0.5), group("hang"))
    line = (HEADER + MISBEHAVE).splitlines().index('        re.match("(a+)+$", "a" * 40 + "b")') + 1
    assert f"{file}:{line}" in str(caught.value)


def test_an_async_reward_that_waits_for_ever_is_killed_too(install):
    install("import asyncio\n@reward\nasync def idle(sample):\n    await asyncio.Event().wait()\n", "idle")
    (outcome,) = score([UseReward(use="idle", timeout=1.0, on_error="zero")], group("x"))
    assert "while it awaited something" in outcome.error


def test_killing_a_hung_reward_ends_what_it_had_started(install, tmp_path, ends):
    spawn = 'child = subprocess.Popen(["sleep", "60"])'
    write = 'open(sample.response, "w").write(f"{os.getpid()} {child.pid}")'
    install(f"@reward\ndef spawner(sample):\n    {spawn}\n    {write}\n    time.sleep(60)\n", "spawner")
    pids = tmp_path / "pids"
    # A busy machine may take longer than the first to start anything.
    for timeout in (0.5, 5.0, 50.0):
        score([UseReward(use="spawner", timeout=timeout, on_error="zero", concurrency=1)], group(str(pids)))
        if pids.exists() and pids.read_text():
            break
    assert all(ends(int(pid)) for pid in pids.read_text().split())


def test_closing_ends_a_call_that_is_under_way(install, tmp_path, ends):
    write = 'open(sample.response, "w").write(str(os.getpid()))'
    install(f"@reward\ndef slow(sample):\n    {write}\n    time.sleep(60)\n", "slow")
    pid = tmp_path / "pid"

    async def cancelled() -> None:
        runner = RewardRunner.from_recipe([UseReward(use="slow", concurrency=1)], Catalog.installed())
        task = asyncio.create_task(runner.score(group(str(pid))))
        while not (pid.exists() and pid.read_text()):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.close()

    asyncio.run(cancelled())
    assert ends(int(pid.read_text()))


@pytest.mark.parametrize("processes", [1, 3])
def test_no_more_calls_run_at_once_than_concurrency_allows(install, tmp_path, processes):
    body = 'open(f"{sample.prompt}/{sample.group}", "w").close(); time.sleep(0.05)'
    count = "running = len(os.listdir(sample.prompt)); os.remove(f'{sample.prompt}/{sample.group}')"
    install(f"@reward\ndef count(sample):\n    {body}\n    {count}\n    return running\n", "count")
    (here := tmp_path / "running").mkdir()
    samples = [Sample(str(here), group=number) for number in range(12)]
    outcomes = score([UseReward(use="count", concurrency=processes)], samples)
    assert max(outcome.value for outcome in outcomes) <= processes


def test_a_batch_reward_must_return_one_result_per_sample(install):
    install("@reward\ndef short(samples):\n    return [1.0] * (len(samples) - 1)\n", "short")
    with pytest.raises(RlcoreError, match="returned 0 results for 1 samples"):
        score([UseReward(use="short")], group("a"))


def test_a_reward_with_a_lifetime_is_closed_at_the_end(install, tmp_path):
    left = tmp_path / "closed"
    install(
        "from rlcore.plugin import hookimpl\n"
        "class Client:\n"
        "    async def score(self, samples):\n        return [RewardResult(1.0) for _ in samples]\n"
        f"    async def close(self):\n        open({str(left)!r}, 'w').close()\n"
        "class client:\n"
        "    @hookimpl\n    def reward(options):\n        return Client()\n",
        "client",
    )
    assert score([UseReward(use="client", concurrency=1)], group("a"))[0].value == 1
    assert left.exists()


def test_what_a_reward_prints_does_not_disturb_it(install):
    install("@reward\ndef chatty(sample):\n    print('hello', flush=True)\n    return 1.0\n", "chatty")
    assert score([UseReward(use="chatty")], group("a"))[0].value == 1


def test_metadata_chooses_the_reward_of_each_sample(install):
    install(LENGTH + "@reward\ndef one(sample):\n    return 1\n", "length", "one")
    rewards = RewardsByMetadata(allowed={"length": {}, "one": {}})
    outcomes = score(rewards, group("abc", rm_type="length") + group("abc", number=1, rm_type="one"))
    assert [outcome.parts for outcome in outcomes] == [{"length": 3}, {"one": 1}]


def test_rows_that_select_no_reward_are_named_before_the_start(install):
    install(LENGTH, "length")
    runner = RewardRunner.from_recipe(RewardsByMetadata(allowed={"length": {}}), Catalog.installed())
    kinds = [{"rm_type": "length"}, {"rm_type": "lenght"}, {}, {"rm_type": ["length"]}]
    rows = [Row("p", place=f"data.jsonl:{n}", metadata=metadata) for n, metadata in enumerate(kinds, 1)]
    with pytest.raises(RlcoreError) as caught:
        runner.check_dataset(rows)
    asyncio.run(runner.close())
    first, second, third = caught.value.problems
    assert str(first).startswith("data.jsonl:2: metadata 'rm_type' is 'lenght', which selects no reward")
    assert "data.jsonl:3: metadata 'rm_type' is missing" in str(second)
    assert "is ['length']" in str(third)
    assert "one of length" in first.remedy


def test_all_rewards_that_cannot_be_used_are_reported_at_once(install):
    install(LENGTH, "length")
    with pytest.raises(RlcoreError) as caught:
        RewardRunner.from_recipe(
            [UseReward(use="lenght"), UseReward(use="length", options={"unit": "m"})], Catalog.installed()
        )
    assert [problem.place for problem in caught.value.problems] == ["rewards.0", "rewards.1.options.unit"]


def test_a_plugin_that_changed_since_the_run_started_scores_nothing(install):
    file = Path(install(MISBEHAVE, "moody"))

    async def run() -> None:
        runner = RewardRunner.from_recipe(moody(on_error="zero", concurrency=1), Catalog.installed())
        await runner.score(group("exit"))
        file.write_text(file.read_text() + "\n")
        try:
            await runner.score(group("fine"))
        finally:
            await runner.close()

    with pytest.raises(RlcoreError, match="have changed since the run started"):
        asyncio.run(run())
