"""Layers with statistics, the arrays of other frameworks' layers, and that nothing of a model has changed."""

import numpy as np
import torch
from torch import nn

import close
import normwright.torch as nw
from normwright.core.conventions import CONVENTIONS

LAYERS = [nn.BatchNorm1d, nw.BatchNorm1d, nn.SyncBatchNorm]
NAMES = list(CONVENTIONS)


def arrays(which="keras", channels=3, seed=0):
    """A trained layer's arrays by a framework's names."""
    rng, names = np.random.default_rng(seed), CONVENTIONS[which].arrays
    values = rng.normal(size=(4, channels)).astype(np.float32)
    values[3] = np.exp(values[3])
    return dict(zip(names, values, strict=True))


def state(model):
    """All that loading may change."""
    held = {name: t.clone() for name, t in model.state_dict().items()}
    settings = [
        (m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    return held, settings


def unchanged(model, before):
    held, settings = state(model)
    assert settings == before[1]
    assert held.keys() == before[0].keys()
    for name, t in held.items():
        assert torch.equal(t, before[0][name]), name


def trained(kind=nn.BatchNorm1d, channels=3, updates=7, seed=0, **options):
    """A layer in float64 after training, with a weight and bias of its own."""
    torch.manual_seed(seed)
    layer = kind(channels, dtype=torch.float64, **options)
    if layer.weight is not None:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    for _ in range(updates):
        x = 3 + 2 * torch.randn(8, channels, dtype=torch.float64)
        nn.functional.batch_norm(
            x, layer.running_mean, layer.running_var, training=True, momentum=layer.momentum or 0.1
        )
        layer.num_batches_tracked += 1
    return layer.eval()


def model():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nw.BatchNorm1d(3), nn.ReLU()))


def trained_in_float32():
    """A layer of ours after four batches, ready for inference."""
    torch.manual_seed(5)
    layer = nw.BatchNorm1d(5, eps=2e-4, momentum=0.2)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    for _ in range(4):
        layer(7 + 3 * torch.randn(24, 5))
    return layer.eval()


def same_inference(y, x, gamma, beta, mean, var, eps):
    """y of (N, C) within float32 rounding of the formula in float64.

    Frameworks multiply the mean out, x * a + (beta - mean * a): each of the terms, |mean| among them, is rounded a
    few times. Ours stays well within the same bound.
    """
    gamma, beta, mean, var = (np.asarray(v, np.float64) for v in (gamma, beta, mean, var))
    a = gamma / np.sqrt(var + eps)
    bound = 8 * 2.0**-24 * (np.abs(a) * (np.abs(x) + np.abs(mean)) + np.abs(beta))
    close.within("y", y, (x.astype(np.float64) - mean) * a + beta, bound)
