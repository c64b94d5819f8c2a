import pytest
import torch
from torch.testing import assert_close

from rlcore.models.linear import linear


def problem(dtype, bias, *shape):
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(*shape, 24), torch.randn(16, 24), torch.randn(16) if bias else None]
    for factor in factors:
        if factor is not None:
            factor.normal_(generator=generator)
    return [factor if factor is None else factor.to(dtype).requires_grad_() for factor in factors]


def output_and_gradients(multiply, factors):
    out = multiply(*factors)
    leaves = [factor for factor in factors if factor is not None]
    return out, *torch.autograd.grad(out.square().sum(), leaves)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("shape", [(300, 1), (7,), (0, 1)], ids=str)
def test_output_and_gradients_are_exact_to_rounding(shape, bias):
    factors = problem(torch.float32, bias, *shape)
    exact = [f if f is None else f.detach().double().requires_grad_() for f in factors]
    found = output_and_gradients(linear, factors)
    for ours, theirs in zip(found, output_and_gradients(torch.nn.functional.linear, exact), strict=True):
        largest = theirs.abs().max().item() if theirs.numel() else 0.0
        assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6 * largest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_multiplied_by_torch(dtype):
    factors = problem(dtype, True, 5)
    assert torch.equal(linear(*factors), torch.nn.functional.linear(*factors))


def test_frozen_weights_get_no_gradient():
    x, weight, _ = problem(torch.float32, False, 5)
    weight.requires_grad_(False)
    linear(x, weight).sum().backward()
    assert_close(x.grad, weight.sum(0).expand(5, 24))
    assert weight.grad is None
