import copy
import subprocess
import sys

import pytest
import torch
from rlcore_glm4.demo import DEMO as GLM4
from rlcore_glm45.demo import DEMO as GLM45
from rlcore_glm47_flash.demo import DEMO as FLASH
from rlcore_glm52_dsa.demo import DEMO as DSA
from safetensors.torch import load_file, save_file

import rlcore.mbridge
from rlcore.config.schema import Parallel
from rlcore.testing.tiny import tiny_checkpoint
from rlcore.trainer.setup import process_groups

# What a person writes who uses mbridge, after `pip install` of the families' plugins.
SCRIPT = """
import sys
import rlcore.mbridge
import torch
from mbridge import AutoBridge
from megatron.core import parallel_state

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meeting", rank=0, world_size=1)
parallel_state.initialize_model_parallel()
for folder in sys.argv[2:]:
    bridge = AutoBridge.from_pretrained(folder, dtype=torch.float32)
    models = bridge.get_model(weight_path=folder, bf16=False)
    print(bridge.hf_config.model_type, len(dict(bridge.export_weights(models))), file=sys.stderr)
"""

# One of two ranks that share each matrix and the experts; both export the whole checkpoint.
RANK = """
import sys
import rlcore.mbridge
import torch
from mbridge import AutoBridge
from megatron.core import parallel_state
from safetensors.torch import load_file

rank, meeting, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}/meeting", rank=rank, world_size=2)
parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, expert_model_parallel_size=2,
    expert_tensor_parallel_size=1)
bridge = AutoBridge.from_pretrained(folder, dtype=torch.float32)
models = bridge.get_model(weight_path=folder, bf16=False)
exported = {name: tensor.clone() for name, tensor in bridge.export_weights(models)}
original = load_file(folder + "/model.safetensors")
assert exported.keys() == original.keys()
assert all(torch.equal(exported[name], original[name]) for name in original)
"""


@pytest.fixture
def write(tmp_path):
    """Gives the folder of a tiny checkpoint of a demo's model; keywords change its config.json."""

    def write_checkpoint(demo, **changes):
        folder = tmp_path / demo.config["model_type"]
        tiny_checkpoint(folder, {**demo.config, **changes}, jitter=0.05)
        return folder

    return write_checkpoint


@pytest.fixture(scope="module", autouse=True)
def one_process():
    torch.set_num_threads(1)
    with process_groups(Parallel(), seed=0):
        yield


def models_of(folder, bridge):
    return bridge.get_model(weight_path=str(folder), bf16=False)


def test_mbridge_loads_families_that_it_does_not_know(write, tmp_path):
    folders = [write(GLM4), write(FLASH), write(DSA)]
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), *map(str, folders)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    exported = [f"{folder.name} {len(load_file(folder / 'model.safetensors'))}" for folder in folders]
    assert [line for line in result.stderr.splitlines() if line in exported] == exported


@pytest.mark.parametrize("demo", [GLM4, GLM45, FLASH, DSA], ids=lambda demo: demo.config["model_type"])
def test_what_it_exports_is_the_checkpoint_bit_for_bit(write, demo):
    from mbridge import AutoBridge

    folder = write(demo)
    bridge = AutoBridge.from_pretrained(str(folder), dtype=torch.float32)
    assert isinstance(bridge, rlcore.mbridge.PluginBridge)
    exported = dict(bridge.export_weights(models_of(folder, bridge)))
    original = load_file(folder / "model.safetensors")
    assert exported.keys() == original.keys()
    assert all(torch.equal(exported[name], original[name]) for name in original)


def test_ranks_load_their_parts_and_export_the_whole(write, tmp_path):
    folder = write(DSA)
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path), str(folder)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


@pytest.mark.parametrize("demo", [FLASH, DSA], ids=lambda demo: demo.config["model_type"])
def test_the_layers_that_predict_further_tokens_come_along_if_asked_for(write, demo):
    from mbridge import AutoBridge

    folder = write(demo, num_nextn_predict_layers=1)
    add_mtp_layer(folder / "model.safetensors", demo.config["num_hidden_layers"])
    bridge = AutoBridge.from_pretrained(str(folder), dtype=torch.float32)
    bridge.set_extra_args(mtp_num_layers=1)
    exported = dict(bridge.export_weights(models_of(folder, bridge)))
    original = load_file(folder / "model.safetensors")
    assert exported.keys() == original.keys()
    assert all(torch.equal(exported[name], original[name]) for name in original)


def add_mtp_layer(file, layers):
    """Make one of the last layer's tensors and what such a layer has besides."""
    tensors = load_file(file)
    hidden = tensors["model.norm.weight"]
    last, mtp = (f"model.layers.{number}." for number in (layers - 1, layers))
    copies = {mtp + name.removeprefix(last): t.clone() for name, t in tensors.items() if name.startswith(last)}
    norms = {f"{mtp}{name}.weight": hidden.clone() for name in ("enorm", "hnorm", "shared_head.norm")}
    tensors |= copies | norms | {f"{mtp}eh_proj.weight": torch.randn(len(hidden), 2 * len(hidden))}
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_family_that_it_knows_is_imported_alike(write):
    from mbridge import AutoBridge
    from mbridge.models import GLM4MoEBridge

    folder = write(GLM45)
    ours = AutoBridge.from_pretrained(str(folder), dtype=torch.float32)
    # Under transformers 5 these are elsewhere, where mbridge 0.15 does not look.
    config = copy.deepcopy(ours.hf_config)
    config.rope_theta = config.rope_parameters["rope_theta"]
    config.partial_rotary_factor = config.rope_parameters["partial_rotary_factor"]
    theirs = GLM4MoEBridge(config, dtype=torch.float32)
    (own,), (other,) = models_of(folder, ours), models_of(folder, theirs)
    expected = other.state_dict()
    assert own.state_dict().keys() == expected.keys()
    for name, tensor in own.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, expected[name]), name
