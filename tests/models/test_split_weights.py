from types import SimpleNamespace

import pytest
import torch


def marked(weight, mark):
    if mark is not None:
        weight.tensor_model_parallel = mark
    return weight


@pytest.mark.parametrize("mark", [None, True], ids=["unmarked", "as split"])
def test_replicated_weights_count_once_however_their_library_marks_them(megatron, mark):
    from rlcore.models.local_te import ReplicatedLinear
    from rlcore.models.split_weights import mark_split_weights

    config = SimpleNamespace(params_dtype=torch.float32, sequence_parallel=True, use_cpu_initialization=True)
    down = ReplicatedLinear(4, 2, config=config)
    marked(down.weight, mark)
    mark_split_weights(torch.nn.Sequential(down))
    assert not down.weight.tensor_model_parallel


@pytest.mark.parametrize(
    "mark", [None, False, True], ids=["unmarked", "marked as replicated", "marked as split"]
)
def test_experts_count_on_every_rank_however_their_library_marks_them(megatron, mark):
    from rlcore.models.split_weights import mark_split_weights

    grouped = torch.nn.Module()
    grouped.num_gemms = 2
    for expert in range(2):
        weight = torch.nn.Parameter(torch.zeros(3, 4))
        grouped.register_parameter(f"weight{expert}", marked(weight, mark))
    mark_split_weights(torch.nn.Sequential(grouped))
    assert all(weight.tensor_model_parallel for weight in grouped.parameters())


def test_what_is_split_by_columns_rows_or_words_counts_on_every_rank_and_norms_once(build):
    split = {
        name.split(".")[-2]
        for name, weight in build().named_parameters()
        if getattr(weight, "tensor_model_parallel", False) and weight.dim() == 2
    }
    assert split == {"word_embeddings", "linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "output_layer"}
