"""GLM-5's attention in the local engine, which keeps latents and index keys of earlier tokens in its slots.

transformers' own caches a whole batch at a time, and expands every latent to keys and values of all heads. Here
queries come to the latents, by the functions that the trainer uses: so both round alike.
Axes: r rows, t packed tokens (the newest of every row first), h heads, i index heads, l cached positions,
n widths of a head, d other widths, k chosen keys.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import apply_rotary_pos_emb_interleave

from rlcore.models.selections import add_selections
from rlcore.rollout.local_cache import ForwardPlan, SlotCache
from rlcore_glm52_dsa.selection import fingerprint, index_scores, select
from rlcore_glm52_dsa.sparse import attend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Cosines and sines of the packed tokens' angles, [1, t, d] each, as transformers hands them to layers.
Turns = tuple[Tensor, Tensor]


def serve_in_slots(model: "PreTrainedModel") -> None:
    """Have every layer of a transformers model attend in the engine's slots."""
    full = 0
    for layer in model.model.layers:
        layer.self_attn.forward = SlotAttention(layer.self_attn, ordinal=full)
        full += layer.self_attn.indexer is not None


class SlotAttention:
    """Stands in for the forward of one layer's attention. `ordinal` counts the full layers before it."""

    def __init__(self, attention: nn.Module, ordinal: int) -> None:
        self.weights = attention
        self.ordinal = ordinal

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: Turns,
        prev_topk_indices: Tensor | None,
        slots: tuple[SlotCache, ForwardPlan],
        **_: Any,
    ) -> tuple[Tensor, None, Tensor]:
        """What transformers expects: output [1, t, d], no weights, and for the layers that share it the choice.

        The choice holds positions in each token's own sequence, [t, k], -1 for none.
        """
        (cache, plan), weights, turns = slots, self.weights, position_embeddings
        latent_1td = weights.q_a_layernorm(weights.q_a_proj(hidden_states))
        chosen_tk = prev_topk_indices
        if weights.indexer is not None:
            query_tid, key_td, weight_ti = _index(weights.indexer, hidden_states, latent_1td, turns)
            keys = cache.keep(("index keys", weights.layer_idx), key_td[None], plan)
            chosen_tk = torch.cat(
                [
                    _choose_from_cache(query_tid, keys, weight_ti, plan, weights.indexer.index_topk),
                    _choose_from_prefill(query_tid, key_td, weight_ti, plan, weights.indexer.index_topk),
                ]
            )
            add_selections(plan.shared, fingerprint(chosen_tk, torch.zeros_like(plan.row_t), self.ordinal))
        out_td = self._attend(hidden_states, latent_1td, chosen_tk, turns, cache, plan)
        return weights.o_proj(out_td)[None], None, chosen_tk

    def _attend(
        self,
        hidden_1td: Tensor,
        latent_1td: Tensor,
        chosen_tk: Tensor,
        turns: Turns,
        cache: SlotCache,
        plan: ForwardPlan,
    ) -> Tensor:
        """Attention to the chosen latents, values of all heads side by side: [t, d]."""
        weights = self.weights
        rotated, latent_width = weights.qk_rope_head_dim, weights.kv_lora_rank
        query_thn = weights.q_b_proj(latent_1td)[0].unflatten(-1, (-1, weights.qk_head_dim))
        plain_thn, turned_thn = query_thn.split([weights.qk_nope_head_dim, rotated], -1)
        compressed_td, key_tn = weights.kv_a_proj_with_mqa(hidden_1td)[0].split([latent_width, rotated], -1)
        turned_thn, key_t1n = _rotate(turned_thn, key_tn[:, None], turns)
        latents_td = torch.cat([weights.kv_a_layernorm(compressed_td), key_t1n[:, 0]], -1)
        keys = cache.keep(("latents", weights.layer_idx), latents_td[None], plan)
        up = weights.kv_b_proj.weight.unflatten(0, (weights.num_heads, -1))
        key_up_hnd, value_up_hnd = up.split([weights.qk_nope_head_dim, weights.v_head_dim], 1)
        query_thd = torch.cat([torch.einsum("thn,hnd->thd", plain_thn, key_up_hnd), turned_thn], -1)
        place_tk = (chosen_tk + plan.row_t[:, None] * keys.shape[2]).masked_fill(chosen_tk < 0, -1)
        seen_thd = attend(query_thd, keys.flatten(0, 2), place_tk, weights.scaling, latent_width)
        return torch.einsum("thd,hnd->thn", seen_thd, value_up_hnd).flatten(1)


def _index(
    indexer: nn.Module, hidden_1td: Tensor, latent_1td: Tensor, turns: Turns
) -> tuple[Tensor, Tensor, Tensor]:
    """An indexer's queries [t, i, d], keys [t, d], and heads' weights [t, i], scaled as scores are defined."""
    query_tid = indexer.wq_b(latent_1td)[0].unflatten(-1, (indexer.n_heads, indexer.head_dim))
    key_t1d = indexer.k_norm(indexer.wk(hidden_1td))[0, :, None]
    query_tid, key_t1d = _rotate(query_tid, key_t1d, turns)
    weight_ti = indexer.weights_proj(hidden_1td.to(indexer.weights_proj.weight.dtype))[0].float()
    return query_tid, key_t1d[:, 0], weight_ti * (indexer.n_heads * indexer.head_dim) ** -0.5


def _rotate(query_thd: Tensor, key_t1d: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
    """Rotate as many widths, the first ones, as there are angles."""
    width = turns[0].shape[-1]
    query, key = apply_rotary_pos_emb_interleave(
        query_thd[None, ..., :width], key_t1d[None, ..., :width], *turns, unsqueeze_dim=2
    )
    return (
        torch.cat([query[0], query_thd[..., width:]], -1),
        torch.cat([key[0], key_t1d[..., width:]], -1),
    )


def _choose_from_cache(
    query_tid: Tensor, keys: Tensor, weight_ti: Tensor, plan: ForwardPlan, topk: int
) -> Tensor:
    """Choose for the newest token of every row, each among its row's positions: [r, k], ascending, -1 for none.

    `select` would score every row's keys for all of them.
    """
    rows = slice(plan.rows)
    if plan.longest <= topk:
        place_rk = torch.arange(plan.longest, device=keys.device).expand(plan.rows, -1)
        return place_rk.masked_fill(plan.hidden_rl, -1)
    score_rl = index_scores(query_tid[rows], keys[rows, 0, : plan.longest], weight_ti[rows])
    best_rk, place_rk = score_rl.masked_fill_(plan.hidden_rl, -torch.inf).topk(topk, sorted=False)
    place_rk = place_rk.masked_fill(best_rk == -torch.inf, plan.longest).sort().values
    return place_rk.masked_fill(place_rk == plan.longest, -1)


def _choose_from_prefill(
    query_tid: Tensor, key_td: Tensor, weight_ti: Tensor, plan: ForwardPlan, topk: int
) -> Tensor:
    """Choose for the tokens of new rows, which see nothing but one another; as wide as for the newest ones."""
    new = slice(plan.rows, None)
    width, position_t = min(topk, plan.longest), plan.position_t[new]
    if not len(position_t):
        return position_t.new_empty(0, width)
    place_t = torch.arange(len(position_t), device=position_t.device)
    first_t = place_t - position_t
    index_tk = select(query_tid[new], key_td[new], weight_ti[new], first_t, place_t, topk)
    chosen_tk = (index_tk - first_t[:, None]).masked_fill(index_tk < 0, -1)
    return F.pad(chosen_tk, (0, width - chosen_tk.shape[1]), value=-1)
