import pytest
import torch

from rlcore.config.schema import Recompute


@pytest.fixture
def batch(megatron):
    from rlcore.models.attention import PackedSequences

    lengths = [5, 12, 3]
    return torch.randint(37, (1, 20), generator=torch.Generator().manual_seed(0)), PackedSequences.of(lengths)


def test_hidden_states_times_output_weight_are_megatrons_logits(build, batch):
    from megatron.core.models.gpt import GPTModel

    from rlcore.models.forward import forward_hidden, output_weight

    model = build()
    tokens, sequences = batch
    hidden = forward_hidden(model, tokens, sequences)
    model._postprocess = GPTModel._postprocess.__get__(model)
    logits = model(tokens, sequences.position_ids, None, packed_seq_params=sequences)
    assert hidden.shape == (20, 1, 32)
    torch.testing.assert_close(hidden[:, 0] @ output_weight(model).T, logits[0])


def test_padded_rows_are_no_part_of_the_output_weight(build):
    from rlcore.models.forward import output_weight, vocabulary_start

    model = build()
    model.true_vocab_size = 35
    assert output_weight(model).shape == (35, 32)
    assert vocabulary_start(model) == 0


def test_tied_embeddings_are_the_output_weight(build):
    from rlcore.models.forward import output_weight

    model = build(tied_embeddings=True)
    assert output_weight(model).data_ptr() == model.embedding.word_embeddings.weight.data_ptr()


def test_wrappers_are_looked_through(build):
    from rlcore.models.forward import unwrap

    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = build()
    assert unwrap(Wrapper(Wrapper(model))) is model


@pytest.mark.parametrize(
    "recompute",
    [
        Recompute(granularity="full"),
        Recompute(granularity="selective", modules=["core_attn"]),
        Recompute(granularity="selective", modules=["mlp"]),
    ],
    ids=lambda recompute: "-".join([recompute.granularity, *recompute.modules]),
)
def test_recomputation_changes_no_gradient(build, batch, recompute):
    from rlcore.models.forward import forward_hidden

    def gradients(model):
        forward_hidden(model.train(), *batch).square().sum().backward()
        return {name: parameter.grad for name, parameter in model.decoder.named_parameters()}

    plain, recomputed = gradients(build()), gradients(build(recompute=recompute))
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)
