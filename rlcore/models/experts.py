"""A mixture of experts as config.json describes it: Megatron's fields, parameters, and what a token meets.

The router is that of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2), in fp32: sigmoid scores, a bias per expert
that counts for the choice alone, and the scores of those chosen scaled to a sum. Imports no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlcore.errors import Problem, raise_if_any
from rlcore.models.arithmetic import gated_mlp_parameters
from rlcore.models.hf_config import number_problems

_SIZES = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts")

DENSE, MOE = "dense", "moe"


@dataclass(frozen=True)
class Experts:
    """The experts of one layer. `shared_width` is that of the expert that all tokens take.

    A token chooses `per_token` of `count` experts, all from the `chosen_groups` best of `groups` equal groups.
    """

    count: int
    per_token: int
    width: int
    shared_width: int
    scaling: float
    groups: int
    chosen_groups: int

    @classmethod
    def of(cls, hf_config: Mapping[str, Any]) -> "Experts":
        """Read the keys that transformers and the hub share; raises RlcoreError for all that cannot be."""
        raise_if_any(number_problems(hf_config, _SIZES, ["routed_scaling_factor"]))
        experts = cls(
            count=hf_config["n_routed_experts"],
            per_token=hf_config["num_experts_per_tok"],
            width=hf_config["moe_intermediate_size"],
            shared_width=hf_config["n_shared_experts"] * hf_config["moe_intermediate_size"],
            scaling=hf_config["routed_scaling_factor"],
            groups=hf_config.get("n_group") or 1,
            chosen_groups=hf_config.get("topk_group") or 1,
        )
        raise_if_any(experts._problems(hf_config.get("norm_topk_prob", True)))
        return experts

    def _problems(self, normalised: bool) -> Iterator[Problem]:
        if self.per_token > self.count:
            message = f"num_experts_per_tok {self.per_token} is more than n_routed_experts {self.count}"
            yield Problem("config.json", message)
        if normalised != (self.per_token > 1):
            message = f"norm_topk_prob {normalised} with num_experts_per_tok {self.per_token} is not supported"
            yield Problem("config.json", f"{message}: Megatron normalises the scores of several experts only")
        if not self.shared_width:
            yield Problem("config.json", "n_shared_experts 0 is not supported")
        if self.count % self.groups:
            yield Problem("config.json", f"n_group {self.groups} does not divide n_routed_experts {self.count}")
        if self.groups > 1 and self.per_token // self.chosen_groups != 2:
            message = f"topk_group {self.chosen_groups} is not half of num_experts_per_tok {self.per_token}"
            yield Problem("config.json", f"{message}: Megatron would not rank groups by their best two experts")

    def transformer_config(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Fields of Megatron's TransformerConfig for layers of these kinds, DENSE or MOE.

        The bias stays as the checkpoint has it, and nothing pulls the router towards equal loads: a recipe may
        ask for either under `megatron:`.
        """
        grouped = {"moe_router_num_groups": self.groups, "moe_router_group_topk": self.chosen_groups}
        return {
            "num_moe_experts": self.count,
            "moe_layer_freq": [int(kind == MOE) for kind in kinds],
            "moe_ffn_hidden_size": self.width,
            "moe_shared_expert_intermediate_size": self.shared_width,
            "moe_router_topk": self.per_token,
            "moe_router_topk_scaling_factor": self.scaling,
            "moe_router_score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "moe_router_dtype": "fp32",
            **(grouped if self.groups > 1 else {}),
        }

    def layer_parameters(self, kind: str, hidden: int, intermediate: int) -> tuple[int, int]:
        """Elements of what follows attention in a layer of this kind: all of them, and what a token meets.

        `intermediate` is the width of a dense layer's MLP.
        """
        if kind == DENSE:
            return (dense := gated_mlp_parameters(hidden, intermediate)), dense
        return self.parameters(hidden), self.active_parameters(hidden)

    def parameters(self, hidden: int) -> int:
        """Elements of a layer's router and experts; the biases, which no gradient changes, are none."""
        return self.count * (hidden + gated_mlp_parameters(hidden, self.width)) + self._shared(hidden)

    def active_parameters(self, hidden: int) -> int:
        """Those of them that one token meets."""
        own = self.per_token * gated_mlp_parameters(hidden, self.width)
        return self.count * hidden + own + self._shared(hidden)

    def _shared(self, hidden: int) -> int:
        return gated_mlp_parameters(hidden, self.shared_width)
