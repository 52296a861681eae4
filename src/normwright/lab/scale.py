"""The laws of scale: what batch normalization does to the size of weights, and what eps does to the laws.

Measured on real layers: the first linear map or convolution of a shared network, fed with training images. The
weights are multiplied by a; eps is scaled along with their square, which makes the laws exact, or stays.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

import normwright.torch as nw
from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.networks import BN, CNN, MLP, SIGMOID, Network, build, parts
from normwright.lab.train import Budget
from normwright.report.records import Record, Scalar

EPS = 1e-5  # torch's
SCALED, FIXED = "eps a^2", "eps"
EXACT, TOLD = "sqrt(var + eps)", "sqrt(var)"  # gamma that restores the input: exactly, and as it is told
DTYPES = {"float64": torch.float64, "float32": torch.float32}
GREY = 0.5  # of the constant channel that is added to the pixels
EXTREME = 3.0  # decades: upstream scales and offsets are drawn from 1e-3 to 1e3


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        networks: whose first maps are the layers.
        images: in a batch.
        factors: the a; 1 is among them.
        epsilons: for the output's deviation with a fixed eps.
        draws: of upstream scales and offsets, for each layer and seed.
        budget: of the training upstream.
        rate: its learning rate.
        seeds: each gives other weights.
    """

    networks: tuple[Network, ...]
    images: int
    factors: tuple[float, ...]
    epsilons: tuple[float, ...]
    draws: int
    budget: Budget
    rate: float
    seeds: int


DECADES = tuple(float(f"1e{power}") for power in range(-4, 5))
HALF_DECADES = tuple(sorted((*DECADES, *(3 * decade for decade in DECADES[:-1]))))
UPSTREAM = SIGMOID  # its third normalization has two trained hidden layers and a trained map before it

# Three seeds at full size: the laws hold for any weights, and other weights change the roundings alone.
PLANS: dict[Size, Plan] = {
    "full": Plan((MLP, CNN), 60, HALF_DECADES, (1e-3, EPS, 1e-8), 200, Budget(300, 60, 30), 1.0, seeds=3),
    "demo": Plan((MLP, CNN), 30, DECADES, (1e-3, EPS, 1e-8), 20, Budget(60, 60, 20), 1.0, seeds=3),
    "tiny": Plan((MLP, CNN), 8, (1e-4, 1e-2, 1.0, 1e4), (1e-3, EPS), 3, Budget(4, 60, 2), 1.0, seeds=1),
}


@dataclass(frozen=True)
class Layer:
    """A layer with real images before it.

    Attributes:
        weight: its W.
        images: its input u, a batch.
        map: the function of u and W that gives the normalization's input.
    """

    weight: torch.Tensor
    images: torch.Tensor
    map: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Passed:
    """What went through a layer: input and output of the normalization, gradients to u and to the weights."""

    x: torch.Tensor
    y: torch.Tensor
    to_u: torch.Tensor
    to_weight: torch.Tensor


def layer_of(desk: Desk, network: Network, images: int, seed: int, dtype: torch.dtype) -> Layer:
    """The first map of `network` with its own first weights, and the first images that it is trained on."""
    first = parts(build(network, seed), "map")[0]
    assert isinstance(first, nn.Linear | nn.Conv2d)
    weight = first.weight.detach().to(dtype)
    u = desk.data(network).train.images[:images].to(dtype)
    if isinstance(first, nn.Conv2d):
        return Layer(weight, u, partial(nn.functional.conv2d, padding=1))
    return Layer(weight, u.flatten(1), nn.functional.linear)


def through(layer: Layer, factor: float, eps: float, target: torch.Tensor) -> Passed:
    """BN(aWu), and the gradients of the loss ``sum(target * BN(aWu))`` to u and to aW."""
    weight = (factor * layer.weight).requires_grad_()
    u = layer.images.detach().requires_grad_()
    x = layer.map(u, weight)
    y = nw.batch_norm(x, training=True, eps=eps)
    to_u, to_weight = torch.autograd.grad((y * target).sum(), (u, weight))
    return Passed(x.detach(), y.detach(), to_u, to_weight)


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel ``(C,)``, in float64 and centred before it is squared."""
    channels = x.detach().double().transpose(0, 1).flatten(1)
    mean = channels.mean(1)
    return mean, (channels - mean[:, None]).square().mean(1)


def off(found: torch.Tensor, law: torch.Tensor) -> float:
    """The largest difference from the law, relative to the law's largest value."""
    law = law.double()
    return float((found.double() - law).abs().max() / law.abs().max())


def per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``(C,)`` shaped so that it meets the channels of `like`, in its type."""
    return values.to(like.dtype).reshape(1, -1, *[1] * (like.dim() - 2))


def work(plan: Plan) -> float:
    """All trials, in steps of the MLP."""
    each = len(plan.networks) * len(DTYPES) * (_scaling_work(plan) + _upstream_work(plan) + 1)
    return plan.seeds * (each + plan.budget.steps * UPSTREAM.cost)


def _scaling_work(plan: Plan) -> float:
    return len(plan.factors) * (4.0 + len(plan.epsilons))


def _upstream_work(plan: Plan) -> float:
    return float(plan.draws)


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """Each layer in each type: scaled weights, any weights, constant channels; then weights that learn."""
    for seed in desk.seeds(plan.seeds):
        for network in plan.networks:
            for dtype in DTYPES:
                layer = layer_of(desk, network, plan.images, seed, DTYPES[dtype])
                about: dict[str, Scalar] = {"network": network.name, "dtype": dtype, "seed": seed}
                trials: tuple[tuple[str, float, Callable[[], Iterator[Record]]], ...] = (
                    ("weights times a", _scaling_work(plan), partial(_scaled, plan, layer, seed)),
                    ("weights drawn", _upstream_work(plan), partial(_drawn, plan, layer, seed)),
                    ("constant channels", 1, partial(_constant, layer)),
                )
                for name, cost, trial in trials:
                    records = desk.once(f"{network.name} in {dtype}, {name}, seed {seed}", cost, trial)
                    yield from (replace(r, where={**about, **r.where}) for r in records)
        name = f"{UPSTREAM.name}, weights that learn, seed {seed}"
        yield from desk.once(name, plan.budget.steps * UPSTREAM.cost, partial(_learning, desk, plan, seed))


EXPERIMENT = Experiment(
    "scale",
    "what BN does to the size of weights, and what eps is for",
    (5, 15, 19, 26, 28),
    PLANS,
    work,
    measure,
)


def _scaled(plan: Plan, layer: Layer, seed: int) -> Iterator[Record]:
    """One layer with its weights times each a; what is no law but a curve, in float64 alone."""
    shape = layer.map(layer.images, layer.weight).shape
    # Drawn in float64 and rounded, so that both types have the same loss.
    target = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target = target.to(layer.weight.dtype)
    base = through(layer, 1.0, EPS, target)
    worst = 0.0
    for factor in plan.factors:
        at: dict[str, Scalar] = {"factor": factor}
        scaled = through(layer, factor, EPS * factor**2, target)
        yield Record("output off", off(scaled.y, base.y), "relative", {**at, "eps": SCALED}, 15)
        yield Record("gradient to u off", off(scaled.to_u, base.to_u), "relative", at, 15)
        times_a = off(scaled.to_weight * factor, base.to_weight)
        yield Record("a times the gradient to aW off", times_a, "relative", at, 15)
        fixed = through(layer, factor, EPS, target)
        yield from _restored(fixed.x, at)
        worst = max(worst, *(_formula_off(fixed.x, eps) for eps in plan.epsilons))
        if layer.weight.dtype == torch.float64:
            yield from _with_fixed_eps(fixed, base, at)
            yield from _deviations(plan, fixed.x, at)
    yield Record("output deviation off", worst, "relative", {}, 19)


def _with_fixed_eps(fixed: Passed, base: Passed, at: dict[str, Scalar]) -> Iterator[Record]:
    """How far an eps that stays is from the law, and the gradients' sizes, each relative to a = 1."""
    yield Record("output off", off(fixed.y, base.y), "relative", {**at, "eps": FIXED}, 15)
    to_u = float(fixed.to_u.norm() / base.to_u.norm())
    to_weight = float(fixed.to_weight.norm() / base.to_weight.norm())
    yield Record("gradient to u", to_u, "ratio", at, 26)
    yield Record("gradient to aW", to_weight, "ratio", at, 26)


def _formula_off(x: torch.Tensor, eps: float) -> float:
    """The worst channel's deviation of the output, relative to ``sqrt(var / (var + eps))``, less 1."""
    var = moments(x)[1]
    found = moments(nw.batch_norm(x, training=True, eps=eps))[1]
    return float(((found * (var + eps) / var).sqrt() - 1).abs().max())


def _deviations(plan: Plan, x: torch.Tensor, at: dict[str, Scalar]) -> Iterator[Record]:
    """The output's deviation with each eps: root mean square over channels, beside the formula."""
    var = moments(x)[1]
    for eps in plan.epsilons:
        found = moments(nw.batch_norm(x, training=True, eps=eps))[1]
        law = var / (var + eps)
        where = {**at, "eps": eps}
        yield Record("output deviation", float(found.mean().sqrt()), "deviations", where, 19)
        yield Record("output deviation by the formula", float(law.mean().sqrt()), "deviations", where, 19)


def _restored(x: torch.Tensor, at: dict[str, Scalar]) -> Iterator[Record]:
    """How far the output is from the input with the gamma and beta that should restore it."""
    mean, var = moments(x)
    for told, gamma in ((EXACT, (var + EPS).sqrt()), (TOLD, var.sqrt())):
        y = nw.batch_norm(x, weight=gamma.to(x.dtype), bias=mean.to(x.dtype), training=True, eps=EPS)
        yield Record("identity off", off(y, x), "relative", {**at, "gamma": told}, 5)


def _drawn(plan: Plan, layer: Layer, seed: int) -> Iterator[Record]:
    """Whatever comes before: each channel's scale and offset drawn, the worst over all draws and channels.

    Offsets are in units of the channel's own deviation: a channel may sit a thousand deviations from zero.
    """
    generator = torch.Generator().manual_seed(seed)
    z = layer.map(layer.images, layer.weight)
    deviation = moments(z)[1].sqrt()
    channels = len(deviation)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(channels, generator=generator, dtype=torch.float64)

    def signs() -> torch.Tensor:
        return torch.randint(0, 2, (channels,), generator=generator) * 2.0 - 1.0

    worst_mean, worst_var = 0.0, 0.0
    for _ in range(plan.draws):
        scale = signs() * 10 ** uniform(-EXTREME, EXTREME)
        offset = signs() * 10 ** uniform(-EXTREME, EXTREME) * deviation
        x = (z + per_channel(offset, z)) * per_channel(scale, z)
        gamma, beta = signs() * uniform(0.5, 2.0), uniform(-2.0, 2.0)
        mean_off, var_off = _against_law(x, gamma.to(x.dtype), beta.to(x.dtype))
        worst_mean, worst_var = max(worst_mean, mean_off), max(worst_var, var_off)
    told: dict[str, Scalar] = {"upstream": "drawn", "draws": plan.draws}
    yield Record("mean off beta", worst_mean, "relative", told, 19)
    yield Record("variance off the formula", worst_var, "relative", told, 19)


def _against_law(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> tuple[float, float]:
    """The worst channel's ``|mean(y) - beta| / (|gamma| + |beta|)``, and var(y) relative to its formula less 1."""
    mean, var = moments(nw.batch_norm(x, weight=gamma, bias=beta, training=True, eps=EPS))
    gamma, beta, var_before = gamma.double(), beta.double(), moments(x)[1]
    law = gamma.square() * var_before / (var_before + EPS)
    mean_off = (mean - beta).abs() / (gamma.abs() + beta.abs())
    return float(mean_off.max()), float((var / law - 1).abs().max())


def _learning(desk: Desk, plan: Plan, seed: int) -> Iterator[Record]:
    """The last normalization of a deep network while everything before it learns."""
    model = build(UPSTREAM, seed, BN)
    images = desk.data(UPSTREAM).train.images[: plan.images]
    first: tuple[torch.Tensor, torch.Tensor] | None = None
    records: list[Record] = []

    def look(step: int) -> None:
        nonlocal first
        if step % plan.budget.every:
            return
        # A copy: looking must not move the running statistics of the network that learns.
        *before, norm = list(copy.deepcopy(model).children())[: _last_norm(model) + 1]
        assert isinstance(norm, nw.BatchNorm1d)
        with torch.no_grad():
            x = nn.Sequential(*before)(images)
        mean, var = moments(x)
        first = first or (mean, var.sqrt())
        moved = float(((mean - first[0]) / first[1]).square().mean().sqrt())
        mean_off, var_off = _against_law(x, norm.weight.detach(), norm.bias.detach())
        where: dict[str, Scalar] = {
            "network": UPSTREAM.name,
            "dtype": "float32",
            "seed": seed,
            "upstream": "learning",
            "step": step,
        }
        records.append(Record("input mean moved", moved, "deviations", where, 19))
        records.append(Record("mean off beta", mean_off, "relative", where, 19))
        records.append(Record("variance off the formula", var_off, "relative", where, 19))

    look(0)
    desk.train(UPSTREAM, model, rate=plan.rate, seed=seed, budget=plan.budget, on_step=look)
    yield from records


def _last_norm(model: nn.Sequential) -> int:
    return max(place for place, (name, _) in enumerate(model.named_children()) if name.startswith("norm"))


def _constant(layer: Layer) -> Iterator[Record]:
    """The pixels themselves as channels, some of which are constant, with eps and by the formula without it."""
    pixels = layer.images.flatten(1)
    grey = torch.full((len(pixels), 1), GREY, dtype=pixels.dtype)  # so that there is one in any data
    pixels = torch.cat([pixels, grey], 1)
    target = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    yield Record("constant channels", int((pixels == pixels[0]).all(0).sum()), "channels", {}, 28)
    for eps in (EPS, 0.0):
        x = pixels.detach().requires_grad_()
        y = nw.batch_norm(x, training=True, eps=eps) if eps else _formula_without_eps(x)
        (gradient,) = torch.autograd.grad((y * target.to(y.dtype)).sum(), x)
        for what, values in (("output", y), ("gradient", gradient)):
            broken = int((~values.detach().isfinite()).any(0).sum())
            yield Record("channels not finite", broken, "channels", {"of": what, "eps": eps}, 28)
    yield Record("eps 0 refused", float(_refused(pixels)), "boolean", {}, 28)


def _formula_without_eps(x: torch.Tensor) -> torch.Tensor:
    """The definition as it stands, with eps 0, which `batch_norm` refuses."""
    centred = x - x.mean(0)
    return centred / centred.square().mean(0).sqrt()


def _refused(x: torch.Tensor) -> bool:
    try:
        nw.batch_norm(x, training=True, eps=0.0)
    except ValueError:
        return True
    return False
