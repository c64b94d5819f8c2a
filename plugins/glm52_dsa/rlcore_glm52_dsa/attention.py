"""GLM-5's self-attention for Megatron's layers: each query attends to the keys that an indexer chose.

Queries and values are brought to the latents' width and back (arXiv 2405.04434, section 2.1.2), so that a
token's keys are one latent for all heads, which is all that context-parallel ranks gather. Parameters have the
names of Megatron's latent attention. Axes: s tokens of this tensor-parallel rank, t of this context-parallel
rank, T of everybody; h heads, n widths of a head, l of the latents of keys and values, k chosen keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings import RotaryEmbedding
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    checkpoint,
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor

from rlcore.models.attention import PackedSequences
from rlcore.models.context_parallel import gather_rows
from rlcore.models.measures import add_measure
from rlcore.models.rotary import rotate
from rlcore.models.selections import SELECTIONS, add_selections
from rlcore_glm52_dsa.indexer import Indexer, replicated_linear
from rlcore_glm52_dsa.indexer_loss import divergence
from rlcore_glm52_dsa.kernels import functions
from rlcore_glm52_dsa.schedule import sources
from rlcore_glm52_dsa.selection import fingerprint
from rlcore_glm52_dsa.sparse import attention_mass

if TYPE_CHECKING:
    from rlcore_glm52_dsa.indexer_sizes import IndexerSizes
    from rlcore_glm52_dsa.options import DsaOptions


@dataclass(frozen=True)
class Tokens:
    """The tokens of a micro-batch, `own` those of this tensor-parallel rank, and Megatron's angles."""

    sequences: PackedSequences
    own: slice
    angles: Tensor

    @property
    def position_t(self) -> Tensor:
        """Positions in their sequences of the tokens of this context-parallel rank."""
        return self.sequences.position_ids[0]

    @property
    def position_s(self) -> Tensor:
        return self.position_t[self.own]

    @property
    def real_s(self) -> Tensor:
        """1 for each token, 0 where it is padding."""
        padding_1s = self.sequences.padding_1s
        return (
            torch.ones_like(self.position_s, dtype=torch.float32)
            if padding_1s is None
            else (~padding_1s[0, self.own]).float()
        )


class SparseLatentAttention(MegatronModule):
    """Self-attention of packed sequences. `full` says which layers, those of MTP included, have an indexer."""

    def __init__(
        self,
        config: MLATransformerConfig,
        layer_number: int,
        *,
        full: Sequence[bool],
        sizes: "IndexerSizes",
        options: "DsaOptions",
        pg_collection: ProcessGroupCollection,
        **_: Any,
    ) -> None:
        super().__init__(config)
        layer = layer_number - 1
        self.groups = pg_collection
        self.source = sources(full)[layer]
        self.ordinal = sum(full[:layer])
        self.topk = sizes.topk
        self.indexer = Indexer(config, sizes, options.indexer.train == "kl") if full[layer] else None
        self.coefficient = options.indexer.coefficient
        self.functions = functions(options.kernels)
        self.is_mtp = layer >= config.num_layers
        self.head_width = config.qk_head_dim + config.qk_pos_emb_head_dim
        self.scale = self.head_width**-0.5
        self.rotary_pos_emb = RotaryEmbedding(
            config.qk_pos_emb_head_dim, 1.0, rotary_base=config.rotary_base, cp_group=pg_collection.cp
        )
        self._make_projections()

    def _make_projections(self) -> None:
        config, heads = self.config, self.config.num_attention_heads
        parts, norm = gpt_layer_specs.TESpecProvider(), gpt_layer_specs.TENorm
        shared = {"config": config, "bias": False, "skip_bias_add": False, "is_expert": False}
        split = {**shared, "init_method": config.init_method, "gather_output": False}
        self.linear_q_down_proj = replicated_linear(config, config.hidden_size, config.q_lora_rank)
        self.q_layernorm = norm(config, config.q_lora_rank, config.layernorm_epsilon)
        self.linear_q_up_proj = parts.column_parallel_linear()(
            config.q_lora_rank, heads * self.head_width, **split, tp_group=self.groups.tp
        )
        latent = config.kv_lora_rank
        self.linear_kv_down_proj = replicated_linear(
            config, config.hidden_size, latent + config.qk_pos_emb_head_dim
        )
        self.kv_layernorm = norm(config, latent, config.layernorm_epsilon)
        self.linear_kv_up_proj = AbsorbedProjection(
            latent, heads * (config.qk_head_dim + config.v_head_dim), **split, tp_group=self.groups.tp
        )
        self.linear_proj = parts.row_parallel_linear()(
            heads * config.v_head_dim,
            config.hidden_size,
            **{**shared, "skip_bias_add": True},
            init_method=config.output_layer_init_method,
            input_is_parallel=True,
            tp_group=self.groups.tp,
        )

    def forward(
        self,
        hidden_s1h: Tensor,
        attention_mask: Tensor | None = None,
        *,
        packed_seq_params: PackedSequences,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within each sequence; [s, 1, h] in and out, as Megatron's layers ask, and a bias."""
        angles = self.rotary_pos_emb(packed_seq_params.max_seqlen_q, packed_seq=True)
        tokens = Tokens(packed_seq_params, self._own_rows(len(hidden_s1h)), angles)
        latent_s1q = self.q_layernorm(self.linear_q_down_proj(hidden_s1h)[0])
        index_tk = self._choice(hidden_s1h, latent_s1q, tokens)
        key_Td = self._everybodys(self._keys(hidden_s1h, tokens), tokens)

        def attend_to(latent_s1q: Tensor, key_Td: Tensor) -> Tensor:
            return self._attend(latent_s1q, key_Td, index_tk, tokens)

        recomputed = self._is_recomputed()
        seen_t1e = (
            checkpoint(attend_to, False, latent_s1q, key_Td) if recomputed else attend_to(latent_s1q, key_Td)
        )
        out_s1h, bias = self.linear_proj(seen_t1e)
        if self.indexer is not None and self.indexer.is_trained and torch.is_grad_enabled():
            loss = self._choice_loss(hidden_s1h.detach(), latent_s1q.detach(), key_Td, index_tk, tokens)
            out_s1h = MoEAuxLossAutoScaler.apply(out_s1h, loss)
        return out_s1h, bias

    def _keys(self, hidden_s1h: Tensor, tokens: Tokens) -> Tensor:
        """Latents of keys and values, normalised, each with the key's rotated part: [s, d]."""
        compressed_s1d, _ = self.linear_kv_down_proj(hidden_s1h)
        widths = [self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim]
        latent_s1l, key_s1r = compressed_s1d.split(widths, -1)
        rotated_s1r = rotate(key_s1r, tokens.position_s, tokens.angles, True, False)
        return torch.cat([self.kv_layernorm(latent_s1l), rotated_s1r], -1)[:, 0]

    def _queries(self, latent_s1q: Tensor, key_up_hnl: Tensor, tokens: Tokens) -> Tensor:
        """Queries of this rank's heads, brought to the keys' widths: [t, h, d]."""
        query_t1e, _ = self.linear_q_up_proj(latent_s1q)
        query_thn = query_t1e[:, 0].unflatten(-1, (-1, self.head_width))
        plain_thn, turned_thr = query_thn.split([self.config.qk_head_dim, self.config.qk_pos_emb_head_dim], -1)
        absorbed_thl = torch.einsum("thn,hnl->thl", plain_thn, key_up_hnl)
        return torch.cat([absorbed_thl, rotate(turned_thr, tokens.position_t, tokens.angles, True, False)], -1)

    def _attend(self, latent_s1q: Tensor, key_Td: Tensor, index_tk: Tensor, tokens: Tokens) -> Tensor:
        """Attention of this rank's heads: [t, 1, heads · value width]."""
        key_up_hnl, value_up_hnl = self.linear_kv_up_proj()
        query_thd = self._queries(latent_s1q, key_up_hnl, tokens)
        seen_thl = self.functions.attend(query_thd, key_Td, index_tk, self.scale, self.config.kv_lora_rank)
        return torch.einsum("thl,hnl->thn", seen_thl, value_up_hnl).flatten(1)[:, None]

    def _choice(self, hidden_s1h: Tensor, latent_s1q: Tensor, tokens: Tokens) -> Tensor:
        """Places of the keys that each query attends to, [t, k].

        The layer that chooses leaves them behind: for those that share them, and for itself when recomputed.
        """
        name, carried = f"indices of layer {self.source}", tokens.sequences.carried
        if self.indexer is not None and name not in carried:
            with torch.no_grad():
                found = self.indexer(hidden_s1h, latent_s1q, tokens.position_s, tokens.angles)
                carried[name] = self._select(*found, tokens)
        return carried[name]

    def _select(self, query_sid: Tensor, key_sd: Tensor, weight_si: Tensor, tokens: Tokens) -> Tensor:
        """Choose for the tokens of this tensor-parallel rank, and put together what all of them chose."""
        sequences = tokens.sequences
        place_s = sequences.places[tokens.own]
        first_s = place_s - tokens.position_s
        key_Td = self._everybodys(key_sd, tokens)
        index_sk = self.functions.select(query_sid, key_Td, weight_si, first_s, place_s, self.topk)
        if SELECTIONS in sequences.shared and not self.is_mtp:
            hash_s = fingerprint(index_sk, first_s, self.ordinal)
            add_selections(sequences.shared, self._from_tensor_parallel(hash_s))
        # As many columns on every rank, whatever it has of the longest sequence.
        missing = min(self.topk, sequences.max_seqlen_q) - index_sk.shape[1]
        return self._from_tensor_parallel(F.pad(index_sk, (0, missing), value=-1))

    def _choice_loss(
        self, hidden_s1h: Tensor, latent_s1q: Tensor, key_Td: Tensor, index_tk: Tensor, tokens: Tokens
    ) -> Tensor:
        """How far this rank's tokens' index scores are from attention, summed and weighed for the optimizer."""
        with torch.no_grad():
            query_thd = self._queries(latent_s1q, self.linear_kv_up_proj()[0], tokens)
            mass_sk = self._to_tensor_parallel(attention_mass(query_thd, key_Td, index_tk, self.scale))
        query_sid, key_sd, weight_si = self.indexer(hidden_s1h, latent_s1q, tokens.position_s, tokens.angles)
        real_s, chosen_sk = tokens.real_s, index_tk[tokens.own]
        loss = divergence(query_sid, self._everybodys(key_sd, tokens), weight_si, chosen_sk, mass_sk, real_s)
        add_measure(tokens.sequences.shared, "dsa/indexer_kl", loss.detach(), real_s.sum())
        return self.coefficient * loss

    def _own_rows(self, count: int) -> slice:
        """Which of the context-parallel rank's tokens this tensor-parallel rank has."""
        start = count * self.groups.tp.rank() if self.config.sequence_parallel else 0
        return slice(start, start + count)

    def _from_tensor_parallel(self, x_s: Tensor) -> Tensor:
        """Rows of all tensor-parallel ranks; their gradient is the sum over these ranks."""
        if not self.config.sequence_parallel:
            return x_s
        return gather_from_sequence_parallel_region(x_s, group=self.groups.tp)

    def _to_tensor_parallel(self, x_t: Tensor) -> Tensor:
        """This rank's rows of the sum over all tensor-parallel ranks."""
        if not self.config.sequence_parallel:
            return x_t
        return reduce_scatter_to_sequence_parallel_region(x_t, group=self.groups.tp)

    def _everybodys(self, x_sd: Tensor, tokens: Tokens) -> Tensor:
        """Rows of all tensor- and context-parallel ranks, in the order of the whole."""
        x_td = self._from_tensor_parallel(x_sd)
        if tokens.sequences.cp.size == 1:
            return x_td
        return gather_rows(x_td, self.groups.cp).index_select(0, tokens.sequences.merging)

    def _is_recomputed(self) -> bool:
        """Whether queries and what they saw are computed again in the backward pass."""
        config = self.config
        selective = self.training and config.recompute_granularity == "selective"
        return selective and bool({"core_attn", "mla_up_proj"} & set(config.recompute_modules))


class AbsorbedProjection(ColumnParallelLinear):
    """The projection from latents up to keys and values, which is never applied to a latent.

    Calling it gives its weight, for keys and for values, by heads: Megatron waits for a module's weights where
    the module is called.
    """

    def forward(self) -> tuple[Tensor, Tensor]:
        """[h, n, l] each, with n their widths in a head."""
        widths = [self.config.qk_head_dim, self.config.v_head_dim]
        key_up_hnl, value_up_hnl = self.weight.unflatten(0, (-1, sum(widths))).split(widths, 1)
        return key_up_hnl, value_up_hnl
