"""ModelSpec: all that the core knows of a model family, given by its plugin.

It is plain data until `layer_specs` is called, so that planning and validation need no torch.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from rlcore.registry.options import NoOptions, parse

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One transformer layer as the pipeline solver and the FLOPs model see it.

    `kind` groups equal layers ("dense", "moe", …). `parameters` counts elements. `flops(length)` is the
    forward cost of one sequence of `length` tokens in this layer, attention included, multiply and add
    counted separately. A layer that needs results of the one before it may not start a pipeline stage.
    """

    kind: str
    parameters: int
    flops: Callable[[int], float]
    may_start_stage: bool = True


def mtp_layer_around(layer: LayerInfo, hidden_size: int) -> LayerInfo:
    """Describe an MTP layer: `layer`, three norms, and a projection of two hidden states to one."""
    projection = 2 * hidden_size * hidden_size

    def flops(length: int) -> float:
        return layer.flops(length) + 2.0 * length * projection

    return LayerInfo(kind="mtp", parameters=layer.parameters + projection + 3 * hidden_size, flops=flops)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model family's description of one checkpoint.

    `transformer_config` holds the architecture fields of Megatron's TransformerConfig (or of
    MLATransformerConfig when `latent_attention`), `model_args` those of GPTModel. Parallel sizes, dtypes
    and recomputation are the core's to add; a spec that sets one is refused.

    `mtp_layers` are the checkpoint's multi-token prediction (MTP) layers, each with its norms and projection;
    embedding and output layer are the model's own. `mtp_layer_spec` describes the transformer layer inside
    them, by default one like the model's last.

    `mend_transformers` changes transformers' model in place where it does not compute what the published model
    was trained to: whoever runs transformers for this family calls it after loading. `serve_transformers`,
    which the local engine alone calls after that, is for attention that has more to cache than keys and
    values: it makes it do so in the engine's slots (`rlcore.rollout.local_cache`). It may also put quicker
    forms of layers in their places (`rlcore.rollout.local_fused`).

    `shares_prompts` says that nothing but the usual core attention looks from one token to another, or counts
    tokens, so that in training the samples of a prompt may share its rows.

    A family with options of its own says which, and describes itself anew with those that a recipe chose.
    """

    model_type: str
    hf_config: Mapping[str, Any]
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerInfo, ...]
    transformer_config: Mapping[str, Any]
    model_args: Mapping[str, Any]
    layer_specs: "Callable[[TransformerConfig, int | None], TransformerBlockSubmodules]"
    cp_layout: Literal["zigzag", "contiguous"] = "zigzag"
    latent_attention: bool = False
    tied_embeddings: bool = False
    shares_prompts: bool = False
    mtp_layers: tuple[LayerInfo, ...] = ()
    mtp_layer_spec: "Callable[[TransformerConfig], ModuleSpec] | None" = None
    mend_transformers: "Callable[[PreTrainedModel], None]" = lambda model: None
    serve_transformers: "Callable[[PreTrainedModel], None]" = lambda model: None
    options: type[BaseModel] = NoOptions
    with_options: "Callable[[Any], ModelSpec] | None" = None

    def chosen(self, options: Mapping[str, Any]) -> "ModelSpec":
        """Describe the model with a recipe's options; raises RlcoreError with each that it does not have."""
        parsed = parse(self.options, options, "model.options")
        return self.with_options(parsed) if self.with_options else self

    @property
    def stage_starts(self) -> tuple[bool, ...]:
        """Whether each layer may start a pipeline stage."""
        return tuple(layer.may_start_stage for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Elements in all weights but those of MTP layers: layers, embedding, final norm and output layer."""
        tables = 1 if self.tied_embeddings else 2
        return sum(layer.parameters for layer in self.layers) + self.hidden_size * (
            tables * self.vocab_size + 1
        )

    def flops(self, length: int) -> float:
        """Forward FLOPs of one sequence of `length` tokens, output layer included."""
        return (
            sum(count * layer.flops(length) for layer, count in Counter(self.layers).items())
            + 2.0 * length * self.hidden_size * self.vocab_size
        )
