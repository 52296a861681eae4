"""Activation checkpointing repeats forward passes during backward: our layers count each once."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, same_bits, state, twins, untouched

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
SHAPE = (6, 5, 7)
REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
once = {kind: partial(checkpoint, use_reentrant=kind) for kind in (True, False)}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # some 200 numbers: more threads would only wait for each other
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """Three norms, one of them used twice in a pass; `repeat` checkpoints each piece, as it would f in f(x)."""

    def __init__(self, dtype=F32, make=nw.BatchNorm1d, repeat=None, **options):
        super().__init__()
        self.norms = nn.ModuleList(make(5, **options).to(dtype) for _ in range(3))
        self.repeat = repeat or (lambda f, x: f(x))
        source, _ = twins(normal(*SHAPE, dtype=dtype), momentum=options.get("momentum", 0.1))
        for norm in self.norms:
            norm.load_state_dict(source.state_dict())

    def first(self, x):
        """A norm used twice; sin, so that a gradient depends on what is recomputed."""
        return self.norms[0](torch.sin(self.norms[0](x)) * 1.5)

    def second(self, x):
        return torch.sin(self.norms[2](torch.sin(self.norms[1](x)) + x))

    def forward(self, x):
        return self.repeat(self.second, self.repeat(self.first, x))


def train(net, call, dtype=F32, bad=None, backward=torch.Tensor.backward):
    """Three steps of training through `call(x)`: parameters, gradients, buffers and what was skipped, by name."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    found = {}
    for k in range(3):
        x = normal(*SHAPE, dtype=dtype, seed=k, mean=k)
        if k == bad:
            x[3, 2, 4] = float("nan")
        x.requires_grad_()
        optimizer.zero_grad()
        y = call(x)
        backward((y * normal(*SHAPE, dtype=dtype, seed=9)).sum())
        found |= {f"y {k}": y, f"dx {k}": x.grad}
        found |= {f"d{name} {k}": p.grad for name, p in net.named_parameters()}
        found |= {f"{name} {k}": t for name, t in net.state_dict().items()}
        found = {name: t.detach().clone() for name, t in found.items()}
        optimizer.step()
    return found, nw.skipped(net)


def same_run(got, want):
    """Two answers of `train` are one, bit for bit."""
    (got, skipped), (want, skipped_in_it) = got, want
    assert skipped == skipped_in_it
    assert list(got) == list(want)
    for name, t in want.items():
        same_bits(name, got[name], t)


def near(got, want, dtype=F64):
    """Two answers of `train` differ by the arithmetic of torch's batch norm, which runs instead of the kernels.

    Sums of some 100 terms in x's type in another order, four norms deep and differentiated, three steps long.
    """
    unit = {BF16: 2.0**-8, F16: 2.0**-11}.get(dtype) or UNIT[dtype]
    assert got[1] == want[1]
    assert got[0].keys() == want[0].keys()
    for name, t in want[0].items():
        largest = max(1, t.abs().max().item())
        bound = 0 if name.split()[0].endswith("tracked") else 4096 * unit * largest
        agree(name, got[0][name].double(), t.double(), bound)


# --- ways to checkpoint ---------------------------------------------------------------------------------------


def inside_hooks(f, x, reentrant, hooks):
    """Checkpointed, with hooks on saved tensors within what is repeated."""

    def hooked(x):
        with hooks():
            return f(x)

    return checkpoint(hooked, x, use_reentrant=reentrant)


def outside_hooks(f, x, reentrant):
    with save_on_cpu():
        return checkpoint(f, x, use_reentrant=reentrant)


def stopping(f, x, early):
    with set_checkpoint_early_stop(early):
        return checkpoint(f, x, use_reentrant=False)


def nested(f, x, *kinds):
    """Checkpoints around checkpoints, the outermost kind first."""
    for kind in reversed(kinds):
        f = partial(once[kind], f)
    return f(x)


def as_sequence(net, x, reentrant):
    return checkpoint_sequential([net.first, net.second], 2, x, use_reentrant=reentrant)


packs = partial(saved_tensors_hooks, lambda t: [t.detach()], lambda packed: packed[0].clone())
PIECES = {  # name: how one piece f of a net is applied to x
    "reentrant": lambda f, x: checkpoint(f, x, use_reentrant=True),
    "not reentrant": lambda f, x: checkpoint(f, x, use_reentrant=False),
    "early stop on": partial(stopping, early=True),
    "early stop off": partial(stopping, early=False),  # the whole piece is repeated, its last norm too
    "not reentrant in not reentrant": lambda f, x: nested(f, x, False, False),
    "reentrant in not reentrant": lambda f, x: nested(f, x, False, True),
    "not reentrant in reentrant": lambda f, x: nested(f, x, True, False),
    "reentrant in reentrant": lambda f, x: nested(f, x, True, True),
    "three deep, mixed": lambda f, x: nested(f, x, True, False, True),
    "saved on the CPU within, reentrant": partial(inside_hooks, reentrant=True, hooks=save_on_cpu),
    "saved on the CPU within": partial(inside_hooks, reentrant=False, hooks=save_on_cpu),
    "packed within, reentrant": partial(inside_hooks, reentrant=True, hooks=packs),
    "packed within": partial(inside_hooks, reentrant=False, hooks=packs),
    "saved on the CPU around, reentrant": partial(outside_hooks, reentrant=True),
    "saved on the CPU around": partial(outside_hooks, reentrant=False),
}
WHOLES = {  # name: how a whole net is applied to x
    "sequence, reentrant": partial(as_sequence, reentrant=True),
    "sequence": partial(as_sequence, reentrant=False),
    "whole, reentrant": lambda net, x: checkpoint(net, x, use_reentrant=True),
    "whole": lambda net, x: checkpoint(net, x, use_reentrant=False),
}
BY = {"float32": (F32, F32), "float64": (F64, F64), "bfloat16": (BF16, F32), "float16": (F16, F32)}
# Types of x and of parameters: the two of the native kernels, and halves beside float32, which go to torch's
DTYPES = pytest.mark.parametrize(("dtype", "held"), BY.values(), ids=BY)
NATIVE_OR_NOT = pytest.mark.parametrize(("dtype", "held"), [BY[k] for k in ("float32", "bfloat16")])
MOMENTA = pytest.mark.parametrize(
    "momentum", [0.1, None]
)  # torch's; the mean of all, which reads the counter
# The three kinds move statistics in other operations, and so does each momentum; together in the tests after this.
SETTINGS = pytest.mark.parametrize(
    ("on_nonfinite", "momentum"), [("skip", 0.1), ("raise", None), ("propagate", 0.1)]
)


@DTYPES
@SETTINGS
@pytest.mark.parametrize("way", [*PIECES, *WHOLES])
def test_a_checkpointed_run_is_the_plain_run_bit_for_bit(way, on_nonfinite, momentum, dtype, held):
    options = {"momentum": momentum, "on_nonfinite": on_nonfinite}
    plain = Net(held, **options)
    net = Net(held, repeat=PIECES.get(way), **options)
    call = partial(WHOLES[way], net) if way in WHOLES else net
    same_run(train(net, call, dtype), train(plain, plain, dtype))
    assert [norm.num_batches_tracked.item() for norm in net.norms] == [6, 3, 3]


@DTYPES
@MOMENTA
@REENTRANT
@pytest.mark.parametrize("on_nonfinite", ["skip", "propagate"])  # what goes on after a NaN
@pytest.mark.parametrize("bad", [0, 1])  # the first batch, whose count is 0, and a later one
def test_a_batch_that_is_not_finite_is_left_out_or_let_in_once(
    bad, on_nonfinite, reentrant, momentum, dtype, held
):
    options = {"momentum": momentum, "on_nonfinite": on_nonfinite}
    plain, net = Net(held, **options), Net(held, repeat=once[reentrant], **options)
    # A NaN takes the parameters with it, so that all later batches of the run are NaN too.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        want = train(plain, plain, dtype, bad)
    with warnings.catch_warnings(record=True) as told_again:
        warnings.simplefilter("always")
        got = train(net, net, dtype, bad)
    same_run(got, want)
    assert [str(w.message) for w in told_again] == [str(w.message) for w in told]
    assert bool(told) == bool(got[1]) == (on_nonfinite == "skip")


@REENTRANT
def test_a_batch_that_raises_does_so_before_anything_is_repeated(reentrant):
    net = Net(on_nonfinite="raise", repeat=once[reentrant])
    before = state(net)
    x = normal(*SHAPE).index_fill(0, torch.tensor(2), float("inf")).requires_grad_()
    with pytest.raises(nw.NonfiniteError):
        net(x)
    untouched(net, before)


# --- selective checkpointing ----------------------------------------------------------------------------------

A = torch.ops.aten
POLICIES = {  # name: the operations whose results are saved
    "nothing saved": [],
    "the norm saved": [A.native_batch_norm.default],
    # Operations that the move of running statistics may use as well: what is taken from the store must be the net's
    "products and sums saved": [A.mul.Tensor, A.add.Tensor],
    "sines saved": [A.sin.default],
    "everything saved": lambda context, operation, *args, **kwargs: CheckpointPolicy.PREFER_SAVE,
}


@NATIVE_OR_NOT
@MOMENTA
@pytest.mark.parametrize("on_nonfinite", ["skip", "propagate"])  # statistics move in other operations
@pytest.mark.parametrize("policy", POLICIES)
def test_selective_checkpointing_counts_once(policy, on_nonfinite, momentum, dtype, held):
    # allow_cache_entry_mutation: with everything saved, torch's own layer needs it as well
    contexts = partial(
        create_selective_checkpoint_contexts, POLICIES[policy], allow_cache_entry_mutation=True
    )
    options = {"momentum": momentum, "on_nonfinite": on_nonfinite}
    plain = Net(held, **options)
    net = Net(held, repeat=partial(checkpoint, use_reentrant=False, context_fn=contexts), **options)
    near(train(net, net, dtype), train(plain, plain, dtype), dtype)


# --- how backward is asked for --------------------------------------------------------------------------------


def in_a_thread(loss):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(loss.backward).result(timeout=60)


@REENTRANT
@DTYPES
def test_backward_in_another_thread_counts_once(dtype, held, reentrant):
    plain, net = Net(held), Net(held, repeat=once[reentrant])
    same_run(train(net, net, dtype, backward=in_a_thread), train(plain, plain, dtype))


@pytest.mark.parametrize("order", [1, 2], ids=["twice over one graph", "second order"])
def test_gradients_of_a_graph_that_is_kept_count_once(order):
    results = []
    for repeat in (None, once[False]):
        net, x = Net(F64, repeat=repeat), normal(*SHAPE, dtype=F64).requires_grad_()
        loss = net(x).pow(3).sum()
        (g,) = torch.autograd.grad(loss, x, create_graph=order == 2, retain_graph=True)
        (g,) = torch.autograd.grad(loss if order == 1 else g.square().sum(), x)
        results.append({"gradient": g, **net.state_dict()})
    for name, t in results[0].items():
        same_bits(name, results[1][name], t)


def test_a_saved_tensor_that_is_looked_at_before_backward_counts_once():
    layer, _ = twins(normal(*SHAPE))
    y = checkpoint(lambda x: torch.sin(layer(x)), normal(*SHAPE).requires_grad_(), use_reentrant=False)
    looked_at = y.grad_fn._saved_self  # repeats the pass, outside of any backward
    agree("y", torch.sin(looked_at), y, 0)
    y.sum().backward()
    assert layer.num_batches_tracked.item() == 1


def within_hooks(f, x):
    with packs():
        return f(x)


@pytest.mark.parametrize("around", [once[True], once[False], within_hooks], ids=["reentrant", "not", "hooks"])
def test_a_pass_that_is_never_repeated_counts_too(around):
    layer, plain = twins(normal(*SHAPE))[0], twins(normal(*SHAPE))[0]
    x = normal(*SHAPE).requires_grad_()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            around(layer, x)
            plain(x)
    untouched(layer, state(plain))


# --- training passes that happen during backward, and are no repetitions --------------------------------------

HOOKS_OF_LAYERS = {  # name: hang `act` into the backward pass of a layer
    "module": lambda layer, act: layer.register_full_backward_hook(lambda *gradients: act()),
    "module, before": lambda layer, act: layer.register_full_backward_pre_hook(lambda *gradients: act()),
    "parameter": lambda layer, act: layer.weight.register_post_accumulate_grad_hook(lambda p: act()),
}
HOOKS_OF_RESULTS = {  # name: hang `act` into the backward pass that goes through y
    "tensor": lambda y, act: y.register_hook(lambda g: act()),
    "node": lambda y, act: y.grad_fn.register_hook(lambda *gradients: act()),
    "node, before": lambda y, act: y.grad_fn.register_prehook(lambda *gradients: act()),
}
AROUND = {"plain": lambda f, x: f(x), **{k: PIECES[k] for k in ("reentrant", "not reentrant")}}
AROUND |= {k: PIECES[k] for k in PIECES if " in " in k}


@NATIVE_OR_NOT
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("hook", [*HOOKS_OF_LAYERS, *HOOKS_OF_RESULTS])
def test_a_training_pass_in_a_hook_of_backward_counts(hook, around, dtype, held):
    within_a_hook(hook, around, "plain", dtype, held)


@pytest.mark.parametrize("acting", ["reentrant", "not reentrant", "reentrant in not reentrant"])
@pytest.mark.parametrize("around", ["plain", "reentrant", "not reentrant"])
def test_a_checkpointed_step_of_training_in_a_hook_of_backward_counts_once(around, acting):
    within_a_hook("tensor", around, acting, F32, F32)


def within_a_hook(hook, around, acting, dtype, held):
    """A layer runs `around`, and a teacher `acting` in a hook of that one's backward: both count once."""
    layer, plain = (twins(normal(*SHAPE, dtype=held))[0] for _ in range(2))
    teacher, expected = (twins(normal(*SHAPE, dtype=held), momentum=None)[0] for _ in range(2))
    batch, fired = normal(*SHAPE, dtype=dtype, seed=3), []

    def act():
        fired.append(True)
        with torch.enable_grad():  # a hook runs without
            AROUND[acting](teacher, batch.clone().requires_grad_()).sum().backward()

    def f(x):
        y = layer(torch.sin(x))
        if hook in HOOKS_OF_RESULTS and y.requires_grad:  # a reentrant first pass has no graph
            HOOKS_OF_RESULTS[hook](y, act)
        return torch.sin(y)

    x = normal(*SHAPE, dtype=dtype, seed=4).requires_grad_()
    if hook in HOOKS_OF_LAYERS:
        HOOKS_OF_LAYERS[hook](layer, act)
    AROUND[around](f, x).sum().backward()
    plain(torch.sin(x.detach()))
    untouched(layer, state(plain))
    assert fired
    for _ in fired:
        expected(batch)
    untouched(teacher, state(expected))


def test_a_pass_in_a_backward_of_the_users_own_counts():
    layer, plain = twins(normal(*SHAPE))[0], twins(normal(*SHAPE))[0]

    class Mine(torch.autograd.Function):  # bears the names of checkpointing's functions, and is none of them
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            def recompute_fn(dy):
                layer(dy)
                return dy

            return recompute_fn(dy)

    dy = normal(*SHAPE)
    Mine.apply(normal(*SHAPE).requires_grad_()).backward(dy)
    plain(dy)
    untouched(layer, state(plain))


# --- compiled, and as torch's ---------------------------------------------------------------------------------


@REENTRANT
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"on_nonfinite": "raise"}, {"on_nonfinite": "propagate"}], ids=str
)
def test_a_compiled_model_that_checkpoints_moves_its_buffers_once(options, reentrant):
    plain, net = Net(F64, **options), Net(F64, repeat=once[reentrant], **options)
    torch.compiler.reset()
    # backend "eager" cannot run a checkpoint around torch's own batch norm either: it changes what was saved.
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    near(train(net, compiled, F64), train(plain, plain, F64))


@REENTRANT
def test_strict_layers_count_a_repetition_as_torchs_do(reentrant):
    x = normal(*SHAPE, dtype=F64)
    theirs, strict, ours = twins(x)[1], nw.convert(twins(x)[1], strict_torch=True), nw.convert(twins(x)[1])
    for layer in (theirs, strict, ours):
        checkpoint(layer, x.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()
    assert [layer.num_batches_tracked.item() for layer in (theirs, strict, ours)] == [2, 2, 1]
    for name in ("running_mean", "running_var"):  # a few roundings of values below 16
        agree(name, getattr(strict, name), getattr(theirs, name), 16 * UNIT[F64] * 16)
