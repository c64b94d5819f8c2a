"""The layer that predicts the token after next, against transformers' own pieces: as a model it has none."""

import pytest
import torch
import torch.nn.functional as F
from rlcore_glm52_dsa.margins import selection_margins
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.bridge.load import load_hf
from rlcore.models.attention import PackedSequences
from rlcore.models.forward import forward_hidden, forward_mtp, output_weight
from rlcore.testing.routers import choice_margins
from rlcore.testing.tiny import tensors_of, tiny_mtp_layer

LENGTHS = (40, 5, 23)


def transformers_with_one_layer_more(spec, folder):
    """The MTP layer stands in the checkpoint as the layer after the last, and is shaped like one."""
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers += 1
    for key, kind in (
        ("mlp_layer_types", "sparse"),
        ("indexer_types", "full"),
        ("layer_types", "indexed_attention"),
    ):
        setattr(config, key, [*getattr(config, key), kind])
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager").eval()
    spec.mend_transformers(model)
    return model


def mtp_logits_of_transformers(spec, folder, parts):
    """Row i of each sequence predicts token i + 2; the last two rows have nothing to predict."""
    model = transformers_with_one_layer_more(spec, folder)
    *layers, drafting = model.model.layers
    prefix = f"model.layers.{len(layers)}."
    own = {name.removeprefix(prefix): t for name, t in tensors_of(folder).items() if name.startswith(prefix)}
    eps = model.config.rms_norm_eps

    def norm(x, name):
        return F.rms_norm(x, x.shape[-1:], own[f"{name}.weight"], eps)

    def logits(tokens_t):
        hidden = model.model.embed_tokens(tokens_t[None])
        angles = model.model.rotary_emb(hidden, torch.arange(len(tokens_t))[None])
        mask = torch.full((len(tokens_t),) * 2, -torch.inf).triu(1)[None, None]
        chosen = None
        for layer in layers:
            hidden, chosen = layer(
                hidden, attention_mask=mask, position_embeddings=angles, prev_topk_indices=chosen
            )
        hidden, following = model.model.norm(hidden)[:, :-1], model.model.embed_tokens(tokens_t[None, 1:])
        both = torch.cat([norm(following, "enorm"), norm(hidden, "hnorm")], -1)
        shorter = {
            "attention_mask": mask[..., 1:, 1:],
            "position_embeddings": tuple(turn[:, :-1] for turn in angles),
        }
        drafted, _ = drafting(both @ own["eh_proj.weight"].T, **shorter)
        return model.lm_head(norm(drafted, "shared_head.norm"))[0]

    return torch.cat([logits(part) for part in parts])


@torch.no_grad()
@pytest.mark.parametrize(
    "shape",
    [{"index_topk_freq": 1}, {"indexer_types": ["full", "shared", "full", "shared"]}],
    ids=["all full", "after one that shares"],
)
def test_logits_are_those_of_transformers_and_keys_chosen_anew(build, make_checkpoint, shape):
    folder = make_checkpoint(num_nextn_predict_layers=1, index_topk=8, **shape)
    tiny_mtp_layer(folder, like=2, jitter=0.1)
    spec, bridge, stages = build(folder, mtp_layers=1)
    load_hf(stages, bridge, folder)
    (model,) = stages
    tokens_t = torch.randint(499, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    sequences = PackedSequences.of(LENGTHS)
    with choice_margins() as experts, selection_margins() as keys:
        hidden_t1h = forward_hidden(model.eval(), tokens_t[None], sequences)
        (mtp_t1h,) = forward_mtp(model, hidden_t1h, tokens_t[None], sequences)
    assert min(*experts, *keys) > 3e-6
    ours = torch.cat([part[:-1] for part in (mtp_t1h[:, 0] @ output_weight(model).T).split(LENGTHS)])
    theirs = mtp_logits_of_transformers(spec, folder, tokens_t.split(LENGTHS))
    assert (ours - theirs).abs().max() <= 3e-6 * theirs.abs().max()
