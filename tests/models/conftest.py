"""A small model of the core's own pieces, on Megatron with one process."""

import pytest
import torch

from rlcore.config.schema import Parallel
from rlcore.models.spec import LayerInfo, ModelSpec
from rlcore.trainer.setup import process_groups


@pytest.fixture(scope="module")
def megatron():
    torch.set_num_threads(1)
    with process_groups(Parallel(), seed=0):
        yield


@pytest.fixture
def make_spec():
    """Gives the description of a model; keywords change it."""

    def make(layer_specs=None, layers=2, **changes) -> ModelSpec:
        from rlcore.models.layers import decoder_block

        fields = {
            "model_type": "small",
            "hf_config": {},
            "hidden_size": 32,
            "vocab_size": 37,
            "layers": (LayerInfo(kind="dense", parameters=0, flops=float),) * layers,
            "transformer_config": {
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "kv_channels": 8,
                "ffn_hidden_size": 48,
                "normalization": "RMSNorm",
                "gated_linear_unit": True,
                "add_bias_linear": False,
            },
            "model_args": {"max_sequence_length": 64, "position_embedding_type": "rope"},
            "layer_specs": layer_specs or decoder_block,
        }
        return ModelSpec(**{**fields, **changes})

    return make


@pytest.fixture
def build(megatron, make_spec):
    """Gives the only stage of a model with random weights."""
    from rlcore.config.schema import Recompute
    from rlcore.models.build import build_model, transformer_config

    def make(dtype=torch.float32, recompute=None, **changes):
        spec = make_spec(**changes)
        config = transformer_config(
            spec,
            parallel=Parallel(),
            dtype=dtype,
            recompute=recompute or Recompute(),
            megatron_overrides={},
        )
        (model,) = build_model(spec, config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1, generator=generator)
        return model

    return make
