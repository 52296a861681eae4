"""`recalibrate`: what it takes, what it refuses, and that a model is as it was after anything that went wrong."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import normwright.torch as nw
from beside_torch import agree, normal, state, untouched
from normwright.torch.statistics import measuring, writing

BATCHES = [normal(6, 3, seed=k) for k in range(3)]


def network(norm=nn):
    torch.manual_seed(0)
    return nn.Sequential(
        norm.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3), norm.BatchNorm1d(3), nn.Linear(3, 2)
    )


def everything(model):
    """Buffers' identity and version, modes and hooks: what must not change."""
    found = {}
    for name, module in model.named_modules():
        hooks = tuple(len(getattr(module, kind)) for kind in vars(module) if "hooks" in kind)
        buffers = [(key, id(t), None if t is None else t._version) for key, t in module._buffers.items()]
        found[name] = (module.training, hooks, buffers, type(module))
    return found


# --- what goes wrong ----------------------------------------------------


class Fails(nn.Module):
    """Raises at the n-th batch."""

    def __init__(self, error, at):
        super().__init__()
        self.error, self.left = error, at

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return x


@pytest.mark.parametrize("norm", [nn, nw], ids=["torch's layers", "ours"])
@pytest.mark.parametrize("order", ["joint", "sequential"])
@pytest.mark.parametrize(
    "error", [RuntimeError("of the model"), KeyboardInterrupt()], ids=["error", "Ctrl-C"]
)
@pytest.mark.parametrize("at", [1, 3], ids=["first batch", "third batch"])
def test_a_run_that_fails_leaves_the_model_as_it_was(norm, order, error, at):
    model = network(norm)
    model.insert(3, Fails(error, at))
    model.train()
    model[1].eval()  # a mode of its own
    with_hook = model[0].register_forward_pre_hook(lambda module, args: None)
    before, values = everything(model), state(model)
    with pytest.raises(type(error)):
        nw.recalibrate(model, BATCHES, order=order)
    assert everything(model) == before
    untouched(model, values)
    with_hook.remove()


class Counts(nn.BatchNorm1d):
    """Counts in evaluation too, and moves its statistics."""

    def forward(self, input):
        self.num_batches_tracked.add_(1)
        self.running_mean.mul_(0.5)
        return input


def test_a_layer_that_moves_in_evaluation_is_as_it_was_all_the_same():
    model = nn.Sequential(Counts(3), Fails(RuntimeError("of the model"), 2))
    model[0].running_mean.fill_(4.0)
    before, values = everything(model), state(model)
    with pytest.raises(RuntimeError, match="of the model"):
        nw.recalibrate(model, BATCHES)
    assert everything(model) == before
    untouched(model, values)


def test_a_run_that_succeeds_leaves_modes_and_hooks_and_warns_of_nothing():
    model = network(nw).train()
    model[1].eval()
    before = everything(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nw.recalibrate(model, BATCHES, order="sequential")
    for name, (training, hooks, buffers, kind) in everything(model).items():
        assert (training, hooks, kind) == (before[name][0], before[name][1], before[name][3])
        assert [b[:2] for b in buffers] == [b[:2] for b in before[name][2]]
        # written once, at the end, where autograd sees it
        assert [b[2] - a[2] for b, a in zip(buffers, before[name][2], strict=True)] == [1] * len(buffers)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_a_batch_that_is_not_finite_is_named_and_leaves_the_model_as_it_was(bad, order):
    model = network(nw)
    before, values = everything(model), state(model)
    data = [x.clone() for x in BATCHES]
    data[2][4, 1] = bad
    with pytest.raises(
        nw.NonfiniteError, match=r"input of 0 \(.*BatchNorm1d\), got NaN .* channel 1, in batch 3"
    ):
        nw.recalibrate(model, data, order=order)
    assert everything(model) == before
    untouched(model, values)


def test_statistics_beyond_the_buffers_type_are_refused():
    model = nn.BatchNorm1d(1).half()
    before = state(model)
    with pytest.raises(
        nw.NonfiniteError, match=r"statistics that torch\.float16 holds .* variance up to 8e\+08"
    ):
        nw.recalibrate(model, [torch.tensor([[-2e4], [2e4]], dtype=torch.float16)])
    untouched(model, before)


def test_an_interruption_while_statistics_are_written_leaves_the_old_ones(monkeypatch):
    model = network()
    values = state(model)
    copy, written = writing.copy, []

    def interrupted(writes):
        if not written:
            written.append(True)
            copy(writes[:3])
            raise KeyboardInterrupt
        copy(writes)

    monkeypatch.setattr(measuring, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nw.recalibrate(model, BATCHES)
    assert written
    untouched(model, values)


def test_a_models_own_training_mode_cannot_spoil_its_statistics():
    def forward(model, x):
        model.train()
        model[1].eval()
        return model(x)

    model, want = network(), network()
    nw.recalibrate(model, BATCHES, forward=forward)
    nw.recalibrate(want, BATCHES)
    untouched(model, state(want))


# --- what a batch may be ------------------------------------------------


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, *, x, scale):
        assert isinstance(x, torch.Tensor)
        return self.norm(x * scale)


KINDS = {
    "tensors": [BATCHES, None],
    "tuples with a target": [[(x, torch.zeros(6)) for x in BATCHES], None],
    "lists with a target": [[[x, "target"] for x in BATCHES], None],
    "a DataLoader": [DataLoader(TensorDataset(torch.cat(BATCHES), torch.zeros(18)), batch_size=6), None],
    "a generator": [(x for x in BATCHES), None],
    "dicts by forward": [[{"pixels": x} for x in BATCHES], lambda model, batch: model(batch["pixels"])],
    "anything by forward": [[SimpleNamespace(x=x) for x in BATCHES], lambda model, batch: model(batch.x)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_every_kind(kind):
    data, forward = KINDS[kind]
    model, want = network(), network()
    drift = nw.recalibrate(model, data, forward=forward)
    nw.recalibrate(want, BATCHES)
    untouched(model, state(want))
    assert drift.batches == 3


def test_a_dict_is_keywords():
    model, want = Named(), nn.BatchNorm1d(3)
    nw.recalibrate(model, [({"x": x, "scale": 2}, "target") for x in BATCHES])
    nw.recalibrate(want, [2 * x for x in BATCHES])
    untouched(model.norm, state(want))
    assert nw.recalibrate(model, [{"x": x, "scale": 2} for x in BATCHES]).batches == 3


class Sequence:
    """Indexed, and without an iterator of its own."""

    def __getitem__(self, index):
        return BATCHES[index]


def test_an_indexed_sequence_is_read_again_in_every_pass():
    model, want = network(), network()
    assert nw.recalibrate(model, Sequence(), order="sequential").passes == 2
    nw.recalibrate(want, BATCHES, order="sequential")
    untouched(model, state(want))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ("text", "got builtins.str"),
        ([[1.0, 2.0]], "got builtins.list of list"),
        ((), "got builtins.tuple"),
        (BATCHES[0].numpy(), "got numpy.ndarray"),
    ],
    ids=["a string", "a list of numbers", "an empty tuple", "an array"],
)
def test_a_batch_of_no_known_kind_is_refused(batch, words):
    with pytest.raises(nw.DtypeError, match=f"{words}.* Pass forward="):
        nw.recalibrate(network(), [batch])


class Spent:
    """Looks as if it could be read again, and cannot."""

    def __init__(self):
        self.read = iter(BATCHES)

    def __iter__(self):
        return self.read


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (
            nw.DtypeError,
            "batches to be an iterable of batches, got torch.Tensor. For one batch",
            [BATCHES[0]],
        ),
        (nw.DtypeError, "iterable of batches, got builtins.dict", [{"x": BATCHES[0]}]),
        (nw.DtypeError, "iterable of batches, got builtins.int", [3]),
        (nw.DtypeError, "one-shot list_iterator. Pass a list", [iter(BATCHES), {"order": "sequential"}]),
        (nw.ShapeError, "3 batches in every pass, got 0. .* one-shot", [Spent(), {"order": "sequential"}]),
        (nw.ShapeError, "at least one batch, got none", [[]]),
        (nw.ShapeError, "at least one batch, got none", [[], {"order": "sequential"}]),
        (nw.ShapeError, r"method to be one of \('pooled', .* got 'mean'", [BATCHES, {"method": "mean"}]),
        (nw.ShapeError, "order to be one of .* got 'both'", [BATCHES, {"order": "both"}]),
        (nw.DtypeError, "forward to be a function", [BATCHES, {"forward": 3}]),
        (nw.DtypeError, "prior to be a number of samples, got True", [BATCHES, {"prior": True}]),
        (nw.ShapeError, "prior >= 0 and finite, got -1", [BATCHES, {"prior": -1}]),
        (nw.ShapeError, "prior >= 0 and finite, got nan", [BATCHES, {"prior": float("nan")}]),
        (nw.ShapeError, "no prior with method='moving'", [BATCHES, {"prior": 1, "method": "moving"}]),
        (nw.DtypeError, "progress to be None, True, False or a function", [BATCHES, {"progress": "yes"}]),
        (nw.ShapeError, "an initialized process group, got none", [BATCHES, {"group": "world"}]),
        (nw.ShapeError, r"running_mean of shape \(5,\), got \(3,\)", [[torch.ones(4, 5)]]),
        (nw.ShapeError, r"more than 1 value per channel in all batches for 0 \(", [[torch.ones(1, 3)]]),
        (
            nw.ShapeError,
            r"more than 1 value per channel in every batch of 0 \(.*got 1 in batch 2. Leave that batch out",
            [[torch.randn(4, 3), torch.randn(1, 3)], {"method": "algorithm2"}],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(error, words, arguments):
    batches, options = (*arguments, {})[:2]
    model = network()
    before, values = everything(model), state(model)
    with pytest.raises(error, match=rf"^normwright\.torch\.recalibrate.*{words}"):
        nw.recalibrate(model, batches, **options)
    assert everything(model) == before
    untouched(model, values)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")  # torch's, at each one
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(2, 2), "got none"),
        (nn.BatchNorm1d(3, track_running_stats=False), "got none"),
        (nw.freeze(nw.BatchNorm1d(3)), "got 1, all frozen. Call normwright.torch.unfreeze"),
        (nn.LazyBatchNorm1d(), "got '' before its first batch"),
        (nn.BatchNorm1d(3, device="meta"), "got '' on the meta device"),
    ],
    ids=["no layer", "no statistics", "frozen", "lazy", "meta"],
)
def test_a_model_without_statistics_to_measure_is_refused(model, words):
    with pytest.raises(nw.ShapeError, match=words):
        nw.recalibrate(model, BATCHES)
    with pytest.raises(nw.DtypeError, match=r"a torch\.nn\.Module"):
        nw.recalibrate(model.forward, BATCHES)


def test_statistics_that_are_not_finite_are_nothing_to_go_on_from():
    model = network()
    model[3].running_var.fill_(float("nan"))
    for options in ({"prior": 4}, {"method": "moving"}):
        with pytest.raises(
            nw.NonfiniteError, match=r"finite statistics to go on from in 3 .* without a prior"
        ):
            nw.recalibrate(model, BATCHES, **options)


def test_a_function_transform_is_refused():
    def forward(model, x):
        return torch.func.vmap(model, randomness="error")(x[None])

    with pytest.raises(nw.TransformError, match="no function transform around 0"):
        nw.recalibrate(network(), BATCHES, forward=forward)


def test_inference_mode_is_no_hindrance():
    want, model = network(), network()
    nw.recalibrate(want, BATCHES, order="sequential")
    with torch.inference_mode():
        nw.recalibrate(model, BATCHES, order="sequential")
        born = network()
    nw.recalibrate(born, BATCHES, order="sequential")
    for got in (model, born):
        untouched(got, state(want))


# --- wrappers and progress ----------------------------------------------


def test_a_compiled_model_is_run_as_itself():
    model, want = network(nw), network(nw)
    compiled = torch.compile(model, backend="eager")
    compiled(BATCHES[0])  # a program exists, which knows no hooks
    model.load_state_dict(want.state_dict())
    drift = nw.recalibrate(compiled, BATCHES)
    nw.recalibrate(want, BATCHES)
    untouched(model, state(want))
    assert [layer.name for layer in drift.layers] == ["0", "3"]


def test_a_part_that_is_compiled_is_run_as_itself():
    model, want = network(nw), network(nw)
    model.eval()
    model[0].compile(backend="eager")
    model(BATCHES[0])
    model.train()
    nw.recalibrate(model, BATCHES)
    nw.recalibrate(want, BATCHES)
    untouched(model, state(want))


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_progress_is_told_batch_by_batch(order):
    told = []
    nw.recalibrate(network(), BATCHES, order=order, progress=lambda *now: told.append(now))
    total = 3 if order == "joint" else 6
    assert told == [(k, total) for k in range(total + 1)]
    told.clear()
    nw.recalibrate(network(), iter(BATCHES), progress=lambda *now: told.append(now))
    assert told == [(k, None) for k in range(4)]


def test_a_bar_says_how_many_passes_there_are(capfd):
    nw.recalibrate(network(), BATCHES, order="sequential", progress=True)
    assert "recalibrate: 2 passes" in capfd.readouterr().err
    nw.recalibrate(network(), BATCHES, progress=False)
    nw.recalibrate(network(), BATCHES)  # stderr is no terminal
    assert capfd.readouterr() == ("", "")


def test_rounding_once_is_not_torchs_rounding_twice():
    # half a unit of bfloat16 and a little more, which float32 does not hold: to nearest twice is down to even
    value = np.array([1 + 2.0**-8 + 2.0**-40, -(1 + 2.0**-8 + 2.0**-40), 2.0**-140, 1e300, 0.0])
    like = torch.zeros(5, dtype=torch.bfloat16)
    got = writing.rounded(value, like)
    inf = float("inf")
    agree("rounded", got[:3].double(), torch.tensor([1 + 2.0**-7, -1 - 2.0**-7, 0.0]).double(), 1e-38)
    assert got[3:].tolist() == [inf, 0.0]
    assert torch.from_numpy(value).to(torch.bfloat16)[0].item() == 1.0
