import copy
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from rlcore.trainer import compat
from rlcore.trainer.compat.adam import Adam
from rlcore.trainer.compat.table import PATCHES, without_cuda, without_transformer_engine

MEGATRON = Path(next(iter(find_spec("megatron.core").submodule_search_locations)))

# Modules with device="cuda" that rlcore never reaches: features that need a GPU, and inference.
GPU_ONLY = re.compile(
    r"inference/|fsdp/|resharding/|export/|fusions/|fp8_utils|energy_monitor|rerun_state_machine|nccl_allocator"
    r"|hybrid_cp_schedule|fine_grained_activation_offload|cpu_offloading|pipeline_parallel/utils"
    r"|token_dispatcher|tensor_parallel/random|full_cuda_graph|ssm/|datasets/"
)


def run(code: str) -> str:
    return subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)


def test_every_patched_name_exists_in_what_is_installed_unless_it_is_what_is_missing():
    """In a process that patches nothing."""
    code = f"""
import importlib, torch
from functools import reduce
missing = object()
get = lambda owner, name: getattr(owner, name, missing)
for target, lacking in {[(patch.target, patch.missing) for patch in PATCHES]}:
    module, _, path = target.partition(":")
    found = reduce(get, path.split("."), importlib.import_module(module))
    if (found is missing) != lacking:
        print(target)
"""
    assert run(code) == ""


def test_every_patch_is_applied_where_it_is_needed():
    for patch in PATCHES:
        owner, name = patch.owner()
        if patch.needed() and not callable(patch.value):
            assert getattr(owner, name) is patch.value, patch.target
    assert torch.cuda.current_device() == torch.device("cpu")


def test_no_name_is_patched_twice_and_each_has_a_reason():
    targets = [patch.target for patch in PATCHES]
    assert len(targets) == len(set(targets))
    assert all(patch.why for patch in PATCHES)


@pytest.mark.skipif(not without_cuda(), reason="the patches are not applied beside CUDA")
def test_every_module_that_spells_out_the_device_is_patched_or_out_of_reach():
    spelled = re.compile(r"""device=["']cuda|pin_memory=True""")
    modules = [path for path in MEGATRON.rglob("*.py") if spelled.search(path.read_text())]
    names = {str(path.relative_to(MEGATRON)) for path in modules}
    patched = {patch.target.partition(":")[0] for patch in PATCHES if patch.target.endswith(":torch")}
    files = {name.removeprefix("megatron.core.").replace(".", "/") + ".py" for name in patched}
    assert {name for name in names if not GPU_ONLY.search(name)} <= files


@pytest.mark.skipif(not without_cuda(), reason="CUDA machines compile Megatron's functions")
def test_on_a_cpu_nothing_is_compiled_and_torch_keeps_its_compiler():
    code = (
        "import torch; compiler = torch.compile\n"
        "import rlcore.trainer.setup, sys\n"
        "assert torch.compile is compiler\n"
        "from megatron.core.fusions.fused_bias_swiglu import swiglu\n"
        "print(hasattr(swiglu, '_torchdynamo_orig_callable'), 'torch._dynamo' in sys.modules)"
    )
    assert run(code).split() == ["False", "False"]


def test_installing_twice_changes_nothing():
    before = {patch.target: getattr(*patch.owner(), None) for patch in PATCHES}
    compat.install()
    assert all(getattr(*patch.owner(), None) is before[patch.target] for patch in PATCHES)


@pytest.mark.skipif(not without_cuda(), reason="CUDA machines may import in any order")
def test_megatron_imported_too_early_is_an_error_that_says_so():
    code = (
        "import sys; sys.modules['megatron.core'] = sys\nfrom rlcore.errors import RlcoreError\n"
        "try: import rlcore.trainer\nexcept RlcoreError as error: print(error)"
    )
    assert "before anything that imports megatron" in run(code)


@pytest.mark.skipif(not without_transformer_engine(), reason="TransformerEngine brings its own Adam")
@pytest.mark.parametrize("decoupled", [True, False])
def test_adam_steps_like_torch(decoupled):
    torch.manual_seed(0)
    ours = [torch.randn(5, 3, requires_grad=True), torch.randn(4, requires_grad=True)]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = Adam(ours, **settings, adam_w_mode=decoupled)
    reference = (torch.optim.AdamW if decoupled else torch.optim.Adam)(theirs, **settings, fused=True)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_adam_goes_on_from_a_saved_state():
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.ones(3)
    first = Adam([parameter])
    first.step()
    resumed_parameter = parameter.detach().clone().requires_grad_()
    resumed = Adam([resumed_parameter])
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed_parameter.grad = torch.ones(3)
    first.step()
    resumed.step()
    assert torch.equal(parameter, resumed_parameter)
    assert first.param_groups[0]["step"] == resumed.param_groups[0]["step"] == 2
    assert first.state[parameter].keys() == {"exp_avg", "exp_avg_sq"}
