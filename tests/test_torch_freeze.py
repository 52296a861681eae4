"""`freeze`, `unfreeze`: statistics that stay, weights that do not learn; `param_groups`: decay without norms."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import func, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import normwright.torch as nw
from beside_torch import LAST, normal, same_bits, state, step, twins, untouched

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
X, DY = normal(6, 5, 7), normal(6, 5, 7, seed=1)
X4 = normal(6, 5, 3, 4)
INPUTS = {  # to the native kernels, in each type and memory order, and to torch's own batch norm
    "float32": X,
    "float64": X.double(),
    "bfloat16": X.bfloat16(),
    "(N, C)": X[..., 0],
    "one value": X[:1, :, 0],  # which training would refuse
    "channels-last": X4.contiguous(memory_format=LAST),
}
EACH = pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)


def ours(x=X, **options):
    """A layer whose weights and statistics are not the initial ones."""
    return twins(x, **options)[0]


def same_steps(got, want):
    for name, t in vars(want).items():
        if t is None:
            assert getattr(got, name) is None, name
        else:
            same_bits(name, getattr(got, name), t)


def is_frozen(layer, statistics=True, affine=False):
    """By what it does in training, what its parameters want, and what it says."""
    words = [name for name, flag in (("statistics", statistics), ("affine", affine)) if flag]
    assert repr(layer).endswith(f", frozen={'+'.join(words)})" if words else "track_running_stats=True)")
    wants = [p.requires_grad for p in layer.parameters()]
    assert wants == [not affine] * 2
    before, training = state(layer), layer.training
    layer.train()(X)
    assert (layer.num_batches_tracked.item() == before["num_batches_tracked"].item()) == statistics
    if statistics:
        untouched(layer, before)
    layer.load_state_dict(before)
    layer.train(training)


# --- frozen statistics ----------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}], ids=str)
def test_a_frozen_training_pass_is_an_evaluation_bit_for_bit(options, x):
    evaluating, frozen = ours(x, **options).eval(), ours(x, **options)
    assert nw.freeze(frozen) is frozen
    assert frozen.training
    before, dy = state(frozen), torch.ones_like(x) + x.sin()
    same_steps(step(frozen, x, dy), step(evaluating, x, dy))
    untouched(frozen, before)
    same_steps(step(frozen.eval(), x, dy), step(evaluating, x, dy))


def test_nothing_but_statistics_is_frozen_by_default():
    layer = nw.freeze(ours())
    is_frozen(layer)
    layer(X).backward(DY)
    assert layer.weight.grad.any()


def test_a_batch_that_is_not_finite_is_nobodys_matter_where_statistics_are_frozen():
    layer = nw.freeze(nw.BatchNorm1d(5, on_nonfinite="raise"))
    bad = X.clone()
    bad[0, 2] = float("nan")
    y = layer(bad)
    assert torch.equal(y.isnan(), bad.isnan())  # a channel is not spoilt by one value


# --- frozen weights -------------------------------------------------------------------------------------------


def test_weights_alone_may_be_frozen():
    layer, plain = nw.freeze(ours(), statistics=False, affine=True), ours()
    is_frozen(layer, statistics=False, affine=True)
    got, want = step(layer, X, DY), step(plain, X, DY)
    assert (got.dweight, got.dbias) == (None, None)
    for name in ("y", "dx", "running_mean", "running_var", "num_batches_tracked"):
        same_bits(name, getattr(got, name), getattr(want, name))


@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_unfreezing_gives_each_weight_what_it_wanted_before(wants):
    layer = ours()
    for p, flag in zip(layer.parameters(), wants, strict=True):
        p.requires_grad_(flag)
    nw.freeze(layer, affine=True)
    nw.freeze(layer, affine=True)  # a second time is as once
    assert [p.requires_grad for p in layer.parameters()] == [False, False]
    for copied in (copy.deepcopy(layer), layer):
        assert nw.unfreeze(copied) is copied
        assert tuple(p.requires_grad for p in copied.parameters()) == wants
        assert "frozen" not in repr(copied)


def test_a_weight_that_was_set_free_by_hand_is_frozen_again():
    layer = nw.freeze(ours(), affine=True)
    layer.requires_grad_(True)
    is_frozen(nw.freeze(layer, affine=True), affine=True)
    is_frozen(nw.unfreeze(layer), statistics=False)


def test_each_kind_of_freezing_leaves_the_other_as_it_is():
    layer = nw.freeze(ours())
    is_frozen(nw.freeze(layer, statistics=False, affine=True), affine=True)
    is_frozen(nw.freeze(layer, statistics=False, affine=False), affine=True)
    is_frozen(nw.unfreeze(layer), statistics=False)
    is_frozen(nw.unfreeze(layer), statistics=False)


@pytest.mark.parametrize("options", [{"affine": False}, {"bias": False}], ids=str)
def test_a_layer_without_weights_can_be_frozen(options):
    layer = nw.freeze(ours(**options), affine=True)
    assert repr(layer).endswith("frozen=statistics+affine)")
    assert not any(p.requires_grad for p in layer.parameters())
    assert all(p.requires_grad for p in nw.unfreeze(layer).parameters())


def test_a_weight_that_two_layers_share_and_one_that_is_computed_come_back():
    first, second = ours(), ours()
    second.weight = first.weight
    parametrize.register_parametrization(second, "bias", nn.Softplus())
    model = nn.Sequential(first, second, nn.Linear(7, 7))
    nw.freeze(model, affine=True)
    assert [p.requires_grad for p in model.parameters()] == [False, False, False, True, True]
    nw.unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


# --- what it survives -----------------------------------------------------------------------------------------


def saved(layer):
    torch.save(layer, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


def trained(layer):
    for mode in (False, True):
        nn.Sequential(layer).train(mode)
    return layer


SURVIVED = {
    "train": trained,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": saved,
    "double and back": lambda layer: layer.double().float(),
    "half and back": lambda layer: layer.bfloat16().float(),
    "convert": nw.convert,
}
AS = pytest.mark.parametrize(
    "how",
    [{}, {"affine": True}, {"statistics": False, "affine": True}, {"statistics": False}],
    ids=["statistics", "both", "affine", "nothing"],
)


@AS
@pytest.mark.parametrize("survived", SURVIVED)
def test_what_is_frozen_stays_frozen_through(survived, how):
    layer = SURVIVED[survived](nw.freeze(ours(), **how))
    is_frozen(layer, **how)
    is_frozen(nw.unfreeze(layer), statistics=False)


@AS
@pytest.mark.parametrize("assign", [False, True], ids=["", "assign"])
@pytest.mark.parametrize("source", ["ours", "torch's", "frozen otherwise"])
def test_loading_brings_values_and_freezes_and_unfreezes_nothing(source, assign, how):
    layer = nw.freeze(nw.BatchNorm1d(5), **how)
    # a frozen source has frozen nothing in its state_dict, which loads into a torch layer too
    given = {"ours": ours(), "torch's": twins(X)[1], "frozen otherwise": nw.freeze(ours(), affine=True)}[
        source
    ]
    values = state(given)
    assert list(values) == list(state(twins(X)[1]))
    layer.load_state_dict(copy.deepcopy(given.state_dict()), strict=True, assign=assign)
    untouched(layer, values)
    is_frozen(layer, **how)
    twins(X)[1].load_state_dict(layer.state_dict(), strict=True)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_lazy_layer_is_frozen_at_its_first_batch_already():
    layer = nw.freeze(nw.LazyBatchNorm1d(), affine=True)
    layer(X)
    assert type(layer) is nw.BatchNorm1d
    untouched(layer, state(nw.BatchNorm1d(5)))
    is_frozen(layer, affine=True)
    is_frozen(nw.unfreeze(layer), statistics=False)


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [nw.freeze, nw.unfreeze])
@pytest.mark.parametrize("foreign", [nn.BatchNorm2d(3), nn.SyncBatchNorm(3)], ids=lambda m: type(m).__name__)
def test_a_norm_of_torchs_is_named_and_nothing_changes(foreign, call):
    first = ours() if call is nw.freeze else nw.freeze(ours(), affine=True)
    model = nn.Sequential(first, nn.ModuleDict({"norm": foreign}))
    name = type(foreign).__name__
    words = rf"^normwright.torch.{call.__name__}: .*{name} at '1.norm'. Call normwright.torch.convert"
    with pytest.raises(nw.DtypeError, match=words):
        call(model)
    is_frozen(first, statistics=call is nw.unfreeze, affine=call is nw.unfreeze)
    if call is nw.freeze:
        is_frozen(nw.freeze(nw.convert(nn.Sequential(first, nn.BatchNorm2d(3))))[0])


def test_a_layer_without_statistics_is_named_and_nothing_is_frozen():
    model = nn.Sequential(ours(), nn.Sequential(nw.BatchNorm1d(5, track_running_stats=False)))
    words = r"^normwright.torch.freeze: expected layers with running statistics, got .* at '1.0'"
    with pytest.raises(nw.ShapeError, match=words):
        nw.freeze(model, affine=True)
    is_frozen(model[0], statistics=False)
    nw.freeze(model, statistics=False, affine=True)  # its weights can be
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("call", [nw.freeze, nw.unfreeze, partial(nw.param_groups, weight_decay=0.1)])
def test_what_is_no_module_is_refused_by_name(call):
    with pytest.raises(nw.DtypeError, match=r"^normwright.torch.\w+: expected a torch.nn.Module, got \[\]"):
        call([])


# --- together with the rest -----------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_a_frozen_layer_is_checkpointed_and_put_in_a_scope(reentrant, x):
    layer, other = nw.freeze(ours(x)), nw.freeze(ours(x))
    before, dy = state(layer), x.sin()
    want = step(other, x, dy)
    with nw.no_stat_update(layer):
        same_steps(step(layer, x, dy), want)
        z = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = checkpoint(layer, z, use_reentrant=reentrant)
    y.backward(dy)
    same_bits("dx", z.grad, want.dx)
    untouched(layer, before)


def test_a_compiled_model_sees_what_is_frozen_and_unfrozen_later():
    layer = ours()
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    counts = []
    for change in (nw.unfreeze, nw.freeze, nw.unfreeze, nw.freeze):
        change(layer)
        compiled(X)
        counts.append(layer.num_batches_tracked.item())
    assert counts == [1, 1, 2, 2]
    # both are torch's own batch norm, which the compiler calls in either case
    same_bits("y", compiled(X), torch.compile(layer.eval(), backend="eager")(X))


def test_a_frozen_layer_in_training_is_open_to_function_transforms():
    layer = nw.freeze(ours())
    each = func.vmap(layer)(torch.stack([X, 2 * X]))
    for got, want in zip(each, (layer(X), layer(2 * X)), strict=True):
        # a few roundings of values below 32
        torch.testing.assert_close(got, want, rtol=0, atol=64 * 2.0**-24 * 32)


# --- param_groups ---------------------------------------------------------------------------------------------


class Conditional(nw.BatchNorm2d):
    """A norm that holds a layer which is none, as conditional batch norms do."""

    def __init__(self):
        super().__init__(4)
        self.embedding = nn.Embedding(3, 4)


def parametrized(norm):
    parametrize.register_parametrization(norm, "weight", nn.Softplus())
    return norm


NORMS = {
    "ours": lambda: nw.BatchNorm2d(4),
    "ours, lazy": nw.LazyBatchNorm2d,
    "batch norm": lambda: nn.BatchNorm1d(4),
    "synchronized": lambda: nn.SyncBatchNorm(4),
    "instance norm": lambda: nn.InstanceNorm3d(4, affine=True),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm": lambda: nn.LayerNorm([4, 3]),
    "RMS norm": lambda: nn.RMSNorm(4),
    "a subclass": lambda: type("Mine", (nn.LayerNorm,), {})(4),
    "ours, parametrized": lambda: parametrized(nw.BatchNorm2d(4)),
    "torch's, parametrized": lambda: parametrized(nn.BatchNorm2d(4)),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("name", NORMS)
def test_weights_of_every_norm_are_spared(name):
    norm = NORMS[name]()
    model = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(norm, nn.Conv2d(2, 2, 1))])
    decayed, kept = nw.param_groups(model, 0.25)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.25, 0.0)
    others = [*model[0].parameters(), *model[1][1].parameters()]
    assert [id(p) for p in decayed["params"]] == [id(p) for p in others]
    assert [id(p) for p in kept["params"]] == [id(p) for p in norm.parameters()]
    assert kept["params"]


def test_a_layer_inside_a_norm_is_none():
    norm = Conditional()
    decayed, kept = nw.param_groups(norm, 0.25)
    assert [id(p) for p in decayed["params"]] == [id(norm.embedding.weight)]
    assert [id(p) for p in kept["params"]] == [id(norm.weight), id(norm.bias)]


def test_tied_parameters_come_once_and_a_norms_is_spared_wherever_else_it_is_used():
    linear, tied, norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
    tied.weight, linear.bias = linear.weight, norm.bias
    decayed, kept = nw.param_groups(nn.Sequential(linear, tied, norm, norm), 0.25)
    assert [id(p) for p in decayed["params"]] == [id(p) for p in (linear.weight, tied.bias)]
    assert [id(p) for p in kept["params"]] == [
        id(p) for p in (norm.bias, norm.weight)
    ]  # in the model's order


def test_a_group_without_parameters_is_left_out():
    (only,) = nw.param_groups(nn.Linear(2, 2), 0.25)
    assert only["weight_decay"] == 0.25
    (only,) = nw.param_groups(nn.LayerNorm(2), 0.25)
    assert only["weight_decay"] == 0.0
    assert nw.param_groups(nn.BatchNorm2d(2, affine=False), 0.25) == []


@pytest.mark.parametrize("decay", [-1e-4, float("nan")])
def test_a_decay_that_cannot_be_is_refused(decay):
    with pytest.raises(
        nw.ShapeError, match=r"^normwright.torch.param_groups: expected weight_decay >= 0, got"
    ):
        nw.param_groups(nn.Linear(2, 2), decay)


def test_a_step_decays_the_others_alone():
    model = nn.Sequential(nn.Linear(4, 5), nw.BatchNorm1d(5), nn.Linear(5, 2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(nw.param_groups(model, 0.5), lr=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        same_bits(
            name, p.detach(), before[name] * (1 if name.startswith("1.") else 0.75)
        )  # exact powers of 2
