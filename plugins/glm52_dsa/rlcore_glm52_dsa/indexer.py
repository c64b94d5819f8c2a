"""What an indexer makes of tokens: queries of few heads, one key, and what each head's opinion weighs.

DeepSeek-V3.2's report, section 2.1, calls it the lightning indexer. Every tensor-parallel rank holds the whole
and looks at its own tokens. Axes: s tokens of this rank, i index heads, d widths, q those of queries' latents.
"""

from typing import TYPE_CHECKING

from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor, nn

from rlcore.models.rotary import rotate

if TYPE_CHECKING:
    from rlcore_glm52_dsa.indexer_sizes import IndexerSizes

# Whatever the model's other norms have.
_EPSILON = 1e-6


class Indexer(MegatronModule):
    """Projections of an indexer. Choosing by them takes no gradient."""

    def __init__(self, config: MLATransformerConfig, sizes: "IndexerSizes", trained: bool) -> None:
        super().__init__(config)
        self.sizes = sizes
        self.linear_wq_b = replicated_linear(config, config.q_lora_rank, sizes.heads * sizes.width)
        self.linear_wk = replicated_linear(config, config.hidden_size, sizes.width)
        self.linear_weights_proj = replicated_linear(config, config.hidden_size, sizes.heads)
        device = self.linear_wk.weight.device
        self.k_norm = nn.LayerNorm(sizes.width, eps=_EPSILON, device=device, dtype=config.params_dtype)
        for parameter in self.k_norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        self.requires_grad_(trained)

    @property
    def is_trained(self) -> bool:
        """Whether it learns: not where it is frozen, by itself or with an MTP layer."""
        return self.linear_wk.weight.requires_grad

    def forward(
        self, hidden_s1h: Tensor, latent_s1q: Tensor, position_s: Tensor, angles: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [s, i, d], keys [s, d], and weights [s, i] in float32, scaled as scores are defined.

        `latent_s1q` is normalised; `angles` are Megatron's. The first widths are those that are rotated.
        """
        query_s1e, _ = self.linear_wq_b(latent_s1q)
        query_sid = query_s1e.unflatten(-1, (self.sizes.heads, self.sizes.width))[:, 0]
        key_s1d = self.k_norm(self.linear_wk(hidden_s1h)[0])
        weight_si = self.linear_weights_proj(hidden_s1h)[0][:, 0].float()
        return (
            rotate(query_sid, position_s, angles, True, False),
            rotate(key_s1d, position_s, angles, True, False)[:, 0],
            weight_si * (self.sizes.heads * self.sizes.width) ** -0.5,
        )


def replicated_linear(config: MLATransformerConfig, input_size: int, output_size: int) -> nn.Module:
    """A linear layer that each tensor-parallel rank holds all of, and applies to its own tokens."""
    return gpt_layer_specs.TESpecProvider().linear()(
        input_size,
        output_size,
        config=config,
        init_method=config.init_method,
        bias=False,
        skip_bias_add=False,
        skip_weight_param_allocation=False,
        parallel_mode="duplicated",
    )
