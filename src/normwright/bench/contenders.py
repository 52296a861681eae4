"""Who is timed: the layers as users have them, and the floor that memory sets. Needs torch and native kernels."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import normwright.torch as nw
from normwright import _native
from normwright.bench.cases import Case
from normwright.bench.timer import Contender, WrongValues
from normwright.bench.truth import PROMISED, Array, Results, Tolerance, Truth, summed_in_float32

FORWARD, BOTH = "forward", "forward+backward"
PASSES = (FORWARD, BOTH)
LAYERS: dict[str, dict[int, type[nn.modules.batchnorm._BatchNorm]]] = {
    "torch": {2: nn.BatchNorm1d, 4: nn.BatchNorm2d},
    "normwright": {2: nw.BatchNorm1d, 4: nw.BatchNorm2d},
}
STORES = ("ordinary", "streaming")


class Problem(NamedTuple):
    """The tensors of a case: what a layer meets in training, in values and in memory."""

    x: Tensor
    dy: Tensor
    gamma: Tensor
    beta: Tensor
    truth: Truth


def problem(case: Case) -> Problem:
    """Normal values, an offset and a scale of its own for each channel; the same in every run."""
    draw = torch.Generator().manual_seed(0)
    channels = case.shape[1]
    per_channel = [1, channels] + [1] * (len(case.shape) - 2)
    scale, offset = (
        torch.rand(per_channel, generator=draw) + 0.5,
        torch.rand(per_channel, generator=draw) - 0.5,
    )
    x = torch.randn(case.shape, generator=draw).mul_(scale).add_(offset)
    dy = torch.randn(case.shape, generator=draw)
    if case.layout == "channels-last":
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    gamma, beta = torch.rand(channels, generator=draw) + 0.5, torch.randn(channels, generator=draw)
    truth = Truth(_rows(x), _rows(dy), gamma.numpy(), beta.numpy(), eps=1e-5)
    return Problem(x.requires_grad_(), dy, gamma, beta, truth)


def _rows(t: Tensor) -> Array:
    """(N, C, ...) as (C, m)."""
    return t.detach().movedim(1, 0).reshape(t.shape[1], -1).numpy()


def layers(case: Case, given: Problem) -> list[Contender]:
    """Each library's layer in training, forward alone and with its backward."""
    found = []
    for library, by_rank in LAYERS.items():
        layer = by_rank[len(case.shape)](case.shape[1])
        with torch.no_grad():
            for parameter, value in ((layer.weight, given.gamma), (layer.bias, given.beta)):
                parameter.copy_(value)
        count = case.values // case.shape[1]
        allowed = PROMISED if library == "normwright" else summed_in_float32(count)
        found += [
            _layer(f"{library} {what}", layer, given, allowed, backward=what == BOTH) for what in PASSES
        ]
    return found


def _layer(
    name: str, layer: nn.modules.batchnorm._BatchNorm, given: Problem, allowed: Tolerance, *, backward: bool
) -> Contender:
    x, dy = given.x, given.dy

    def forward() -> Tensor:
        return layer(x)  # type: ignore[no-any-return]

    def both() -> Tensor:
        y = layer(x)
        y.backward(dy)
        return y  # type: ignore[no-any-return]

    def reset() -> None:
        x.grad = layer.weight.grad = layer.bias.grad = None

    run = both if backward else forward

    def check() -> None:
        layer.reset_running_stats()
        y = run()
        of_x, *of_parameters = (t.grad for t in (x, layer.weight, layer.bias))
        gradients = [
            None if of_x is None else _rows(of_x),
            *(None if g is None else g.numpy() for g in of_parameters),
        ]
        assert layer.running_mean is not None  # a layer that tracks
        assert layer.running_var is not None
        running = layer.running_mean.numpy(), layer.running_var.numpy()
        if y.stride() != x.stride():
            raise WrongValues(f"{name}: y lies in memory otherwise than x; it was not timed.")
        given.truth.check(name, Results(_rows(y), *running, *gradients), allowed)

    return Contender(name, run, check, reset)


def floor(given: Problem) -> list[Contender]:
    """What memory allows: copy (read one, write one) and triad (read two, write one), by two kinds of stores.

    On the very tensors of the case and one more of their size, all there beforehand.
    """
    x, dy = given.x.detach(), given.dy
    out = torch.zeros_like(x)

    def sweep(second: Tensor | None, streaming: bool) -> Callable[[], None]:
        a, b, c = x.data_ptr(), 0 if second is None else second.data_ptr(), out.data_ptr()
        n = x.numel()
        return lambda: _native.memory_floor(a, b, c, n, streaming)

    def contender(name: str, second: Tensor | None, streaming: bool) -> Contender:
        run = sweep(second, streaming)

        def check() -> None:
            out.fill_(float("nan"))
            run()
            want = x if second is None else x + second
            if not np.array_equal(out.numpy(), want.numpy()):
                raise WrongValues(f"{name}: not the sum of what was read; it was not timed.")

        return Contender(name, run, check)

    return [
        contender(f"{what} {stores}", second, stores == "streaming")
        for what, second in (("copy", None), ("triad", dy))
        for stores in STORES
    ]
