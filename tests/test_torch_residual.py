"""A residual that torch's door adds before the activation: what is kept of it, and what graphs make of it."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import fx, nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.func import vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import normwright.torch as nw
from beside_torch import LAST, UNIT, agree, layouts, normal, same_bits, state, untouched
from test_torch_activation import FOLLOWS, NEEDS_KERNELS, TRAINING, a_layer, each_type
from torch_networks import same

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
FOLLOWED = list(FOLLOWS)[1:]
TOLD_BY_A_BIT = ("relu", "leaky_relu", "relu6", "hardtanh")
EVERY = pytest.mark.parametrize("name", FOLLOWS)
SHAPE = (6, 5, 7, 9)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # some 2000 numbers: more threads would only wait for each other
    yield
    torch.set_num_threads(before)


def operands(dtype=F32, memory_format=torch.contiguous_format, residual_type=None):
    """x and a residual that want gradients."""
    x = normal(*SHAPE).to(dtype).contiguous(memory_format=memory_format)
    residual = (
        normal(*SHAPE, seed=2, mean=0).to(residual_type or dtype).contiguous(memory_format=memory_format)
    )
    return x.requires_grad_(), residual.requires_grad_()


def dy_for(dtype=F32):
    return normal(*SHAPE, seed=1, mean=0.5).to(dtype)


def called(x, residual, name, training, weight=None, bias=None):
    """y, from running statistics that begin as they always do."""
    c = torch.arange(x.shape[1])
    running = (
        (c * 0.5 + 0.25).to(torch.promote_types(x.dtype, F32)),
        (c + 0.5).to(torch.promote_types(x.dtype, F32)),
    )
    after = {"activation": FOLLOWS[name].said, "residual": residual}
    return nw.batch_norm(x, *running, weight, bias, training, **after)


# --- what is kept until backward --------------------------------------------------


def kept_by(name, training, dtype, with_residual):
    """What a call saves for backward; x and the residual."""
    kept = []
    x, residual = operands(dtype)
    layer = a_layer(x, FOLLOWS[name].said, "train" if training else "eval")
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x, residual if with_residual else None)
    return kept, x, residual


@NEEDS_KERNELS
@TRAINING
@each_type()
@EVERY
def test_without_a_residual_nothing_as_large_as_x_is_kept_but_x(name, dtype, training):
    kept, x, _ = kept_by(name, training, dtype, with_residual=False)
    assert [t.data_ptr() for t in kept if t.numel() >= 64] == [x.data_ptr()]
    assert sum(t.nbytes for t in kept) <= x.nbytes + 4 * 5 * 8  # weight, bias, mean, var of 5 channels


@NEEDS_KERNELS
@TRAINING
@each_type()
@EVERY
def test_of_a_residual_a_bit_each_is_kept_or_itself_or_nothing(name, dtype, training):
    kept, x, residual = kept_by(name, training, dtype, with_residual=True)
    large = [t for t in kept if t.numel() >= 64]
    if name in TOLD_BY_A_BIT:
        assert [t.data_ptr() for t in large[:1]] == [x.data_ptr()]
        assert [t.dtype for t in large[1:]] == [torch.uint8]
        # a bit for each of 1890 values, where every run of 63 is filled up to whole vectors of 64
        assert x.numel() / 8 <= large[1].nbytes <= 2 * x.numel() / 8
    else:
        whole = [x] if name == "nothing" else [x, residual]
        assert [t.data_ptr() for t in large] == [t.data_ptr() for t in whole]  # no copy
    assert sum(t.nbytes for t in kept if t.numel() < 64) <= 4 * 5 * 8


@NEEDS_KERNELS
@TRAINING
@EVERY
def test_a_residual_written_to_before_backward_is_an_error_where_it_is_kept_and_else_nothing(name, training):
    results = []
    for write in (False, True):
        x, residual = operands()
        used = residual * 1
        y = called(x, used, name, training)
        if write:
            used.detach().mul_(2)
        if write and name not in (*TOLD_BY_A_BIT, "nothing"):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.backward(dy_for())
        else:
            results.append(grad(y, [x, residual], dy_for()))
    for got, want in zip(*results, strict=True) if len(results) == 2 else ():
        same_bits("gradient", got, want)


@TRAINING
@pytest.mark.parametrize("name", ["relu", "silu", "nothing"])
def test_a_call_writes_to_no_argument(name, training):
    x, residual = operands()
    before = [(t, t.detach().clone(), t._version) for t in (x, residual)]
    y = called(x, residual, name, training)
    dy = dy_for()
    grad(y, [x, residual], dy)
    same_bits("dy", dy, dy_for())
    for t, copied, version in before:
        same_bits("argument", t.detach(), copied)
        assert t._version == version


# --- hooks on what is kept; checkpoints ----------------------------------------------


HOOKS = {  # tensors come back contiguous, in other strides, or wider
    "on the CPU": save_on_cpu,
    "contiguous": lambda: saved_tensors_hooks(
        lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t
    ),
    "channels last": lambda: saved_tensors_hooks(
        lambda t: t.clone(memory_format=LAST) if t.dim() == 4 else t.clone(), lambda t: t
    ),
    "wider": lambda: saved_tensors_hooks(lambda t: t.double(), lambda t: t),
}
LIES = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.contiguous(memory_format=LAST),
    "a slice of channels": lambda t: torch.cat([t, t], 1)[:, 2:7],
    "a slice of channels, last": lambda t: torch.cat([t, t], 1).contiguous(memory_format=LAST)[:, 2:7],
    # 64 channels of 64 values: as many bits as if it were contiguous, in another order
    "square, last": lambda t: (
        torch.cat([t] * 3).flatten()[:4096].view(1, 64, 8, 8).contiguous(memory_format=LAST)
    ),
    "one channel, last": lambda t: t.contiguous(memory_format=LAST)[:, 1:2],
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
}


@NEEDS_KERNELS  # torch's own take back no other type
@TRAINING
@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "create_graph"])
@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("lies", LIES)
@pytest.mark.parametrize("name", ["relu", "hardtanh", "silu"])
def test_tensors_that_come_back_otherwise_give_the_same_gradients(name, lies, hooks, create_graph, training):
    results = []
    for around in (nullcontext(), HOOKS[hooks]()):
        x, residual = (LIES[lies](t.detach()).requires_grad_() for t in operands())
        with around:
            y = called(x, residual, name, training)
        dy = normal(*y.shape, seed=1, mean=0.5)
        results.append(grad(y, [x, residual], dy, create_graph=create_graph))
    for got, want in zip(*results, strict=True):
        # the kernel and tensor operations may take turns: as in beside_torch.same_step
        agree("gradient", got, want, 16 * UNIT[F32] * 16)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@each_type((F32, BF16))
@pytest.mark.parametrize("name", ["nothing", "relu", "silu"])
def test_a_checkpointed_layer_counts_once_and_has_the_same_bits(name, dtype, reentrant):
    results, states = [], []
    for repeat in (False, True):
        x, residual = operands(dtype)
        layer = a_layer(x, FOLLOWS[name].said)
        y = checkpoint(layer, x, residual, use_reentrant=reentrant) if repeat else layer(x, residual)
        y.backward(dy_for(dtype))
        results.append([y.detach(), x.grad, residual.grad, layer.weight.grad, layer.bias.grad])
        states.append(state(layer))
    for got, want in zip(*results, strict=True):
        same_bits("result", got, want)
    assert states[1]["num_batches_tracked"].item() == 1
    for key, t in states[0].items():
        same_bits(key, states[1][key], t)


@pytest.mark.parametrize("name", ["nothing", "relu", "silu"])
def test_what_follows_moves_statistics_no_otherwise(name):
    x, residual = operands()
    plain, layer = a_layer(x, None), a_layer(x, FOLLOWS[name].said)
    before = {key: t._version for key, t in layer.named_buffers()}
    plain(x)
    layer(x, residual)
    untouched(layer, state(plain))
    assert all(t._version > before[key] for key, t in layer.named_buffers())
    layer.eval()
    before = {key: t._version for key, t in layer.named_buffers()}
    layer(x, residual).sum().backward()
    untouched(layer, state(plain))
    assert {key: t._version for key, t in layer.named_buffers()} == before


# --- gradients of gradients, transforms ------------------------------------------------


def small(memory_format=torch.contiguous_format):
    """x, residual, weight, bias in float64: differences take a step per value."""
    x = normal(3, 2, 2, 2, dtype=F64).contiguous(memory_format=memory_format)
    residual = normal(3, 2, 2, 2, dtype=F64, seed=2, mean=0).contiguous(memory_format=memory_format)
    return [
        t.requires_grad_()
        for t in (x, residual, torch.tensor([1.5, -0.7], dtype=F64), torch.tensor([0.2, -0.3], dtype=F64))
    ]


@TRAINING
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, LAST], ids=["contiguous", "channels-last"]
)
@EVERY
def test_gradients_and_their_gradients_are_right_by_differences(name, memory_format, with_residual, training):
    x, residual, *numbers = small(memory_format)

    def call(x, weight, bias, residual=None):
        return called(x, residual, name, training, weight, bias)

    inputs = [x, *numbers, residual] if with_residual else [x, *numbers]
    # in random directions: a sum over all pairs of values
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@TRAINING
@EVERY
def test_each_gradient_is_the_same_alone_with_a_graph_and_in_batches(name, training):
    inputs = small()
    x, residual, *numbers = inputs
    dy = normal(3, 2, 2, 2, dtype=F64, seed=5)
    y = called(x, residual, name, training, *numbers)
    together = grad(y, inputs, dy, retain_graph=True)
    batch = torch.stack([dy, 2 * dy, -dy])
    batched = grad(y, inputs, batch, is_grads_batched=True, retain_graph=True)
    mapped = vmap(lambda v: grad(y, inputs, v, retain_graph=True))(batch)
    bound = 1000 * UNIT[F64]  # some 20 operations on values below 50
    for k, want in enumerate(together):
        for create_graph in (False, True):
            alone = [t if j == k else t.detach() for j, t in enumerate(inputs)]
            y = called(*alone[:2], name, training, *alone[2:])
            agree("alone", grad(y, [alone[k]], dy, create_graph=create_graph)[0], want, bound)
        for found in (batched[k], mapped[k]):
            agree("in a batch", found, torch.stack([want, 2 * want, -want]), 2 * bound)


@EVERY
def test_function_transforms_see_through_a_residual_and_an_activation(name):
    x, residual, weight, bias = (t.detach() for t in small())
    fixed = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    after, bound = FOLLOWS[name], 1000 * UNIT[F64]  # as above

    def loss(x, residual):
        y = nw.batch_norm_stats(x, *fixed, weight, bias, activation=after.said, residual=residual).y
        return y.pow(2).sum()

    def torchs(x, residual):
        return after.torchs(F.batch_norm(x, None, None, weight, bias, True) + residual).pow(2).sum()

    want = torch.func.grad(torchs, (0, 1))(x, residual)
    for got, t in zip(torch.func.grad(loss, (0, 1))(x, residual), want, strict=True):
        agree("gradient", got, t, bound)
    several = torch.stack([x, x.sin()]), torch.stack([residual, residual.cos()])
    agree("losses", vmap(loss)(*several), torch.stack(list(map(torchs, *several))), bound * 10)
    for k, got in enumerate(vmap(torch.func.grad(loss))(*several)):
        agree("gradients", got, torch.func.grad(torchs)(several[0][k], several[1][k]), bound * 10)


# --- how a residual lies, and what it is -------------------------------------------------


@TRAINING
@pytest.mark.parametrize("name", ["nothing", "relu", "silu"])
@pytest.mark.parametrize("of_x", ["contiguous", "channels-last", "a slice of channels, last", "cropped"])
def test_however_a_residual_lies_results_have_the_same_bits(of_x, name, training):
    x = layouts(F32)[of_x].detach().requires_grad_()
    values, dy = normal(*SHAPE, seed=2, mean=0), dy_for()
    several = torch.cat([values] * 3, 1)
    lies = [LIES[how](values) for how in ("contiguous", "channels last", "transposed")]
    lies += [several[:, 5:10], several.contiguous(memory_format=LAST)[:, 5:10], several[:, :5].double()]
    results = []
    for residual in (*lies, torch._neg_view(-values)):
        residual = residual.detach().requires_grad_()
        y = called(x, residual, name, training)
        results.append([t.detach().to(F32) for t in (y, *grad(y, [x, residual], dy))])
    for got, want in zip(
        results.pop(), results[0], strict=True
    ):  # negated: torch's own, of other last digits
        agree("result", got, want, 16 * UNIT[F32] * 16)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            same_bits("result", got, want)
            assert got.stride() == want.stride()


@TRAINING
@pytest.mark.parametrize("name", ["nothing", "relu", "silu"])
def test_a_residual_may_be_x_itself(name, training):
    (x,) = operands(F64)[:1]
    got, want = (grad(called(x, t, name, training), x, dy_for(F64))[0] for t in (x, x * 1))
    agree("dx", got, want, 4 * UNIT[F64] * 16)  # a sum of two, in another order


@TRAINING
@each_type()
@pytest.mark.parametrize("residual_type", [F64, F32, BF16, F16], ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("name", ["nothing", "relu", "silu"])
def test_a_residual_is_taken_in_the_type_of_x_and_its_gradient_goes_back_in_its_own(
    name, residual_type, dtype, training
):
    x, residual = operands(dtype, residual_type=residual_type)
    y = called(x, residual, name, training)
    want = called(x, residual.detach().to(dtype).requires_grad_(), name, training)
    same_bits("y", y.detach(), want.detach())
    got = grad(y, [x, residual], dy_for(dtype))
    assert [g.dtype for g in got] == [dtype, residual_type]


# --- programs -------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual connection around a convolution, with every activation in turn."""

    def __init__(self, names=tuple(FOLLOWS)):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(5, 5, 1, bias=False)
        self.norms = nn.ModuleList(nw.BatchNorm2d(5, activation=FOLLOWS[name].said) for name in names)

    def forward(self, x):
        for norm in self.norms:
            x = norm(self.convolution(x), x)
        return x


def trained(model, call):
    """What a step of training through `call` leaves."""
    model.zero_grad()
    x = normal(*SHAPE, dtype=F64).requires_grad_()
    y = call(x)
    y.backward(dy_for(F64))
    found = {"y": y.detach(), "dx": x.grad, **{name: p.grad for name, p in model.named_parameters()}}
    return found | {name: t.double() for name, t in model.named_buffers()}


def test_a_compiled_model_has_every_activation_without_a_graph_break():
    torch.compiler.reset()
    plain = Block().double()
    model = copy.deepcopy(plain)
    got = trained(model, torch.compile(model, fullgraph=True, backend="aot_eager"))
    same(got, trained(plain, plain))


def test_a_symbolic_trace_and_an_exported_program_hold_the_residual():
    model, x = Block(("relu", "silu")).eval(), normal(*SHAPE)
    want = model(x)
    traced = fx.symbolic_trace(model)
    calls = [node for node in traced.graph.nodes if str(node.target).startswith("norms")]
    assert [len(node.args) for node in calls] == [2, 2]
    same_bits("y, traced", traced(x), want)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    operations = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [name.split(".")[1] for name in operations if "conv" not in name and "sym" not in name] == [
        *("batch_norm", "add", "relu"),
        *("batch_norm", "add", "silu"),
    ]
    agree("y, exported", program.module()(x), want, 16 * UNIT[F32] * 16 * 10)  # two norms and convolutions


def test_hooks_of_a_layer_see_x_and_the_residual():
    x, residual = operands()
    layer, seen = a_layer(x, "relu"), []
    layer.register_forward_hook(lambda layer, given, y: seen.append(given))
    layer.register_forward_hook(lambda layer, given, named, y: seen.append(named), with_kwargs=True)
    layer(x, residual)
    layer(x, residual=residual)
    assert [len(given) for given in seen] == [2, 0, 1, 1]
    assert seen[0][1] is seen[-1]["residual"] is residual
