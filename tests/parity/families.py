"""Which tiny models the parity suite trains, in which layouts. A new family is one more line of FAMILIES."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

from moe import MOE, moe_bridge, moe_spec
from rlcore_glm4.plugin import glm4_bridge, glm4_spec
from rlcore_glm45.plugin import glm45_bridge, glm45_spec
from rlcore_glm47_flash.plugin import flash_bridge, flash_spec
from rlcore_glm52_dsa.margins import selection_margins
from rlcore_glm52_dsa.plugin import dsa_bridge, dsa_spec

from rlcore.bridge.table import WeightBridge
from rlcore.config.schema import Model, Parallel, Recipe
from rlcore.layout.plan import layout_of
from rlcore.models.spec import ModelSpec
from rlcore.testing.routers import choice_margins

Lengths = Sequence[tuple[int, int]]

# (prompt, response) tokens. No length and no total is a multiple of anything, so that every layout has to pad.
PACKED: Lengths = ((3, 9), (5, 28), (7, 16), (2, 51), (11, 6), (4, 37), (6, 13), (1, 22), (9, 34), (3, 20))
ONE_SEQUENCE: Lengths = ((31, 372),)
# Every token of it chooses among keys in every layer: the fewer there are, the rarer are near-ties.
SHORT_SEQUENCE: Lengths = ((31, 152),)
# Prompts of equal length are one prompt, which micro-batches of several of its samples have once.
GROUPED: Lengths = (
    (12, 9),
    (12, 28),
    (12, 16),
    (17, 11),
    (12, 6),
    (17, 37),
    (17, 13),
    (1, 22),
    (17, 34),
    (12, 20),
)

GLM4: Mapping[str, Any] = {
    "model_type": "glm4",
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "tie_word_embeddings": False,
}

GLM45: Mapping[str, Any] = {
    **GLM4,
    "model_type": "glm4_moe",
    "use_qk_norm": True,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
}

GLM47_FLASH: Mapping[str, Any] = {
    "model_type": "glm4_moe_lite",
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.8,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}

# Every second layer shares what the one before it chose, so that four stages may have two layers each.
GLM52: Mapping[str, Any] = {
    **GLM47_FLASH,
    "model_type": "glm_moe_dsa",
    "num_hidden_layers": 8,
    "first_k_dense_replace": 1,
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 16,
    "index_topk_freq": 2,
    "index_skip_topk_offset": 1,
}


@dataclass(frozen=True)
class Layout:
    """A layout by its usual name, such as `TP2xPP2xVPP2`: sizes of the axes that are above 1.

    TP brings sequence parallelism with it: `+SP` says so and changes nothing. `recompute` computes all layers
    again in the backward pass.
    """

    name: str
    lengths: Lengths = PACKED
    cp: Literal["zigzag", "contiguous"] | None = None
    recompute: bool = False
    dispatcher: Literal["alltoall", "allgather"] = "alltoall"

    @property
    def sizes(self) -> dict[str, int]:
        return {axis.lower(): int(size) for axis, size in re.findall(r"([A-Z]+)(\d+)", self.name)}

    @property
    def title(self) -> str:
        if self.dispatcher != "alltoall":
            return f"{self.name} {self.dispatcher}"
        samples = "packed" if len(self.lengths) > 1 else "one sequence"
        again = ", recomputed" if self.recompute else ""
        if self.lengths == GROUPED:
            return f"{self.name} shared prompts{again}"
        return f"{self.name} {samples}, {self.cp}" if self.cp else f"{self.name}{again}"

    @property
    def parallel(self) -> Parallel:
        return Parallel(**self.sizes)


@dataclass(frozen=True)
class Family:
    """A model family: its name, the config.json of a tiny model, spec and bridge of its plugin, its layouts.

    `limit` is what rounding explains of max |Δg| / max |g|, of the gradient's norm and of the loss.
    `seed` draws weights for which no choice is a near-tie; `margins` tell how near to one choices came.
    """

    name: str
    hf_config: Mapping[str, Any]
    make_spec: Callable[[Mapping[str, Any]], ModelSpec]
    make_bridge: Callable[[ModelSpec], WeightBridge]
    layouts: tuple[Layout, ...]
    seed: int = 1
    limit: float = 2e-6
    margins: tuple[Callable[[], AbstractContextManager[list[float]]], ...] = (choice_margins,)

    def spec(self, layout: Layout) -> ModelSpec:
        spec = self.make_spec(self.hf_config)
        return replace(spec, cp_layout=layout.cp) if layout.cp else spec

    def world_size(self, layout: Layout) -> int:
        """Ranks that the planner gives the layout on a CPU; raises RlcoreError if it refuses it."""
        recipe = Recipe(model=Model(checkpoint=self.name), parallel=layout.parallel)
        return layout_of(recipe, self.spec(layout).stage_starts).world_size


DENSE = (
    Layout("TP2"),
    Layout("TP2+SP", ONE_SEQUENCE),
    Layout("TP4"),
    Layout("PP2"),
    Layout("PP2xVPP2"),
    Layout("CP2", ONE_SEQUENCE, "zigzag"),
    Layout("CP2", ONE_SEQUENCE, "contiguous"),
    Layout("CP2", PACKED, "zigzag"),
    Layout("CP2", PACKED, "contiguous"),
    Layout("DP2"),
    Layout("TP2xPP2"),
    Layout("TP2xCP2xDP2"),
    Layout("PP2xCP2xDP2"),
    *(Layout(name, GROUPED) for name in ("TP2", "PP2", "DP2", "CP2", "TP2xPP2")),
    Layout("PP2xVPP2", GROUPED, recompute=True),
)
GATHERED = (
    Layout("EP2", dispatcher="allgather"),
    Layout("TP2xEP2", dispatcher="allgather"),
)
EXPERTS = (
    Layout("EP2"),
    Layout("TP2xEP2"),
    Layout("TP2xEP2xDP2"),
    Layout("TP2xPP2xEP2"),
    Layout("CP2xEP2"),
    Layout("PP2xVPP2xEP2"),
    Layout("TP2xCP2xEP4"),
    Layout("TP2xETP2"),
    *GATHERED,
    Layout("TP2xEP4", dispatcher="allgather"),
    Layout("CP2xEP4", dispatcher="allgather"),
)
PUBLISHED_EXPERTS = (
    Layout("TP2"),
    Layout("PP2"),
    Layout("PP2xVPP2"),
    Layout("CP2"),
    Layout("CP2", PACKED, "contiguous"),
    Layout("EP2"),
    Layout("TP2xEP2"),
    Layout("TP2xPP2xEP2"),
    Layout("CP2xEP2"),
)
SPARSE_ATTENTION = (
    *(Layout(name, recompute=again) for name in ("PP2", "PP2xVPP2", "TP2xPP2xEP2") for again in (False, True)),
    Layout("DP2", recompute=True),
    Layout("TP2"),
    Layout("TP2+SP", SHORT_SEQUENCE),
    Layout("CP2", SHORT_SEQUENCE, "contiguous"),
    Layout("CP2", PACKED, "contiguous"),
    Layout("CP2", recompute=True),
    Layout("EP2"),
    Layout("CP2xEP2"),
    Layout("TP2xCP2xEP2"),
)
LEARNING_INDEXERS = (
    Layout("DP2"),
    Layout("TP2"),
    Layout("PP2xVPP2", recompute=True),
    Layout("CP2", PACKED, "contiguous"),
    Layout("TP2xPP2xEP2", recompute=True),
)

FAMILIES = (
    Family("GLM-4", GLM4, glm4_spec, glm4_bridge, DENSE),
    Family("Megatron MoE", MOE, moe_spec, moe_bridge, EXPERTS, seed=3),
    Family("GLM-4.5", GLM45, glm45_spec, glm45_bridge, (*PUBLISHED_EXPERTS, *GATHERED)),
    Family("GLM-4.7-Flash", GLM47_FLASH, flash_spec, flash_bridge, PUBLISHED_EXPERTS),
    Family(
        "GLM-5.2",
        GLM52,
        dsa_spec,
        dsa_bridge,
        SPARSE_ATTENTION,
        seed=24,
        margins=(choice_margins, selection_margins),
    ),
    Family(
        "GLM-5.2, indexers",
        GLM52,
        lambda hf_config: dsa_spec(hf_config).chosen({"indexer": {"train": "kl", "coefficient": 1.0}}),
        dsa_bridge,
        LEARNING_INDEXERS,
        seed=24,
        # Indexers learn from how far two distributions are apart, and these are all but equal: a last digit of
        # the latents, changed at random in one process, changes their gradients by 7e-6.
        limit=2e-5,
        margins=(choice_margins, selection_margins),
    ),
)
