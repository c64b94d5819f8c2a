import weakref
from types import MappingProxyType

import pytest
import torch
from rlcore_glm52_dsa import attention
from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.spec import dsa_spec
from transformers import AutoModelForCausalLM
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import apply_rotary_pos_emb_interleave

from rlcore.config.schema import MTP, Model, Optimizer, Recompute
from rlcore.data.train_sample import TrainSample
from rlcore.models.hf_config import read_hf_config
from rlcore.testing.tiny import tiny_mtp_layer
from rlcore.trainer.objectives import SftObjective
from rlcore.trainer.trainer import Trainer


@pytest.fixture
def checkpoint(megatron, make_checkpoint):
    folder = make_checkpoint(num_nextn_predict_layers=1, indexer_types=["full", "shared", "full", "full"])
    tiny_mtp_layer(folder, jitter=0.05)
    return folder


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    return [
        TrainSample(
            name=f"sample {number}",
            tokens=torch.randint(499, (40 + number,), generator=generator).tolist(),
            prompt_length=5,
            loss_mask=[1.0] * (35 + number),
        )
        for number in range(4)
    ]


@pytest.fixture
def trainer(checkpoint):
    """Makes a trainer with one sample in each micro-batch, of the model with these `options`."""

    def make(dtype="float32", options=MappingProxyType({}), **keywords):
        spec = dsa_spec(read_hf_config(checkpoint)).chosen(options)
        model = Model(checkpoint=str(checkpoint), dtype=dtype)
        mtp = MTP(num_layers=1, train=True)
        made = Trainer(
            spec, dsa_bridge(spec), checkpoint, model=model, mtp=mtp, max_tokens_per_gpu=50, **keywords
        )
        made.prepare_optimizer(Optimizer(lr=1e-2, weight_decay=0.5), total_steps=20)
        return made

    return make


@pytest.fixture
def gradients(trainer, samples):
    """Gives the loss and the gradients of the samples; keywords are those of `trainer`."""

    def run(*args, **keywords):
        made = trainer(*args, **keywords)
        loss = made.backward(samples, SftObjective())["loss"]
        return loss, [p.main_grad.clone() for p in made.stages[0].parameters() if p.requires_grad]

    return run


RECOMPUTED = {
    "layers": Recompute(granularity="full"),
    "attention": Recompute(granularity="selective", modules=["core_attn"]),
    "what latents are made into": Recompute(granularity="selective", modules=["mla_up_proj", "moe"]),
}


@pytest.mark.parametrize("recompute", RECOMPUTED.values(), ids=RECOMPUTED)
def test_computing_again_what_was_not_kept_changes_no_bit(gradients, recompute):
    (loss, kept), (again, recomputed) = gradients(), gradients(recompute=recompute)
    assert loss == again
    assert all(map(torch.equal, kept, recomputed))


@pytest.mark.parametrize("recompute", [Recompute(), RECOMPUTED["layers"]], ids=["kept", "recomputed"])
def test_an_indexer_chooses_once_for_each_micro_batch(gradients, monkeypatch, recompute):
    calls = []
    choose = attention.SparseLatentAttention._select

    def count(self, *args):
        calls.append(self.source)
        return choose(self, *args)

    monkeypatch.setattr(attention.SparseLatentAttention, "_select", count)
    gradients(recompute=recompute)
    # Four micro-batches; layer 4 is that of multi-token prediction.
    assert sorted(calls) == [0] * 4 + [2] * 4 + [3] * 4 + [4] * 4


@pytest.mark.parametrize("recompute", [Recompute(), RECOMPUTED["layers"]], ids=["kept", "recomputed"])
def test_what_was_chosen_is_forgotten_with_its_micro_batch(trainer, samples, monkeypatch, recompute):
    chosen, alive = [], []
    choose = attention.SparseLatentAttention._select

    def watch(self, *args):
        alive.append(sum(each() is not None for each in chosen))
        index = choose(self, *args)
        chosen.append(weakref.ref(index))
        return index

    monkeypatch.setattr(attention.SparseLatentAttention, "_select", watch)
    made = trainer(recompute=recompute)
    made.log_probs(samples)
    made.backward(samples, SftObjective())
    # Four layers choose. Megatron lets go of a micro-batch when the next one has run.
    assert max(alive) < 2 * 4
    assert not any(each() is not None for each in chosen)


def test_indexers_keep_their_weights_and_take_no_memory_for_learning(trainer, samples):
    made = trainer()
    before = {name: weight.clone() for name, weight in dict(made.exporter).items()}
    made.train_step(samples, SftObjective())
    after = dict(made.exporter)
    frozen = {name for name in before if ".indexer." in name}
    assert len(frozen) == 4 * 5
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    biases = {name for name in before if name.endswith("e_score_correction_bias")}
    assert not any(torch.equal(before[name], after[name]) for name in before.keys() - frozen - biases)
    indexers = [p for name, p in made.stages[0].named_parameters() if ".indexer." in name]
    assert not any(hasattr(parameter, "main_grad") for parameter in indexers)


LEARNING = {"indexer": {"train": "kl", "coefficient": 0.5}}


@pytest.fixture
def named_gradients(trainer, samples):
    """Gives gradients by Megatron's names; `options` are those of the model, keywords those of Trainer."""

    def run(options, samples=samples, **keywords):
        made = trainer(options=options, **keywords)
        made.backward(samples, SftObjective())
        return {name: p.main_grad.clone() for name, p in made.stages[0].named_parameters() if p.requires_grad}

    return run


def test_indexers_that_learn_change_no_other_gradient(named_gradients):
    frozen, learning = named_gradients({}), named_gradients(LEARNING)
    assert all(torch.equal(learning[name], gradient) for name, gradient in frozen.items())
    indexers = learning.keys() - frozen.keys()
    assert len(indexers) == 4 * 5
    assert all(".indexer." in name and learning[name].any() for name in indexers)


@pytest.mark.parametrize("recompute", RECOMPUTED.values(), ids=RECOMPUTED)
def test_indexers_learn_the_same_from_what_was_computed_again(named_gradients, recompute):
    kept, recomputed = named_gradients(LEARNING), named_gradients(LEARNING, recompute=recompute)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_indexers_learn_the_mean_divergence_from_attention_as_transformers_has_it(
    named_gradients, checkpoint, samples
):
    ours, theirs = (
        named_gradients(LEARNING, samples[:1]),
        gradients_of_divergence(checkpoint, samples[0].tokens),
    )
    bridge = dsa_bridge(dsa_spec(read_hf_config(checkpoint)))
    assert len(theirs) == 3 * 5
    for name, gradient in theirs.items():
        found = ours[bridge.by_hf[name].megatron]
        expected = LEARNING["indexer"]["coefficient"] * gradient
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def gradients_of_divergence(checkpoint, tokens):
    """Of the sum over layers of the mean over tokens, from dense attention of all heads; by hub names."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    dsa_spec(read_hf_config(checkpoint)).mend_transformers(model)
    given = {}

    def keep(indexer, args, _):
        given[indexer.layer_idx] = indexer, *(x.detach() for x in args[:2]), args[2]

    for layer in model.model.layers:
        if layer.self_attn.indexer is not None:
            layer.self_attn.indexer.register_forward_hook(keep)
    attentions = model(torch.tensor([tokens]), use_cache=False, output_attentions=True).attentions
    loss = sum(mean_divergence(*each, attentions[layer][0].detach()) for layer, each in given.items())
    names, weights = zip(*((n, p) for n, p in model.named_parameters() if ".indexer." in n), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def mean_divergence(indexer, hidden, latent, angles, attention_htT):
    query = indexer.wq_b(latent)[0].unflatten(-1, (indexer.n_heads, indexer.head_dim))
    key = indexer.k_norm(indexer.wk(hidden))[0, :, None]
    width = angles[0].shape[-1]
    turned = apply_rotary_pos_emb_interleave(query[None, ..., :width], key[None, ..., :width], *angles, None, 2)
    query, key = (torch.cat([t[0], x[..., width:]], -1) for t, x in zip(turned, (query, key), strict=True))
    weight = indexer.weights_proj(hidden)[0] * (indexer.n_heads * indexer.head_dim) ** -0.5
    score = torch.einsum("ti,tiT->tT", weight, (query @ key[:, 0].T).relu())
    target = attention_htT.sum(0) / attention_htT.sum((0, 2))[:, None]
    log_q = score.masked_fill(target == 0, -torch.inf).log_softmax(-1).masked_fill(target == 0, 0.0)
    return (torch.special.xlogy(target, target) - target * log_q).sum(-1).mean()


def test_indexers_that_learn_come_nearer_to_attention(trainer, samples):
    made = trainer(options=LEARNING)
    distances = [made.train_step(samples, SftObjective())["dsa/indexer_kl"] for _ in range(3)]
    assert distances[-1] < 0.7 * distances[0]


def test_bfloat16_trains_with_a_loss_like_that_of_float32(gradients):
    loss, _ = gradients("bfloat16")
    assert loss == pytest.approx(gradients()[0], rel=2e-3)
