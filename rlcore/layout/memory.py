"""What a policy takes of a GPU, and who has the memory of shared GPUs at which time: estimates for a plan.

Activations are left out: they follow from `train.max_tokens_per_gpu` and recomputation.
"""

from dataclasses import dataclass

from rlcore.config.rules import offloads_rollout, offloads_train
from rlcore.config.schema import Recipe
from rlcore.layout.model import Placed

GB = 1e9
_WIDTHS = {"bfloat16": 2, "float32": 4}
# Gradients add up in float32; moments are two, and weights of 16 bits have a master copy.
_GRADIENT = 4
_STATES = {"bfloat16": 12, "float32": 8}


@dataclass(frozen=True)
class Held:
    """Bytes that one rank holds between two steps."""

    weights: float
    gradients: float
    states: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.states


def held(recipe: Recipe, placed: Placed) -> Held:
    """What the ranks of the largest pipeline stage hold; of states, their share among data-parallel ranks."""
    stages = range(placed.layout.pp)
    return max((_of_stage(recipe, placed, stage) for stage in stages), key=lambda one: one.total)


def memory_facts(recipe: Recipe, placed: Placed) -> list[tuple[str, str]]:
    """Say what a GPU holds of the policy; where engines share it, also who has it when."""
    own = held(recipe, placed)
    where = " (in host memory)" if recipe.optimizer.cpu_offload else ""
    states = f"{_gb(own.states)} optimizer states{where}"
    parts = f"{_gb(own.weights)} weights, {_gb(own.gradients)} gradients, {states}; activations come on top"
    facts = [("policy, on a GPU", parts)]
    if recipe.cluster.colocate:
        facts += _turns(recipe, own)
    leaves = offloads_train(recipe)
    if leaves or recipe.optimizer.cpu_offload:
        kept = recipe.cluster.gpus_per_node * (own.states + leaves * own.weights)
        facts.append(("policy, host memory of a node", _gb(kept)))
    return facts


def _turns(recipe: Recipe, own: Held) -> list[tuple[str, str]]:
    stays = _gb(own.total - (own.states if recipe.optimizer.cpu_offload else 0))
    trainer_leaves, engines_leave = offloads_train(recipe), offloads_rollout(recipe)
    sent = _gb(own.weights) if trainer_leaves else stays
    engines = "the engines' weights" if engines_leave else "the engines"
    return [
        ("while training", "the policy" if engines_leave else "the policy, and the engines"),
        ("while weights are sent", f"{sent} of the policy, and {engines}"),
        ("while generating", "the engines" if trainer_leaves else f"the engines, and {stays} of the policy"),
    ]


def _of_stage(recipe: Recipe, placed: Placed, stage: int) -> Held:
    layout, dtype = placed.layout, recipe.model.dtype
    dense, experts = _parameters(placed, stage)
    dense, experts = dense / layout.tp, experts / (layout.ep * layout.etp)
    sharded = dense / (layout.dp * layout.cp) + experts / layout.expert_dp
    whole = dense + experts
    return Held(_WIDTHS[dtype] * whole, _GRADIENT * whole, _STATES[dtype] * sharded)


def _parameters(placed: Placed, stage: int) -> tuple[float, float]:
    """Parameters of a stage outside of experts and in them; MTP layers count as if they were trained."""
    spec, layout = placed.spec, placed.layout
    layers = [layer for chunk in layout.stages[stage] for layer in chunk]
    mtp = spec.mtp_layers[: layout.mtp_layers] if stage == layout.mtp_rank else ()
    each = _experts_of_a_layer(placed)
    has_experts = spec.transformer_config.get("moe_layer_freq", [0] * len(spec.layers))
    experts = each * (sum(has_experts[layer] for layer in layers) + len(mtp) * has_experts[-1])
    whole = sum(spec.layers[layer].parameters for layer in layers) + sum(layer.parameters for layer in mtp)
    table = spec.hidden_size * spec.vocab_size
    last = stage == layout.pp - 1
    tables = (stage == 0) + (last and not (spec.tied_embeddings and stage == 0))
    return whole - experts + tables * table + last * spec.hidden_size, experts


def _experts_of_a_layer(placed: Placed) -> int:
    fields = placed.spec.transformer_config
    matrices = 3 if fields.get("gated_linear_unit") else 2
    experts = int(fields.get("num_moe_experts") or 0)
    return matrices * experts * placed.spec.hidden_size * int(fields.get("moe_ffn_hidden_size") or 0)


def _gb(nbytes: float) -> str:
    return f"{nbytes / GB:.1f} GB"
