"""What gamma and beta did to a trained network, and what BN did to its features."""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

import normwright.torch as nw
from normwright.lab.data import Split
from normwright.lab.networks import parts
from normwright.lab.train import CHUNK, accuracy, chunks
from normwright.report.records import Record, Scalar

# A sigmoid's input up to here is in its linear part: it leaves its tangent by at most 4 % of the range covered.
CURVED = 1.0
QUANTILES = (0.1, 0.5, 0.9)  # of gamma and beta over the channels of a layer
TRACED = (
    3  # channels whose gamma and beta are kept by themselves: the first, fixed before anything was looked at
)
# The linear map: a weak penalty, and enough iterations; seven times as many gain 2 points on 26 percent.
LINEAR_PENALTY, LINEAR_ITERATIONS = 1e4, 300


class Trace:
    """Gamma and beta of the last normalization of a network, as it learns."""

    def __init__(self, model: nn.Sequential) -> None:
        self.layer = parts(model, "norm")[-1]
        self.records: list[Record] = []
        self.note(0)

    def note(self, step: int) -> None:
        """Keep what they are after a step: quantiles over the channels, and a few channels."""
        for what, values in affine_of(self.layer).items():
            for quantile, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True):
                self._keep(what, float(value), {"step": step, "quantile": quantile})
            for channel in range(TRACED):
                self._keep(what, float(values[channel]), {"step": step, "channel": channel})

    def _keep(self, what: str, value: float, where: Mapping[str, Scalar]) -> None:
        self.records.append(Record(what, finite(value), "value", where, 28))


def affine_of(layer: Any) -> dict[str, np.ndarray]:
    """Gamma and beta of each channel, ``(channels,)``."""
    values = {"gamma": layer.weight, "beta": layer.bias}
    return {what: value.detach().double().numpy().copy() for what, value in values.items()}


def finite(value: float) -> float | None:
    """The value, or None where training has left the finite numbers."""
    return value if math.isfinite(value) else None


def outcome_of(model: nn.Sequential, seen: Split, test: Split | None) -> Iterator[Record]:
    """How well a trained network knows what it learned, and what it did not see."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(chunk) for chunk in chunks(seen.images, CHUNK)])
    loss = float(nn.functional.cross_entropy(logits, seen.labels))
    yield Record("train loss", finite(loss), "nats", {}, 21)
    yield Record("train accuracy", accuracy(model, seen), "fraction", {}, 21)
    if test is not None:
        yield Record("test accuracy", accuracy(model, test), "fraction", {}, 21)


def straightness(model: nn.Sequential, images: torch.Tensor) -> Iterator[Record]:
    """How much of each layer's sigmoid is a straight line where it is used, on average over the units."""
    x = images
    model.eval()
    with torch.inference_mode():
        for name, layer in zip(dict(model.named_children()), model, strict=True):
            y = layer(x)
            if isinstance(layer, nn.Sigmoid):
                where: dict[str, Scalar] = {"layer": int(name.removeprefix("act"))}
                inside = float((x.abs() < CURVED).double().mean())
                yield Record("inputs in the linear part", inside, "fraction", where, 21)
                yield Record("fit of a straight line", line_fit(x, y), "fraction", where, 21)
            x = y


def line_fit(x: torch.Tensor, y: torch.Tensor) -> float | None:
    """R^2 of the best straight line from ``x`` to ``y``, both ``(N, units)``; the mean over units that vary."""
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    product, squares = (x * y).mean(0) ** 2, (x * x).mean(0) * (y * y).mean(0)
    alive = squares > 0
    return float((product[alive] / squares[alive]).mean()) if alive.any() else None


def spread_of(model: nn.Sequential) -> Iterator[Record]:
    """How gamma and beta differ across the channels of each layer at the end.

    Their own share: of the sum of squares of how far they moved (from 1, from 0), what is left when every
    channel's move is replaced by the mean move, which is all that one pair for the layer could do.
    """
    for number, layer in enumerate(parts(model, "norm"), start=1):
        for what, values in affine_of(layer).items():
            moved = values - (1.0 if what == "gamma" else 0.0)
            squares = float((moved**2).mean())
            where: dict[str, Scalar] = {"layer": number, "of": what}
            yield Record("mean over channels", finite(float(values.mean())), "value", where, 28)
            yield Record("deviation across channels", finite(float(values.std())), "value", where, 28)
            own = finite(float(moved.var()) / squares) if squares > 0 else None
            yield Record("share of the channels' own", own, "fraction", where, 28)


def bias_left(model: nn.Sequential, batch: Split) -> float | None:
    """What is left of the gradient of the first map's bias when its summands have cancelled.

    The gradient is the sum over the batch of the gradients to the map's outputs: the sizes of the sums, over the
    sizes of their summands. The network is left as it was.
    """
    kept: list[torch.Tensor] = []
    first = parts(model, "map")[0]
    hook = first.register_forward_hook(lambda _, inputs, output: kept.append(output))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
    (summands,) = torch.autograd.grad(loss, kept)
    hook.remove()
    model.load_state_dict(state)  # a forward pass in training moves the running statistics
    whole = float(summands.abs().sum().double())
    return finite(float(summands.sum(0).abs().sum()) / whole) if whole > 0 else None


def moved_by_bias(model: nn.Sequential, images: torch.Tensor, seed: int) -> float | None:
    """How far the logits of a batch move, at most, when the bias before BN is drawn anew from N(0, 1)."""
    first: Any = parts(model, "map")[0]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    with torch.no_grad():
        before = model(images)
        first.bias.copy_(torch.randn(first.bias.shape, generator=torch.Generator().manual_seed(seed)))
        after = model(images)
    model.load_state_dict(state)
    return finite(float((after - before).abs().max() / before.abs().max()))


def recovered(model: nn.Sequential, images: torch.Tensor) -> Iterator[Record]:
    """The first normalization of a batch undone: x from y, the worst error in deviations of its channel."""
    layer: Any = parts(model, "norm")[0]
    known = affine_of(layer)
    model.eval()
    with torch.no_grad():
        x = model[:2](images)  # flat and map1
        y = nw.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
    every = x.double().numpy()
    mean, variance = every.mean(axis=0), every.var(axis=0)
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # a gamma of 0 forgets its channel, and is told as None
        again = (y.double().numpy() - known["beta"]) / known["gamma"] * np.sqrt(variance + layer.eps) + mean
    error = float(np.max(np.abs(again - every) / np.sqrt(variance)))
    yield Record("input recovered to", finite(error), "deviations", {}, 28)
    yield Record("smallest gamma", finite(float(np.abs(known["gamma"]).min())), "value", {}, 28)


def probes(model: nn.Sequential, seen: Split, test: Split) -> Iterator[Record]:
    """What a linear classifier reads from the hidden layer: before BN, after it, after the activation."""
    model.eval()
    for name, place in (("map1", "before BN"), ("norm1", "after BN"), ("act1", "after the activation")):
        upto = model[: list(dict(model.named_children())).index(name) + 1]
        with torch.inference_mode():
            learned, judged = (upto(split.images).numpy() for split in (seen, test))
        probe = LogisticRegression(max_iter=1000).fit(learned, seen.labels.numpy())
        right = float(probe.score(judged, test.labels.numpy()))
        yield Record("accuracy of a probe", right, "fraction", {"place": place}, 28)


def linear_map(split: Split) -> float:
    """How many of the labels the best linear map of the images learns by heart, or nearly the best."""
    pixels = split.images.flatten(1).numpy()
    with warnings.catch_warnings():  # it says that it could go on; see LINEAR_ITERATIONS
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=LINEAR_PENALTY, max_iter=LINEAR_ITERATIONS)
        model.fit(pixels, split.labels.numpy())
    return float(model.score(pixels, split.labels.numpy()))
