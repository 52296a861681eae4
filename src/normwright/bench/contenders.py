"""Who is timed in torch: its own layers, those of `torch.compile`, and ours, with what follows them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import normwright.torch as nw
from normwright.bench.cases import BOTH, COMPILED, FORWARD, INFERENCE, OURS, TORCH, Op
from normwright.bench.problem import EPS, Problem, lies_as
from normwright.bench.timer import Contender, WrongValues
from normwright.bench.truth import Array, Results, Tolerance, Truth, promised, summed_plainly

LAYERS: dict[str, dict[int, Any]] = {
    TORCH: {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d},
    OURS: {2: nw.BatchNorm1d, 3: nw.BatchNorm1d, 4: nw.BatchNorm2d, 5: nw.BatchNorm3d},
}
# Rounds of those that would take most of a run's time.
FEW = 7


class Composed(nn.Module):
    """Batch norm and what follows it, as users of torch write it: in place, where that may be."""

    def __init__(self, norm: nn.Module, op: Op) -> None:
        super().__init__()
        self.norm = norm
        self.after = nn.ReLU(inplace=True) if op != "bn" else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """y."""
        y = self.norm(x)
        if residual is not None:
            y += residual
        return y if self.after is None else self.after(y)  # type: ignore[no-any-return]


class Step(NamedTuple):
    """What a contender does with a problem; each returns what must not be let go while the clock runs.

    Attributes:
        forward: in training, ready for a backward pass.
        both: a training step: y and gradients.
        inference: without gradients.
        results: a training step from fresh running statistics, with gradients or without, for the reference.
        inferred: y, for the reference.
    """

    forward: Callable[[], object]
    both: Callable[[], object]
    inference: Callable[[], object]
    results: Callable[[bool], Results]
    inferred: Callable[[], Array]


def racers(
    name: str, step: Step, truth: Callable[[], Truth], allowed: Tolerance, rounds: int | None = None
) -> list[Contender]:
    """The three passes of one who is timed, each with its check."""

    def check(what: str) -> None:
        who = f"{name} {what}"
        try:
            if what == INFERENCE:
                truth().check_inference(who, step.inferred(), allowed)
            else:
                truth().check(who, step.results(what == BOTH), allowed)
        except WrongValues:
            raise
        except Exception as error:
            if name in (TORCH, OURS):
                raise
            # What compiles may have reasons of its own not to; the others are timed all the same.
            said = " ".join(str(error).split("\n\n")[0].split())
            raise WrongValues(f"{who}: {type(error).__name__}: {said}; it was not timed.") from error

    runs = {FORWARD: step.forward, BOTH: step.both, INFERENCE: step.inference}
    return [
        Contender(f"{name} {what}", run, lambda what=what: check(what), rounds=rounds)  # type: ignore[misc]
        for what, run in runs.items()
    ]


def torch_step(name: str, given: Problem, op: Op) -> Step:
    """The passes of `torch`, `torch.compile` or `normwright`."""
    train, fixed = (_layer(name, given, op) for _ in range(2))
    _norm(fixed).running_mean.copy_(given.mean)
    _norm(fixed).running_var.copy_(given.var)
    fixed.eval()
    call, call_fixed = (train, fixed) if name != COMPILED else (_compiled(train), _compiled(fixed))
    inputs = (given.x, given.residual) if op == "bn+add+relu" else (given.x,)
    norm = _norm(train)
    leaves = (*inputs, norm.weight, norm.bias)

    def forward() -> Tensor:
        return call(*inputs)  # type: ignore[no-any-return]

    def both() -> tuple[Tensor, Sequence[Tensor]]:
        y = call(*inputs)
        return y, torch.autograd.grad(y, leaves, given.dy)

    def inference() -> Tensor:
        with torch.no_grad():
            return call_fixed(*inputs)  # type: ignore[no-any-return]

    def results(backward: bool) -> Results:
        norm.reset_running_stats()
        y, gradients = both() if backward else (forward(), ())
        _refuse_layout(f"{name} {BOTH if backward else FORWARD}", y, given)
        mean, var = (t[given.channels].double().numpy() for t in (norm.running_mean, norm.running_var))
        if not backward:
            return Results(given.rows(y), mean, var)
        dx, *dresidual = (given.rows(t) for t in gradients[: len(inputs)])
        dgamma, dbeta = (t[given.channels].double().numpy() for t in gradients[len(inputs) :])
        return Results(given.rows(y), mean, var, dx, dgamma, dbeta, dresidual[0] if dresidual else None)

    def inferred() -> Array:
        y = inference()
        _refuse_layout(f"{name} {INFERENCE}", y, given)
        return given.rows(y)

    return Step(forward, both, inference, results, inferred)


def tolerance(name: str, given: Problem) -> Tolerance:
    """Ours is held to what is promised, others to what plain sums leave."""
    dtype, count = given.case.dtype, given.case.values // given.case.shape[1]
    return promised(dtype) if name == OURS else summed_plainly(count, dtype)


def _layer(name: str, given: Problem, op: Op) -> nn.Module:
    library = OURS if name == OURS else TORCH
    options = {"activation": "relu"} if name == OURS and op != "bn" else {}
    kind = LAYERS[library][len(given.case.shape)]
    layer: nn.Module = kind(given.case.shape[1], eps=EPS, dtype=given.gamma.dtype, **options)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), (given.gamma, given.beta), strict=True):
            parameter.copy_(value)
    return layer if name == OURS else Composed(layer, op)


def _norm(layer: nn.Module) -> Any:
    return layer.norm if isinstance(layer, Composed) else layer


def _compiled(layer: nn.Module) -> Callable[..., Any]:
    return torch.compile(layer, fullgraph=True, dynamic=False)


def _refuse_layout(who: str, y: Tensor, given: Problem) -> None:
    if not lies_as(y, given.x):
        raise WrongValues(f"{who}: y lies in memory otherwise than x; it was not timed.")
    if not torch.isfinite(y).all():
        raise WrongValues(f"{who}: y is not finite everywhere; it was not timed.")
