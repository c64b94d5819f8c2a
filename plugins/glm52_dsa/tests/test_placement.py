"""The recipe of 256 GPUs: where each of its processes runs, and how it is started."""

import json
import shlex

import pytest

from rlcore.cli.main import main

RECIPE = "glm52_dsa/glm5.2-744b"
PREFILL = {"--disaggregation-mode": "prefill", "--deepep-mode": "auto", "--max-running-requests": "512"}
DECODE = {"--disaggregation-mode": "decode", "--deepep-mode": "low_latency", "--cuda-graph-max-bs-decode": "12"}
BOTH = {"--tp-size": "64", "--dp-size": "64", "--nnodes": "8", "--disaggregation-transfer-backend": "mooncake"}


@pytest.fixture(scope="module")
def hostfile(tmp_path_factory):
    file = tmp_path_factory.mktemp("cluster") / "hostfile"
    file.write_text("".join(f"10.0.0.{node + 1} slots=8\n" for node in range(32)))
    return file


def plan(capsys, *arguments):
    assert main(["plan", RECIPE, *arguments]) == 0
    return capsys.readouterr().out


def test_every_process_has_its_node_gpus_ports_command_and_environment(capsys, hostfile):
    record = json.loads(plan(capsys, "--json", "--set", f"cluster.hostfile={hostfile}"))
    by_role = {}
    for one in record["processes"]:
        by_role.setdefault(one["role"], []).append(one)
    assert {role: len(found) for role, found in by_role.items()} == {
        "controller": 1,
        "router": 1,
        "trainer": 256,
        "server": 32,
    }
    for rank, one in enumerate(by_role["trainer"]):
        assert (one["host"], one["gpus"]) == (f"10.0.0.{rank // 8 + 1}", [rank % 8])
    for number, one in enumerate(by_role["server"]):
        options = dict(zip(one["command"], one["command"][1:], strict=False))
        engine, node_rank = divmod(number, 8)
        expected = {**BOTH, **(PREFILL if engine == 0 else DECODE), "--node-rank": str(node_rank)}
        assert {flag: options[flag] for flag in expected} == expected
        assert options["--dist-init-addr"] == f"10.0.0.{8 * engine + 1}:20010"
        assert one["environment"]["SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"] == "64"
        assert one["environment"]["NCCL_SOCKET_IFNAME"] == "eth0"
    assert record["placement_group"] == {
        "strategy": "STRICT_SPREAD",
        "bundles": [{"CPU": 8.0, "GPU": 8.0}] * 32,
    }


def test_the_plan_says_it_in_a_few_lines_and_every_process_if_asked(capsys):
    out = plan(capsys, "--processes")
    assert "  trainer ranks      256, 8 on each of 32 nodes\n" in out
    assert "  default decode 2   on node24 … node31, 8 nodes, GPU 0,1,2,3,4,5,6,7, ports: http 20000" in out
    assert "  Ray bundles        32 × (CPU 8, GPU 8), STRICT_SPREAD\n" in out
    assert "trainer rank 255: node31, GPU 7, rank 255 tp 3 cp 7 dp 0 pp 7 etp 0 ep 31 edp 0\n" in out
    lines = [shlex.split(line) for line in out.splitlines() if "sglang.launch_server" in line]
    assert len(lines) == 32
    assert all("NVSHMEM_DISABLE_NCCL=1" in line for line in lines)


def test_a_dry_run_prints_them_too_before_it_says_what_is_not_here(capsys):
    assert main(["train", RECIPE, "--dry-run"]) == 1
    streams = capsys.readouterr()
    assert streams.out.count("sglang.launch_server") == 32
    assert streams.out.count("trainer rank ") == 256
    assert streams.err.startswith("error: ")
