"""Settings that pass through are held against the fields of the installed Megatron, without importing it."""

import subprocess
import sys

import pytest

from rlcore.config.native import megatron_fields, megatron_problems

SEEDS = {
    "moe_enable_deepep": True,
    "moe_token_dispatcher_type": "flex",
    "attention_softmax_in_fp32": True,
    "attention_backend": "flash",
    "grad_reduce_in_fp32": True,
    "check_for_nan_in_grad": False,
}


def test_the_native_settings_of_the_published_recipes_pass():
    assert megatron_problems(SEEDS) == []


@pytest.mark.parametrize(
    ("name", "value", "message", "remedy"),
    [
        ("moe_enable_deep_ep", True, "no field", "'moe_enable_deepep'"),
        ("attention-softmax-in-fp32", True, "no field", "'attention_softmax_in_fp32'"),
        ("overlap_grad_reduce", "on", "does not fit", "bool"),
        ("moe_token_dispatcher_type", "ring", "does not fit", "'alltoall'"),
        ("bucket_size", 1.5, "does not fit", "Optional[int]"),
        ("tensor_model_parallel_size", 2, "rlcore sets", "parallel.tp"),
        ("tensor_model_paralel_size", 2, "no field", "use parallel.tp"),
        ("lr", 1e-6, "rlcore sets", "optimizer.lr"),
        ("num_layers", 4, "rlcore sets", "model.overrides"),
        ("loss_scale", 128.0, "rlcore sets", "divide gradients"),
        ("optimizer_offload_fraction", 0.5, "rlcore sets", "optimizer.cpu_offload"),
        ("overlap_p2p_comm_warmup_flush", True, "rlcore sets", "would wait"),
        ("qk_clip", True, "rlcore sets", "do not clip"),
        ("moe_flex_dispatcher_backend", "hybridep", "equally many", "use deepep"),
        ("attention_backend", "flush", "does not fit", "one of flash, fused"),
        ("exp_avg_dtype", "bf16", "does not fit", "bfloat16"),
        ("moe_router_load_balancing_type", "seq_aux_loss", "packed micro-batch", "use aux_loss"),
        ("moe_router_load_balancing_type", ["aux_loss", "global_aux_loss"], "they differ", "use aux_loss"),
    ],
)
def test_a_wrong_megatron_setting_gets_a_remedy(name, value, message, remedy):
    [problem] = megatron_problems({name: value})
    assert problem.place == f"megatron.{name}"
    assert message in problem.message
    assert remedy in problem.remedy


def test_fields_are_those_of_the_real_classes_and_nothing_was_imported():
    code = (
        "import sys; from rlcore.config.native import megatron_fields; fields = set(megatron_fields())\n"
        "assert not any(name.split('.')[0] in ('megatron', 'torch') for name in sys.modules)\n"
        "import dataclasses\n"
        "from megatron.core.distributed import DistributedDataParallelConfig as D\n"
        "from megatron.core.optimizer import OptimizerConfig as O\n"
        "from megatron.core.transformer.transformer_config import MLATransformerConfig as T\n"
        "real = {f.name for kind in (D, O, T) for f in dataclasses.fields(kind)}\n"
        "assert real == fields, real ^ fields"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    assert len(megatron_fields()) > 200
