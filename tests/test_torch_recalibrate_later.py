"""Sequential recalibration: what the first batch does not show, and what leaves the tensors."""

import pytest
import torch

import normwright.torch as nw
from beside_torch import state, untouched
from every_kernel import run_python
from wired import DATA, Net, meets

# --- what later batches show --------------------------------------------


def by_steps(net, x):
    """As many steps as the batch is long, less three."""
    hidden = torch.zeros_like(x)
    for step in range(x.shape[0] - 3):
        hidden = net.block("b", net.block("a", hidden + x[step]))
    return hidden


@pytest.mark.parametrize("longest", [0, 1, 2], ids=["first", "second", "last"])
def test_a_layer_is_measured_in_all_of_its_uses_whichever_batch_shows_them(longest):
    data = [x[:4] for x in DATA]
    data[longest] = DATA[longest]  # four steps in place of one
    net, joint = Net("ab", by_steps), Net("ab", by_steps)
    drift = nw.recalibrate(net, data, order="sequential")
    assert [layer.count for layer in drift.layers] == [4 + 4 + 4 * 7] * 2
    # behind themselves and one another, the layers are measured as in joint order; where the first batch shows a
    # chain of two, that takes two passes, and one more anew
    nw.recalibrate(joint, data)
    untouched(net, state(joint))
    assert drift.passes == (1 if longest == 0 else 3)


def twice_if_small(net, x):
    x = net.block("a", x)
    if len(x) < 7:
        x = net.block("a", x)
    return net.block("b", x)


def test_a_pass_that_ended_too_early_is_done_again():
    data = [DATA[0], DATA[1][:4]]
    net = Net("ab", twice_if_small)
    told = []
    drift = nw.recalibrate(net, data, order="sequential", progress=lambda *now: told.append(now))
    assert [layer.count for layer in drift.layers] == [7 + 2 * 4, 7 + 4]
    assert (drift.passes, told[0], told[-1]) == (4, (0, 4), (8, 8))
    meets(net, "b", data)
    assert net.b.num_batches_tracked == 2


def by_way_of_two(net, x):
    x = net.block("a", x)
    return x if len(x) > 6 else net.block("c", net.block("b", x))


def test_layers_that_later_batches_reach_one_behind_the_other_meet_final_statistics():
    data = [DATA[0], DATA[1][:4], DATA[2][:5] * 4]
    net = Net("abc", by_way_of_two)
    assert nw.recalibrate(net, data, order="sequential").passes == 3
    for name in "abc":
        meets(net, name, data)


def by_a_detour(net, x):
    x = net.block("a", x)
    return net.block("c", x if len(x) > 6 else net.block("b", x))


def test_a_layer_behind_one_that_only_a_later_batch_reaches_is_measured_again():
    data = [DATA[0], DATA[1][:4], DATA[2]]
    net = Net("abc", by_a_detour)
    assert nw.recalibrate(net, data, order="sequential").passes == 2 + 3
    for name in "abc":
        meets(net, name, data)


# --- what is followed ---------------------------------------------------


def through_a_count(net, x):
    a = net.block("a", x)
    return net.block("b", x * a[a > 0.5].shape[0])


def through_distinct_values(net, x):
    a = net.block("a", x)
    return net.block("b", x * len(a.round().unique()))


@pytest.mark.parametrize("wire", [through_a_count, through_distinct_values])
def test_a_shape_that_depends_on_values_is_followed(wire):
    net = Net("ab", wire)
    assert nw.recalibrate(net, DATA, order="sequential").passes == 2
    meets(net, "b", DATA)


def through_places(net, x):
    a = net.block("a", x)
    picked = a[torch.arange(7)]  # indices, and no mask: its shape says nothing of the values
    return net.block("b", x * len(picked))


def test_a_shape_that_indices_have_is_waited_for_by_nobody():
    assert nw.recalibrate(Net("ab", through_places), DATA, order="sequential").passes == 1


CONDITION = """
import torch
import normwright.torch as nw
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    def forward(self, x):
        x = self.a(x)
        return self.b(torch.cond(x.sum() > 0, lambda t: t.sin(), lambda t: t.cos(), (x,)))
print(nw.recalibrate(Net(), [torch.randn(4, 3)] * 2, order="sequential").passes)
print(nw.recalibrate(Net(), [torch.randn(4, 3)] * 2, order="sequential").passes)
"""


def test_a_branch_that_is_an_operation_is_followed():
    # in a process of its own: torch's compiler is loaded by the first such branch
    assert run_python(CONDITION).split() == ["2", "2"]
