"""What leaves a trainer for engines: tensors in bundles, or parcels that servers fetch."""

import torch
from safetensors.torch import load_file

from rlcore.sync.parcel import Packing


def drained(trainer, most_bytes, packing=None):
    bundles = [trainer.first_weights(most_bytes, packing)]
    while bundles[-1]:
        bundles.append(trainer.next_weights())
    return bundles[:-1]


def test_bundles_hold_every_weight_once(make_trainer):
    trainer = make_trainer()
    bundles = drained(trainer, 20_000)
    assert len(bundles) > 2
    names = [name for bundle in bundles for name in bundle]
    assert names == [name for name, _ in trainer.exporter]


def test_parcels_on_a_disk_hold_the_same_values(make_trainer, tmp_path):
    trainer = make_trainer()
    parcels = drained(trainer, 20_000, Packing("disk", 1, folder=tmp_path))
    files = [load_file(file) for file in sorted(tmp_path.glob("*.safetensors"))]
    assert [set(parcel.names) for parcel in parcels] == [set(file) for file in files]
    written = {name: tensor for file in files for name, tensor in file.items()}
    assert all(torch.equal(written.pop(name), tensor) for name, tensor in trainer.exporter)
    assert not written


def test_a_sync_may_end_early_and_the_next_one_is_whole(make_trainer):
    trainer = make_trainer()
    packing = Packing("tensor", 1, copies=1)
    trainer.first_weights(20_000, packing)
    trainer.give_up_weights()
    parcels = drained(trainer, 20_000, packing)
    assert sum(len(parcel.names) for parcel in parcels) == len(list(trainer.exporter))
