"""Batches of one value per channel, which training cannot normalize; and the layers' options beyond torch's."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import BaseTorchDispatchMode

import normwright.torch as nw
from beside_torch import LAST, NAMES, normal, same_bits, state, twins, untouched

F64 = torch.float64


def ours(x, **options):
    """Our layer for x; weights and statistics are not the initial ones."""
    layer = getattr(nw, NAMES[x.dim()])(x.shape[1], **options).to(x.dtype)
    layer.load_state_dict(twins(x)[1].state_dict())
    return layer


ONE = {
    "(1, C)": lambda: normal(1, 5),
    "(1, C, 1)": lambda: normal(1, 5, 1),
    "(1, C, 1, 1)": lambda: normal(1, 5, 1, 1),
    "channels-last": lambda: normal(1, 5, 1, 1).contiguous(memory_format=LAST),
    "(1, C, 1, 1, 1)": lambda: normal(1, 5, 1, 1, 1),
    "float64": lambda: normal(1, 5, dtype=F64),
}


@pytest.mark.parametrize("name", ONE)
def test_one_value_raises_and_the_words_say_what_to_do(name):
    x = ONE[name]()
    layer, theirs = twins(x)
    before = state(layer)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        theirs(x)
    with pytest.raises(ValueError, match=re.escape(str(tuple(x.shape)))) as error:
        layer(x)
    for part in ("one value per channel", "drop_last", ".eval()", "on_degenerate='running'"):
        assert part in str(error.value)
    untouched(layer, before)
    layer.eval()(x)


@pytest.mark.parametrize("call", ["eager", "a mode", "compiled"])
@pytest.mark.parametrize("name", ONE)
def test_one_value_takes_the_running_statistics_where_asked(name, call):
    x = ONE[name]()
    layer, other = ours(x, on_degenerate="running"), ours(x).eval()
    before, dy = state(layer), x.cos()
    run, run_other = layer, other
    if call == "compiled":
        torch.compiler.reset()
        run, run_other = (torch.compile(m, backend="eager", fullgraph=True) for m in (layer, other))
    with BaseTorchDispatchMode() if call == "a mode" else nullcontext():
        got, want = (step_of(m, f, x, dy) for m, f in ((layer, run), (other, run_other)))
        untouched(layer, before)
        run(torch.cat([x, x + 1]))  # two values are a batch again
    for part, t in want.items():
        same_bits(part, got[part], t)
    assert layer.num_batches_tracked.item() == 1
    assert (layer.training, "on_degenerate='running'" in repr(layer)) == (True, True)


def step_of(layer, f, x, dy):
    z = x.clone().requires_grad_()
    y = f(z)
    y.backward(dy)
    return {"y": y.detach(), "dx": z.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad}


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("make", [lambda **o: nw.BatchNorm2d(5, **o), nw.LazyBatchNorm2d], ids=["", "lazy"])
@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (
            {"on_nonfinite": "ignore"},
            nw.ShapeError,
            "expected on_nonfinite to be one of ('skip', 'raise', 'propagate')",
        ),
        ({"on_nonfinite": None}, nw.ShapeError, "expected on_nonfinite to be one of"),
        (
            {"on_degenerate": "skip"},
            nw.ShapeError,
            "expected on_degenerate to be one of ('raise', 'running')",
        ),
        (
            {"on_degenerate": "running", "track_running_stats": False},
            nw.ShapeError,
            "expected track_running_stats=True with on_degenerate='running', got False",
        ),
        ({"channel_dim": 1.0}, nw.DtypeError, "expected channel_dim to be an integer, got 1.0"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_at_once(options, kind, words, make):
    with pytest.raises(kind, match=rf"^normwright\.torch\.(Lazy)?BatchNorm2d: {re.escape(words)}"):
        make(**options)
