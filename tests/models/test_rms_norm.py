import pytest
import torch

from rlcore.models.rms_norm import rms_norm


def problem(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(shape[-1], generator=generator).to(dtype).requires_grad_()
    return x, weight, torch.randn(*shape, generator=generator).to(dtype)


@pytest.mark.parametrize("shape", [(7, 24), (300, 1, 24), (5, 3, 8)])
def test_output_and_gradients_are_those_of_torch(shape):
    x, weight, grad = problem(*shape)
    ours, theirs = rms_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), grad),
        torch.autograd.grad(theirs, (x, weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_gradients_agree_with_finite_differences():
    x, weight, _ = problem(3, 2, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-5), (x, weight))


def test_weight_gradients_of_many_tokens_keep_their_digits():
    x, weight, grad = problem(20000, 16)
    (found,) = torch.autograd.grad(rms_norm(x, weight, 1e-5), weight, grad)
    wide = [value.detach().double() for value in (x, weight, grad)]
    wide[1].requires_grad_()
    (exact,) = torch.autograd.grad(rms_norm(*wide[:2], 1e-5), wide[1], wide[2])
    assert (found - exact).abs().max() < 5e-7 * exact.abs().max()


def test_bfloat16_is_computed_in_float32():
    x, weight, grad = problem(50, 32, dtype=torch.bfloat16)
    ours = rms_norm(x, weight, 1e-5)
    exact = rms_norm(x.float(), weight.float(), 1e-5)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.bfloat16())
    assert torch.autograd.grad(ours, x, grad)[0].dtype == torch.bfloat16
