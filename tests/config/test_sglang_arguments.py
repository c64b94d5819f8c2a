"""Arguments of SGLang servers are held against the list that the release's own parser gave."""

import sys
from pathlib import Path

import pytest

from rlcore.config.sglang_arguments import installed_arguments, known_arguments
from rlcore.errors import RlcoreError

SEED_SERVERS = {
    "mem_fraction_static": 0.7,
    "enable_dp_attention": True,
    "dp_size": 32,
    "ep_size": 32,
    "moe_dense_tp_size": 1,
    "enable_dp_lm_head": True,
    "cuda_graph_bs": [1, 2, 4, 8],
    "disable_radix_cache": True,
    "moe_a2a_backend": "deepep",
    "deepep_mode": "auto",
    "speculative_algorithm": "EAGLE",
    "speculative_num_draft_tokens": 4,
    "ep_num_redundant_experts": 16,
    "disaggregation_transfer_backend": "mooncake",
    "kv_cache_dtype": "fp8_e4m3",
    "nsa_decode_backend": "flashmla_kv",
}


def test_the_servers_of_the_published_recipes_pass():
    assert list(known_arguments().problems("rollout.sglang.args", SEED_SERVERS)) == []


@pytest.mark.parametrize(
    ("args", "message", "remedy"),
    [
        ({"tp_size": 2}, "rlcore sets", "rollout.gpus_per_engine"),
        ({"model_path": "x"}, "rlcore sets", "rollout.checkpoint"),
        ({"port": 30000}, "rlcore sets", "rlcore places the servers"),
        ({"dp_size": 4}, "spreads attention", "enable_dp_attention: true"),
        ({"mem_fraction": 0.7}, "has no argument", "'mem_fraction_static'"),
        ({"page-size": 64}, "has no argument", "'page_size'"),
        ({"mem_fraction_static": "much"}, "does not fit", "float"),
        ({"cuda_graph_bs": 8}, "does not fit", "a list of int"),
        ({"attention_backend": "flash"}, "does not fit", "fa3"),
        ({"disable_radix_cache": 1}, "does not fit", "true or false"),
    ],
)
def test_a_wrong_argument_gets_a_remedy(args, message, remedy):
    [problem] = known_arguments().problems("rollout.sglang.args", args)
    assert message in problem.message
    assert remedy in problem.remedy


def test_arguments_read_as_the_release_writes_them():
    settings = {
        "cuda_graph_bs": [1, 2],
        "disable_radix_cache": True,
        "enable_mixed_chunk": False,
        "lora_strict_loading": False,
        "fp8_gemm_runner_backend": "triton",
        "preferred_sampling_params": {"top_k": 5},
        "page_size": None,
    }
    assert known_arguments().command_line(settings) == [
        *("--cuda-graph-bs-decode", "1", "2"),
        "--disable-radix-cache",
        "--no-lora-strict-loading",
        *("--fp8-gemm-backend", "triton"),
        *("--preferred-sampling-params", '{"top_k": 5}'),
    ]


def test_an_interpreter_without_sglang_is_named(tmp_path):
    for python in (Path(sys.executable), tmp_path / "python"):
        with pytest.raises(RlcoreError, match=f"{python}"):
            installed_arguments(python)
