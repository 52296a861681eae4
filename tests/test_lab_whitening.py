"""Whitening: what comes out is white, the gradients are exact, and evaluation stands on running statistics."""

import pytest
import torch

from normwright.lab.whitening import ZCA, inverse_root


def _batch(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Correlated channels: every channel leans on the first."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=dtype)
    return x + 0.7 * x[:, :1] + 3


def _vectors(y: torch.Tensor) -> torch.Tensor:
    return y.movedim(1, -1).reshape(-1, y.shape[1])


@pytest.mark.parametrize("shape", [(40, 5), (8, 5, 3, 4)])
def test_a_batch_comes_out_white_but_for_eps(shape):
    layer = ZCA(5).double()
    y = layer(_batch(*shape))
    assert y.shape == shape
    vectors = _vectors(y)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(5, dtype=y.dtype), rtol=0, atol=1e-12)
    # Exactly Cov (Cov + eps I)^-1 comes out, which is I - eps (Cov + eps I)^-1.
    cov = torch.cov(_vectors(_batch(*shape)).T, correction=0)
    eye = torch.eye(5, dtype=y.dtype)
    expected = eye - layer.eps * torch.linalg.inv(cov + layer.eps * eye)
    torch.testing.assert_close(torch.cov(vectors.T, correction=0), expected, rtol=0, atol=1e-12)


def test_gamma_scales_and_beta_shifts_each_channel():
    layer, x = ZCA(3).double(), _batch(30, 3)
    plain = layer(x)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 1.0, -0.5]))
        layer.bias.copy_(torch.tensor([0.0, 7.0, 1.0]))
    torch.testing.assert_close(layer(x), plain * layer.weight + layer.bias, rtol=0, atol=1e-12)


def test_the_root_changes_uncorrelated_channels_by_their_deviation_alone():
    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [1.0, -2.0], [-1.0, -2.0]], dtype=torch.float64)
    deviation = torch.sqrt(torch.tensor([1.0, 4.0], dtype=torch.float64) + 1e-5)
    torch.testing.assert_close(ZCA(2).double()(x), x / deviation, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([1.0, 2.0, 3.0, 4.0], id="different eigenvalues"),
        pytest.param([2.0, 2.0, 2.0, 2.0], id="one eigenvalue, four times"),
        pytest.param([1.0, 1.0 + 1e-12, 3.0, 3.0], id="eigenvalues that nearly meet"),
    ],
)
def test_the_gradient_of_the_root_is_exact_also_where_eigenvalues_meet(values):
    basis, _ = torch.linalg.qr(_batch(4, 4))
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    matrix.requires_grad_()
    # Only symmetric matrices have such a root: the check moves a matrix and its transpose together.
    assert torch.autograd.gradcheck(lambda a: inverse_root((a + a.T) / 2), matrix)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 2, 2)])
def test_gradients_flow_through_mean_and_covariance(shape):
    layer = ZCA(3).double()
    x = _batch(*shape).requires_grad_()
    parameters = (x, layer.weight, layer.bias)

    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return torch.as_tensor(y)

    assert torch.autograd.gradcheck(forward, parameters)


def test_a_shift_of_the_input_has_no_gradient():
    x = _batch(20, 4).requires_grad_()
    (grad,) = torch.autograd.grad((ZCA(4).double()(x) ** 3).sum(), x)
    assert float(grad.abs().max()) > 0.01
    # Every column sums to nothing, since moving all vectors alike moves the mean with them.
    torch.testing.assert_close(grad.sum(0), torch.zeros(4, dtype=x.dtype), rtol=0, atol=1e-10)


def test_a_batch_of_equal_vectors_has_finite_gradients():
    x = torch.ones(8, 4, requires_grad=True)
    y = ZCA(4)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, torch.zeros(8, 4))  # the mean of ones is exactly one
    assert bool(grad.isfinite().all())


def test_evaluation_uses_the_running_moments_and_changes_none():
    layer, x = ZCA(3, momentum=1.0).double(), _batch(50, 3)
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.running_cov, torch.cov(x.T), rtol=0, atol=1e-12)  # unbiased
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.eval()
    together, alone = layer(x), layer(x[:1])
    torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-12)
    root = torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T) + layer.eps * torch.eye(3, dtype=x.dtype)))
    white = (x - x.mean(0)) @ root.T  # another root of the same matrix: equal lengths, another rotation
    torch.testing.assert_close(together.norm(dim=1), white.norm(dim=1), rtol=1e-10, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_momentum_is_the_share_of_the_new_batch():
    layer, x = ZCA(2, momentum=0.25).double(), _batch(10, 2)
    layer(x)
    torch.testing.assert_close(layer.running_mean, 0.25 * x.mean(0), rtol=0, atol=1e-12)
    expected = 0.75 * torch.eye(2, dtype=x.dtype) + 0.25 * torch.cov(x.T)
    torch.testing.assert_close(layer.running_cov, expected, rtol=0, atol=1e-12)


def test_an_eigenvalue_that_rounding_made_negative_has_a_root():
    matrix = torch.diag(torch.tensor([1000.0, 1.0, -1e-5])).requires_grad_()
    root = inverse_root(matrix)
    (grad,) = torch.autograd.grad(root.sum(), matrix)
    assert float(root[1, 1].detach()) == pytest.approx(1.0, rel=1e-6)
    assert bool(root.isfinite().all())
    assert bool(grad.isfinite().all())


def test_what_is_not_finite_comes_out_as_nan_and_raises_nothing():
    x = torch.full((4, 3), torch.inf, requires_grad=True)
    y = ZCA(3)(x)
    assert bool(y.isnan().all())
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert bool(grad.isnan().all())


def test_one_vector_cannot_be_whitened_by():
    with pytest.raises(ValueError, match="at least 2 vectors to whiten by, got 1"):
        ZCA(3)(torch.ones(1, 3))
