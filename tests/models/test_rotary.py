"""Against Megatron's own function for one sequence, which nothing replaces."""

import pytest
import torch
from torch.testing import assert_close

LENGTHS = [5, 1, 12]
HEADS, WIDTH, ROTATED = 3, 16, 8


def angles(interleaved):
    once_pr = torch.outer(torch.arange(12.0), torch.tensor([1.0, 0.4, 0.1, 0.02]))
    twice_pr = once_pr.repeat_interleave(2, dim=-1) if interleaved else torch.cat([once_pr, once_pr], dim=-1)
    return twice_pr[:, None, None]


def problem(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(LENGTHS), HEADS, WIDTH, generator=generator).to(dtype).requires_grad_()


def rotated(x_thd, interleaved, latent=False, mscale=1.0):
    from rlcore.models.attention import PackedSequences
    from rlcore.models.rotary import rotate_packed

    cu_seqlens = PackedSequences.of(LENGTHS).cu_seqlens_q
    return rotate_packed(x_thd, cu_seqlens, angles(interleaved), interleaved, latent, mscale)


def rotated_by_megatron(x_thd, interleaved, latent=False, mscale=1.0):
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    parts = [
        _apply_rotary_pos_emb_bshd(x[:, None], angles(interleaved)[: len(x)], interleaved, latent, mscale)
        for x in x_thd.split(LENGTHS)
    ]
    return torch.cat(parts)[:, 0]


@pytest.mark.parametrize(
    ("interleaved", "latent", "mscale"),
    [(True, False, 1.0), (False, False, 1.0), (False, True, 1.0), (False, True, 1.3)],
    ids=["pairs", "halves", "latent", "latent-scaled"],
)
def test_tokens_and_gradients_are_rotated_as_megatron_does_it(megatron, interleaved, latent, mscale):
    x_thd = problem()
    ours = rotated(x_thd, interleaved, latent, mscale)
    theirs = rotated_by_megatron(x_thd, interleaved, latent, mscale)
    assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert_close(*(torch.autograd.grad(y.square().sum(), x_thd)[0] for y in (ours, theirs)))


@pytest.mark.parametrize("interleaved", [True, False])
def test_widths_that_are_not_rotated_stay_as_they_are(megatron, interleaved):
    x_thd = problem()
    assert torch.equal(rotated(x_thd, interleaved)[..., ROTATED:], x_thd[..., ROTATED:])


@pytest.mark.parametrize("interleaved", [True, False])
def test_bfloat16_is_rotated_in_float32(megatron, interleaved):
    x_thd = problem(torch.bfloat16)
    assert torch.equal(rotated(x_thd, interleaved), rotated(x_thd.float(), interleaved).bfloat16())
