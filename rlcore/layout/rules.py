"""What the sizes of a model allow: tensor and expert parallelism split whole heads, columns and experts.

The rules are those of Megatron 0.16.1, read from the fields of its TransformerConfig that a model spec sets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlcore.config.schema import Parallel, Recipe
from rlcore.errors import Problem
from rlcore.layout.plan import expert_sizes

if TYPE_CHECKING:
    from rlcore.layout.plan import Layout
    from rlcore.models.spec import ModelSpec

Fields = Mapping[str, Any]


class NoFurtherRules:
    """The layout validator of a model that needs no more than `model_problems`."""

    def validate(self, layout: "Layout") -> Sequence[Problem]:
        """Nothing is left to forbid."""
        return ()


def model_problems(parallel: Parallel, spec: "ModelSpec") -> Iterator[Problem]:
    """Check parallel sizes against the model's; vocabularies are padded, so they allow any."""
    fields = spec.transformer_config
    experts = fields.get("num_moe_experts")
    ep, etp = expert_sizes(parallel)
    yield from _split("parallel.tp", parallel.tp, fields, _tensor_misfits)
    if not experts:
        if ep > 1:
            yield Problem("parallel.ep", f"{spec.model_type} has no experts to spread", "ep: 1")
        return
    if experts % ep:
        sizes = ", ".join(str(size) for size in range(1, experts + 1) if experts % size == 0)
        yield Problem("parallel.ep", f"{ep} does not divide the {experts} experts", f"one of {sizes}")
    yield from _split("parallel.tp" if ep == 1 else "parallel.etp", etp, fields, _expert_misfits)


def mtp_problems(recipe: Recipe, spec: "ModelSpec") -> Iterator[Problem]:
    """Check that the model has the MTP layers that the recipe wants, and room for them in its pipeline."""
    wanted, held = recipe.mtp.num_layers, len(spec.mtp_layers)
    if wanted > held:
        message = f"the model has {held or 'no'} MTP layer{'s' if held != 1 else ''}, by its config.json"
        yield Problem("mtp.num_layers", message, f"num_layers: {held}")
    if wanted and spec.tied_embeddings and recipe.parallel.pp > 1:
        message = "Megatron cannot tie the output layer to an embedding of another stage beside MTP layers"
        yield Problem("mtp.num_layers", message, "parallel.pp: 1, or num_layers: 0")


def _split(
    place: str, size: int, fields: Fields, misfits: Callable[[Fields, int], Iterator[str]]
) -> Iterator[Problem]:
    """Name what a size does not fit, and the sizes that fit everything."""
    works = [str(other) for other in range(1, 2 * size + 1) if not any(misfits(fields, other))]
    for message in misfits(fields, size):
        yield Problem(place, message, f"one of {', '.join(works)}")


def _tensor_misfits(fields: Fields, tp: int) -> Iterator[str]:
    """Say what tp ranks cannot share evenly; key-value heads that are fewer than ranks are copied."""
    if heads := fields.get("num_attention_heads"):
        groups = fields.get("num_query_groups") or heads
        if heads % tp:
            yield f"{tp} does not divide the {heads} attention heads"
        if groups % tp and tp % groups:
            yield f"{tp} neither divides the {groups} key-value heads nor is a multiple of them"
    widths = {"ffn_hidden_size": "MLP", "moe_shared_expert_intermediate_size": "shared expert"}
    for name, words in widths.items():
        if (width := fields.get(name)) and width % tp:
            yield f"{tp} does not divide the {words}'s width {width}"


def _expert_misfits(fields: Fields, etp: int) -> Iterator[str]:
    if (width := fields.get("moe_ffn_hidden_size")) and width % etp:
        yield f"{etp} does not divide an expert's width {width}"
