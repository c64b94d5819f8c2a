import torch

from rlcore.sync.buckets import buckets


def sizes(tensors, most_bytes):
    return [list(bucket) for bucket in buckets(tensors, most_bytes)]


def test_bundles_stay_under_the_bound_and_in_order():
    tensors = [(name, torch.zeros(10)) for name in "abcde"]
    assert sizes(tensors, 80) == [["a", "b"], ["c", "d"], ["e"]]


def test_a_tensor_over_the_bound_travels_alone():
    tensors = [("small", torch.zeros(1)), ("large", torch.zeros(100)), ("last", torch.zeros(1))]
    assert sizes(tensors, 80) == [["small"], ["large"], ["last"]]


def test_what_servers_fuse_travels_together():
    names = ["l.0.norm.weight", "l.0.self_attn.q_a_proj.weight", "l.0.self_attn.kv_a_proj_with_mqa.weight"]
    assert sizes([(name, torch.zeros(10)) for name in names], 80) == [names[:1], names[1:]]
