"""A small network with our norms and one with torch's, and all that a step through either leaves.

for model in networks("by convert"):
    results.append(outcome(model))
same(*results)
"""

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, twins

F64, BF16 = torch.float64, torch.bfloat16
BOUND = 64 * UNIT[F64] * 1000  # last digits of sums of some 100 terms, differentiated
HALF = 8 * 2.0**-9  # both sides round each of a few steps to bfloat16's 8 bits
MADE = pytest.mark.parametrize("made", ["directly", "by convert"])


def network(norm=nn, dtype=F64):
    """Two layers of the module `norm` among convolutions; weights and statistics are not the initial ones.

    The convolutions have no bias: the norms would take it out again, and its gradient be nothing but roundings.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        norm.BatchNorm2d(5),
        nn.Sequential(nn.ReLU(), nn.Conv2d(5, 4, 1, bias=False), norm.BatchNorm2d(4)),
    ).to(dtype)
    for layer in (model[1], model[2][2]):
        _, source = twins(normal(2, layer.num_features, 1, 1, dtype=dtype))
        layer.load_state_dict(source.state_dict())
    return model


def networks(made):
    """Ours, made directly or by convert, and torch's."""
    ours = network(nw) if made == "directly" else nw.convert(network())
    ours_alone(ours)
    return ours, network()


def ours_alone(model):
    """Both norms of a network are ours."""
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kinds == [nw.BatchNorm2d] * 2


def outcome(model, *inputs, dtype=F64):
    """What a forward pass of each input and one backward pass through all of them leave: y, gradients, state."""
    inputs = inputs or (normal(4, 3, 6, 6, dtype=dtype),)
    model.zero_grad()
    outputs = [model(x) for x in inputs]
    # different per element: a constant gradient would be taken out by the normalization
    sum((y * normal(*y.shape, dtype=y.dtype, seed=9)).sum() for y in outputs).backward()
    found = {f"y{k}": y for k, y in enumerate(outputs)}
    found |= {f"d{name}": whole(p.grad) for name, p in model.named_parameters()}
    found |= {name: whole(t) for name, t in model.state_dict().items()}
    return {name.replace("module.", ""): t.detach().clone() for name, t in found.items()}


def whole(t):
    """All of a tensor that may be spread over processes."""
    return t.full_tensor() if isinstance(t, DTensor) else t


def same(got: dict[str, Tensor], want: dict[str, Tensor], bound: float = BOUND) -> None:
    """Two outcomes agree: names, types, shapes; values within `bound` in proportion to the largest of each."""
    assert got.keys() == want.keys()
    for name, t in want.items():
        assert got[name].dtype == t.dtype, name
        largest = max(1, t.double().abs().max().item())
        agree(name, got[name].double(), t.double(), 0 if name.endswith("tracked") else bound * largest)


class Torchs(nn.Module):
    """torch's layer with the numbers of ours, and its channels where ours has them."""

    def __init__(self, ours):
        super().__init__()
        kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[int(type(ours).__name__[-2])]
        options = (ours.num_features, ours.eps, ours.momentum, ours.affine, ours.track_running_stats)
        self.module, self.axis = kind(*options, bias=ours.bias is not None), ours.channel_dim
        self.module.to(next(iter(ours.state_dict().values())).dtype).load_state_dict(ours.state_dict())

    def forward(self, x):
        return self.module(x.movedim(self.axis, 1)).movedim(1, self.axis)
