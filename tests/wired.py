"""Batch norms wired by a function, for tests of what is measured behind what."""

import torch
from torch import nn

from beside_torch import agree, normal

F64 = torch.float64
DATA = [normal(7, 3, dtype=F64, seed=k, mean=float(k)) for k in range(3)]
# Sums of some 20 terms of size 10 in float64, and the few layers behind them.
BOUND = 1e-12


class Net(nn.Module):
    """Batch norms by name, wired by a function."""

    def __init__(self, names, wire):
        super().__init__()
        torch.manual_seed(1)
        for name in names:
            self.add_module(name, nn.BatchNorm1d(3))
            self.add_module(f"to_{name}", nn.Linear(3, 3))
        self.wire = wire
        self.double()

    def forward(self, x):
        return self.wire(self, x)

    def block(self, name, x):
        return self.get_submodule(name)(self.get_submodule(f"to_{name}")(x)).relu()


def meets(net, name, data):
    """A layer's statistics are those of what it meets in evaluation."""
    seen = []
    handle = net.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.eval()
    with torch.no_grad():
        for x in data:
            net(x)
    handle.remove()
    whole, layer = torch.cat(seen), net.get_submodule(name)
    for key, want in (("running_mean", whole.mean(0)), ("running_var", whole.var(0))):
        agree(f"{name}.{key}", getattr(layer, key), want, BOUND * max(1, want.abs().max().item()))
