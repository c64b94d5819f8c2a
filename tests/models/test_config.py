import pytest
import torch
from megatron.core.transformer.enums import AttnBackend

from rlcore.config.schema import Parallel, Recompute
from rlcore.errors import RlcoreError
from rlcore.models.config import transformer_config


@pytest.fixture
def configure(make_spec):
    def make(overrides=None, cp_layout="zigzag", tied=False, architecture=None, **changes):
        arguments = {"parallel": Parallel(), "dtype": torch.float32, "recompute": Recompute(), **changes}
        fields = {"transformer_config": architecture} if architecture else {}
        spec = make_spec(cp_layout=cp_layout, tied_embeddings=tied, **fields)
        return transformer_config(spec, **arguments, megatron_overrides=overrides or {})

    return make


def test_architecture_comes_from_the_spec(configure):
    config = configure()
    assert (config.num_layers, config.hidden_size, config.num_query_groups) == (2, 32, 2)
    assert config.activation_func is torch.nn.functional.silu


def test_a_native_field_passes_through(configure):
    assert configure({"attention_softmax_in_fp32": False}).attention_softmax_in_fp32 is False


def test_an_enum_and_a_dtype_are_written_by_name(configure):
    config = configure({"attention_backend": "flash", "autocast_dtype": "bfloat16"})
    assert config.attention_backend is AttnBackend.flash
    assert config.autocast_dtype is torch.bfloat16


def test_tensor_parallelism_brings_sequence_parallelism(configure):
    assert not configure().sequence_parallel
    assert configure(parallel=Parallel(tp=2)).sequence_parallel


def test_types_follow_from_the_dtype(configure):
    config = configure(dtype=torch.bfloat16)
    assert config.bf16
    assert config.params_dtype == config.pipeline_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("recompute", "expected"),
    [
        (Recompute(), (None, None)),
        (Recompute(granularity="full", num_layers=2), ("full", "uniform")),
        (Recompute(granularity="selective", modules=["core_attn"]), ("selective", None)),
    ],
)
def test_recomputation_is_megatrons_own(configure, recompute, expected):
    config = configure(recompute=recompute)
    assert (config.recompute_granularity, config.recompute_method) == expected


@pytest.mark.parametrize("name", ["tensor_model_parallel_size", "num_query_groups", "bias_dropout_fusoin"])
def test_a_field_that_is_not_the_users_is_refused(configure, name):
    with pytest.raises(RlcoreError, match=f"megatron.{name}"):
        configure({name: 2})


def test_the_fused_rotation_is_refused_where_it_would_rotate_wrongly(configure):
    with pytest.raises(RlcoreError, match=r"megatron\.apply_rope_fusion"):
        configure({"apply_rope_fusion": True}, parallel=Parallel(cp=2), cp_layout="contiguous")


def test_the_fused_rotation_is_refused_for_pairs_side_by_side(make_spec, configure):
    architecture = {**make_spec().transformer_config, "rotary_interleaved": True}
    with pytest.raises(RlcoreError, match=r"megatron\.apply_rope_fusion.*side by side"):
        configure({"apply_rope_fusion": True}, architecture=architecture)


def test_drafting_with_tied_embeddings_in_a_pipeline_is_refused(configure):
    pipeline = Parallel(pp=2)
    configure(tied=True, parallel=pipeline)
    configure(tied=True, mtp_layers=1)
    with pytest.raises(RlcoreError, match=r"mtp\.num_layers"):
        configure(tied=True, mtp_layers=1, parallel=pipeline)
