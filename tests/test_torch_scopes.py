"""`no_stat_update`: training passes that leave no trace in the running statistics, of our layers and torch's."""

import copy
import io
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import normwright.torch as nw
from beside_torch import LAST, normal, same_bits, state, twins, untouched

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
X = normal(6, 5, 7)
LAZY = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")  # torch's, at each one


class Doubled(nn.BatchNorm1d):
    """A subclass with a forward of its own around torch's."""

    def forward(self, x):
        return super().forward(x) * 2


class Fused(nn.BatchNorm2d):
    """A subclass whose forward is a copy of torch's and more, as timm's BatchNormAct2d."""

    def forward(self, x):
        counts = self.training and self.track_running_stats
        if counts:
            self.num_batches_tracked.add_(1)
        mean, var = (self.running_mean, self.running_var) if counts or not self.training else (None, None)
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, 0.25, self.eps).tanh()


class Plain(nn.BatchNorm1d):
    """A subclass that adds nothing to forward: `convert` makes it ours."""


def parametrized():
    layer = nn.BatchNorm1d(5)
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    return layer


X4 = normal(6, 5, 3, 4)
LAYERS = {  # name: how a layer is made, and its input
    "ours, native": (lambda: nw.BatchNorm1d(5), X),
    "ours, float64, mean of all": (lambda: nw.BatchNorm1d(5, momentum=None, dtype=F64), X.double()),
    "ours, channels-last": (lambda: nw.BatchNorm2d(5), X4.contiguous(memory_format=LAST)),
    "ours, torch's arithmetic": (lambda: nw.BatchNorm1d(5), X.bfloat16()),
    "ours, bfloat16": (lambda: nw.BatchNorm1d(5, dtype=BF16), X.bfloat16()),
    "ours, strict": (lambda: nw.convert(nn.BatchNorm1d(5), strict_torch=True), X),
    "ours, not tracking": (lambda: nw.BatchNorm1d(5, track_running_stats=False), X),
    "ours, of a subclass": (lambda: nw.convert(Plain(5)), X),
    "torch's": (lambda: nn.BatchNorm1d(5), X),
    "torch's, 2d, mean of all": (lambda: nn.BatchNorm2d(5, momentum=None), X4),
    "torch's, not tracking": (lambda: nn.BatchNorm1d(5, track_running_stats=False), X),
    "torch's, a subclass": (lambda: Plain(5), X),
    "torch's, with its own forward": (lambda: Doubled(5), X),
    "torch's, a copied forward": (lambda: Fused(5), X4),
    "torch's, parametrized": (parametrized, X),
}
EACH = pytest.mark.parametrize("name", LAYERS)
# A layer that asks, and one that is made to
BOTH = pytest.mark.parametrize("make", [nw.BatchNorm1d, nn.BatchNorm1d], ids=["ours", "torch's"])


def run(layer, x):
    """y and all gradients of one training step."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(normal(*x.shape, dtype=x.dtype, seed=1))
    return {"y": y.detach(), "dx": x.grad, **{name: p.grad.clone() for name, p in layer.named_parameters()}}


def moved(layer, before):
    """A training pass was counted."""
    return layer.num_batches_tracked.item() == before["num_batches_tracked"].item() + 1


# --- what a pass leaves ---------------------------------------------------------------------------------------


@EACH
def test_outputs_and_gradients_are_trainings_and_buffers_stay(name):
    make, x = LAYERS[name]
    layer, other = make(), make()
    layer(x + 2)  # statistics that are not the initial ones
    other(x + 2)
    before, kind = state(layer), type(layer)
    want = run(other, x)
    with nw.no_stat_update(layer):
        for _ in range(2):
            got = run(layer, x)
            untouched(layer, before)
            for what, t in want.items():
                same_bits(what, got[what], t)
    untouched(layer, before)
    assert type(layer) is kind
    run(layer, x)  # and as ever after the scope
    untouched(layer, state(other))


@EACH
def test_an_evaluating_layer_evaluates_in_a_scope(name):
    make, x = LAYERS[name]
    layer = make()
    layer(x + 2)
    layer.eval()
    before, want = state(layer), layer(x)
    with nw.no_stat_update(layer):
        same_bits("y", layer(x), want)
        assert not layer.training
    untouched(layer, before)


def test_a_batch_that_is_not_finite_has_nothing_to_spoil_in_a_scope():
    layer = nw.BatchNorm1d(5)
    bad = X.clone()
    bad[0, 2] = float("nan")
    with warnings.catch_warnings(), nw.no_stat_update(layer):
        warnings.simplefilter("error")
        layer(bad)
        layer(bad.bfloat16())
    assert nw.skipped(layer) == {}
    untouched(layer, state(nw.BatchNorm1d(5)))


def test_instance_norm_is_untouched():
    layer, other = (nn.InstanceNorm1d(5, affine=True, track_running_stats=True) for _ in range(2))
    with nw.no_stat_update(nn.Sequential(layer, nw.BatchNorm1d(5))):
        assert type(layer) is nn.InstanceNorm1d
        same_bits("y", layer(X), other(X))
    untouched(layer, state(other))
    assert layer.running_mean.any()  # it moved


def test_a_layer_that_is_not_run_is_no_matter():
    sync = nn.SyncBatchNorm(5)  # which runs on a GPU alone
    model = nn.Sequential(nw.BatchNorm1d(5), nn.BatchNorm1d(5), nn.ModuleList([sync]))
    before = state(model)
    with nw.no_stat_update(model):
        model[1](model[0](X))
    untouched(model, before)
    assert [type(m) for m in (model[1], sync)] == [nn.BatchNorm1d, nn.SyncBatchNorm]


def test_what_is_no_module_is_refused_by_name():
    words = r"^normwright.torch.no_stat_update: expected a torch.nn.Module, got "
    with pytest.raises(TypeError, match=words), nw.no_stat_update([nn.BatchNorm1d(5)]):
        pass


# --- scopes in scopes, and in time ----------------------------------------------------------------------------


@BOTH
def test_scopes_nest_of_one_model_and_of_several(make):
    layer, other = make(5), make(5)
    before = state(layer)
    model = nn.Sequential(layer, other)
    with nw.no_stat_update(layer):
        with nw.no_stat_update(layer):
            layer(X)
        layer(X)  # the outer scope goes on
        with nw.no_stat_update(model), nw.no_stat_update(other):
            model(X)
        untouched(other, before)
        other(X)  # no longer in one
        assert moved(other, before)
        layer(X)
        untouched(layer, before)
    assert type(layer) is make
    layer(X)
    untouched(layer, state(other))


@BOTH
def test_a_scope_ends_with_an_exception(make):
    layer = make(5)
    before = state(layer)
    with pytest.raises(ValueError, match="D"), nw.no_stat_update(layer):  # noqa: PT012 - the scope is what is tested
        layer(X)
        layer(X[0, 0])  # no batch
    untouched(layer, before)
    assert type(layer) is make


@BOTH
def test_scopes_that_overlap_hold_each_for_its_own_time(make):
    # as the `with` of two generators, or of two coroutines, that take turns
    first, second = make(5), make(5)
    one, two = nw.no_stat_update(first), nw.no_stat_update(second)
    before = state(first)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    second(X)
    untouched(second, before)
    two.__exit__(None, None, None)
    for layer in (first, second):
        assert type(layer) is make
        layer(X)
        assert moved(layer, before)


@BOTH
def test_a_scope_holds_for_its_thread_alone(make):
    layer, other = make(5), make(5)
    other(X)  # what one counted batch leaves
    entered, trained = threading.Event(), threading.Event()

    def inside():
        with nw.no_stat_update(layer):
            entered.set()
            assert trained.wait(60)
            layer(X)
            untouched(layer, state(other))

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(inside)
        assert entered.wait(60)
        layer(X)
        counted = state(layer)
        trained.set()
        result.result(60)
    untouched(other, counted)
    assert type(layer) is make


@BOTH
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_the_class_comes_back_when_the_last_of_two_threads_leaves(fails, make):
    layer = make(5)
    before = state(layer)
    entered, left = threading.Event(), threading.Event()

    def inside():
        with nw.no_stat_update(layer):
            entered.set()
            assert left.wait(60)
            layer(X)  # the other thread's scope has ended; this one's has not
            untouched(layer, before)
            if fails:
                raise KeyError

    with ThreadPoolExecutor(1) as pool:
        with nw.no_stat_update(layer):
            result = pool.submit(inside)
            assert entered.wait(60)
        left.set()
        assert type(result.exception(60)) is (KeyError if fails else type(None))
    assert type(layer) is make


# --- what users do inside -------------------------------------------------------------------------------------


COPIES = ["deepcopy", "copy", "pickle", "pickle, protocol 0", "torch.save"]


@pytest.mark.parametrize(
    ("name", "how"),
    # torch: a parametrized module can be deepcopied, and nothing else
    [(name, how) for name in LAYERS for how in COPIES if how == "deepcopy" or "parametrized" not in name],
)
def test_copies_made_inside_are_of_the_ordinary_class_and_not_in_the_scope(name, how):
    make, x = LAYERS[name]
    layer = make()
    before, kind = state(layer), type(layer)
    with nw.no_stat_update(layer):
        if how in ("deepcopy", "copy"):
            other = getattr(copy, how)(layer)
        elif "pickle" in how:
            other = pickle.loads(pickle.dumps(layer, protocol=0 if "0" in how else None))
        else:
            torch.save(layer, file := io.BytesIO())
            file.seek(0)
            other = torch.load(file, weights_only=False)
        assert type(other) is kind
        untouched(other, before)
        other(x)
    if layer.track_running_stats:
        assert moved(other, before)
    if how != "copy":  # which shares its tensors
        untouched(layer, before)
    assert type(layer) is kind


@BOTH
def test_a_layer_that_is_added_inside_is_not_in_the_scope(make):
    model = nn.Sequential(make(5))
    before = state(make(5))
    with nw.no_stat_update(model):
        model.append(make(5))
        removed = model[0]
        model(X)
        model[0] = nn.Identity()
    assert moved(model[1], before)
    untouched(removed, before)
    assert [type(m) for m in (removed, model[1])] == [make, make]


@BOTH
def test_statistics_are_reset_loaded_and_shown_inside_as_ever(make):
    layer = make(5)
    words = repr(layer)
    layer(X)
    trained = state(layer)
    with nw.no_stat_update(layer):
        assert repr(layer) == words
        layer.reset_running_stats()
        assert layer.num_batches_tracked.item() == 0
        layer.load_state_dict(trained)
    untouched(layer, trained)


@LAZY
@pytest.mark.parametrize("make", [nw.LazyBatchNorm1d, nn.LazyBatchNorm1d], ids=["ours", "torch's"])
def test_a_lazy_layer_takes_its_size_inside_and_counts_nothing(make):
    layer = make()
    with nw.no_stat_update(layer):
        layer(X)
    assert type(layer) is make.cls_to_become
    untouched(layer, state(make.cls_to_become(5)))
    layer(X)
    assert layer.num_batches_tracked.item() == 1


@pytest.mark.parametrize("change", ["convert", "parametrize"])
def test_a_class_that_is_changed_inside_stays_changed(change):
    layer, other = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    for this, model in ((layer, layer), (other, nn.Identity())):
        with nw.no_stat_update(model):
            if change == "convert":
                nw.convert(this)
            else:
                parametrize.register_parametrization(this, "weight", nn.Softplus())
    assert [k.__name__ for k in type(layer).__mro__] == [k.__name__ for k in type(other).__mro__]
    same_bits("y", layer(X), other(X))
    untouched(layer, state(other))


# --- compiled, checkpointed -----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("first", [True, False], ids=["scope first", "training first"])
def test_a_compiled_model_is_quiet_inside_and_counts_outside(first, make):
    layer, plain = make(5), make(5)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for k in range(4):
        if (k % 2 == 0) is first:
            with nw.no_stat_update(layer):
                compiled(X)
        else:
            compiled(X)
            plain(X)
        assert layer.num_batches_tracked.item() == plain.num_batches_tracked.item()


def test_a_compiled_function_may_hold_the_scope():
    layer = nw.BatchNorm1d(5)

    def probe(x, quiet):
        if not quiet:
            return layer(x)
        with nw.no_stat_update(layer):
            return layer(x)

    torch.compiler.reset()
    compiled = torch.compile(probe, backend="eager", fullgraph=True)
    for quiet, count in ((True, 0), (False, 1), (True, 1), (False, 2)):
        compiled(X, quiet)
        assert layer.num_batches_tracked.item() == count


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["native", "torch's arithmetic"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_a_checkpointed_pass_inside_is_quiet_also_when_its_backward_runs_outside(reentrant, dtype):
    layer, other = twins(X)[0], twins(X)[0]
    before = state(layer)
    x, z = (X.to(dtype).clone().requires_grad_() for _ in range(2))
    with nw.no_stat_update(layer):
        y = checkpoint(lambda x: torch.sin(layer(x)), x, use_reentrant=reentrant)
    y.sum().backward()
    untouched(layer, before)
    torch.sin(other(z)).sum().backward()
    same_bits("dx", x.grad, z.grad)
    same_bits("dweight", layer.weight.grad, other.weight.grad)
