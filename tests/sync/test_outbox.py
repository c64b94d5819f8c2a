"""What the trainer packs is what a process elsewhere opens, without a network and without new memory."""

import base64
import multiprocessing
import pickle

import pytest
import torch
from safetensors.torch import load_file

from rlcore.bridge.fp8 import Fp8Format, quantize_blocks
from rlcore.sync.outbox import Outbox
from rlcore.sync.parcel import Packing

CPU = torch.device("cpu")
BUNDLE = {
    "a.weight": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "b.bias": torch.arange(5.0),
    "c.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).t(),
}


def opened(handles, answers):
    """In another process: the tensors of each handle, as a server lays them out."""
    for handle in handles:
        sent = pickle.loads(base64.b64decode(handle))
        flat = sent["flattened_tensor"]
        parts = {one.name: (flat[one.start_idx : one.end_idx], one) for one in sent["metadata"]}
        tensors = {name: part.view(one.dtype).view(one.shape) for name, (part, one) in parts.items()}
        answers.put({name: tensor.float().numpy() for name, tensor in tensors.items()})


def read_elsewhere(parcel):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=opened, args=(list(parcel.handles), answers))
    process.start()
    found = [answers.get(timeout=300) for _ in parcel.handles]
    process.join()
    return [{name: torch.from_numpy(array) for name, array in one.items()} for one in found]


def packer(room=0, **packing):
    outbox = Outbox(CPU)
    outbox.open(Packing(**{"way": "tensor", "version": 1, "copies": 1, **packing}), room)
    return outbox


def test_each_server_rank_opens_the_bundle_with_a_handle_of_its_own():
    outbox = packer(copies=2)
    for found in read_elsewhere(outbox.pack(BUNDLE)):
        assert found.keys() == BUNDLE.keys()
        for name, tensor in BUNDLE.items():
            assert torch.equal(found[name], tensor.float())


def test_tensors_begin_at_multiples_of_their_own_width():
    mixed = {"half": torch.zeros(3, dtype=torch.bfloat16), "byte": torch.zeros(5, dtype=torch.uint8)}
    parcel = packer().pack(mixed | {"full": torch.zeros(2)})
    assert list(parcel.names) == ["full", "half", "byte"]
    assert parcel.nbytes == 8 + 6 + 5


def test_memory_is_used_again_from_the_third_bundle_on():
    outbox = packer(room=4096)
    places = [outbox.pack(BUNDLE) and outbox._slots["tensor"]._slots[-1].data_ptr() for _ in range(6)]
    assert len(set(places)) == 2
    assert places[0] != places[1]


def test_fp8_is_made_on_the_way():
    weight = torch.randn(130, 140, generator=torch.Generator().manual_seed(0))
    outbox = packer(fp8=Fp8Format(frozenset({"a.weight"}), (128, 128)))
    (found,) = read_elsewhere(outbox.pack({"a.weight": weight}))
    values, scales = quantize_blocks(weight, (128, 128))
    assert torch.equal(found["a.weight"], values.float())
    assert torch.equal(found["a.weight_scale_inv"], scales)


class TestDelta:
    @pytest.fixture
    def pack(self, tmp_path):
        """Pack tensors of a version, and say which were written."""
        outbox = Outbox(CPU)

        def send(version, since, tensors):
            folder = tmp_path / str(version)
            folder.mkdir()
            outbox.open(Packing("disk", version, folder=folder, digests=True, since=since), 0)
            parcel = outbox.pack(tensors)
            written = [load_file(file) for file in folder.glob("*.safetensors")]
            assert [set(one) for one in written] == ([set(parcel.names)] if parcel.names else [])
            return set(parcel.names)

        return send

    @pytest.fixture
    def tensors(self):
        names = ["l.0.self_attn.q_a_proj.weight", "l.0.self_attn.kv_a_proj.weight", "l.0.mlp.up_proj.weight"]
        return {name: torch.ones(2) for name in names}

    def test_servers_that_have_no_version_are_given_everything(self, pack, tensors):
        assert pack(1, None, tensors) == tensors.keys()

    def test_modules_that_are_as_they_were_are_left_out(self, pack, tensors):
        pack(1, None, tensors)
        assert pack(2, 1, tensors) == set()

    def test_a_module_goes_as_a_whole(self, pack, tensors):
        pack(1, None, tensors)
        attention = {name for name in tensors if "self_attn" in name}
        changed = tensors | {"l.0.self_attn.q_a_proj.weight": torch.zeros(2)}
        assert pack(2, 1, changed) == attention

    def test_after_a_failed_update_everything_goes_again(self, pack, tensors):
        pack(1, None, tensors)
        pack(2, 1, tensors)
        assert pack(3, 1, tensors) == tensors.keys()
