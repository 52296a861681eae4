"""Sequential recalibration: each layer behind final statistics, in few passes that end early."""

import copy

import pytest
import torch
from torch import nn

import normwright.torch as nw
from beside_torch import agree, state, untouched
from normwright.torch.statistics.dependencies import levels
from wired import BOUND, DATA, F64, Net


def chain(net, x):
    for name in "abc":
        x = net.block(name, x)
    return x


def branches(net, x):
    x = net.block("a", x)
    left = net.block("c", net.block("b", x))
    right = net.block("d", x)
    return net.block("e", left + right)


def in_place(net, x):
    a = net.block("a", x)
    room = torch.zeros(a.shape, dtype=F64)
    room[:, 1:] = a[:, 1:]
    return net.block("b", room)


def in_place_and_nothing_returned(net, x):
    a = net.block("a", x)
    room = torch.zeros(a.shape, dtype=F64)
    torch._foreach_add_([room], [a])
    return net.block("b", room)


def through_numpy(net, x):
    a = net.block("a", x)
    return net.block("b", torch.from_numpy(a.detach().numpy() * 2.0))


def through_a_number(net, x):
    a = net.block("a", x)
    return net.block("b", x * a.sum().item())


def through_a_branch(net, x):
    a = net.block("a", x)
    return net.block("b", x if a.sum() > 1e9 else -x)


def through_an_index(net, x):
    a = net.block("a", x)
    return net.block("b", x[a.argmax(0)])


def without_gradient(net, x):
    with torch.no_grad():
        a = net.block("a", x)
    return net.block("b", a.detach().clone())


def side_by_side(net, x):
    return net.block("a", x) + net.block("b", x.flip(0))


WIRES = {
    "a chain": (chain, "abc", ["a", "b", "c"]),
    "branches": (branches, "abcde", ["a", "bd", "c", "e"]),
    "in place": (in_place, "ab", ["a", "b"]),
    "in place, nothing returned": (in_place_and_nothing_returned, "ab", ["a", "b"]),
    "through NumPy": (through_numpy, "ab", ["a", "b"]),
    "through a number": (through_a_number, "ab", ["a", "b"]),
    "through a branch": (through_a_branch, "ab", ["a", "b"]),
    "through an index": (through_an_index, "ab", ["a", "b"]),
    "without gradient": (without_gradient, "ab", ["a", "b"]),
    "side by side": (side_by_side, "ab", ["ab"]),
}


def one_by_one(net, order):
    """The plain way: for each layer a whole run of the model in evaluation, what it sees kept in full."""
    net.eval()
    for name in order:
        seen = []
        layer = net.get_submodule(name)
        handle = layer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for x in DATA:
                net(x)
            handle.remove()
            layer.running_mean.copy_(torch.cat(seen).mean(0))
            layer.running_var.copy_(torch.cat(seen).var(0))
    return net


@pytest.mark.parametrize("wiring", WIRES)
def test_each_layer_is_measured_behind_final_statistics_in_few_passes(wiring):
    wire, names, groups = WIRES[wiring]
    net, want = Net(names, wire), Net(names, wire)
    drift = nw.recalibrate(net, DATA, order="sequential")
    one_by_one(want, [layer.name for layer in drift.layers])
    for name, t in want.state_dict().items():
        if "running" in name:
            agree(name, net.state_dict()[name], t, BOUND * max(1, t.abs().max().item()))
    assert drift.passes == len(groups)
    assert sorted(layer.name for layer in drift.layers) == list(names)


def test_after_sequential_recalibration_evaluation_has_the_statistics_it_meets():
    net = Net("abcde", branches)
    nw.recalibrate(net, DATA, order="sequential")
    before = state(net)
    again = nw.recalibrate(net, DATA, order="sequential")
    for layer in again.layers:
        agree("shift", torch.from_numpy(layer.mean_shift), torch.zeros(3, dtype=F64), BOUND * 10)
        agree("ratio", torch.from_numpy(layer.var_ratio), torch.ones(3, dtype=F64), BOUND * 10)
    for name, t in net.state_dict().items():
        agree(name, t.double(), before[name].double(), BOUND * 10)


def count_runs(net):
    """How often each linear map runs."""
    runs = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            runs[name] = 0

            def count(module, args, name=name):
                runs[name] += 1

            module.register_forward_pre_hook(count)
    return runs


def test_no_more_of_the_network_is_run_than_a_pass_needs():
    net = Net("abc", lambda net, x: net.to_tail(chain(net, x)))
    net.to_tail = nn.Linear(3, 3).double()
    runs = count_runs(net)
    nw.recalibrate(net, DATA, order="sequential")
    # One look at the first batch runs everything; then three passes of three batches, each a layer further, and the
    # last to the end, to see whether another batch uses a layer more often.
    assert runs == {"to_a": 10, "to_b": 7, "to_c": 4, "to_tail": 4}


def test_a_model_that_catches_everything_cannot_spoil_its_statistics():
    def wire(net, x):
        try:
            return chain(net, x)
        except BaseException:
            return chain(net, x * 1e3)

    net, want = Net("abc", wire), Net("abc", chain)
    nw.recalibrate(net, DATA, order="sequential")
    nw.recalibrate(want, DATA, order="sequential")
    untouched(net, state(want))


def recurrent(net, x):
    hidden = torch.zeros_like(x)
    for step in range(x.shape[0] - 4):  # more steps for longer batches
        hidden = net.block("a", hidden + x[step])
    return net.block("b", hidden)


def test_a_layer_behind_itself_is_measured_over_all_steps_of_every_batch():
    data = [DATA[0][:5], DATA[1], DATA[2][:6]]
    net, joint = Net("ab", recurrent), Net("ab", recurrent)
    drift = nw.recalibrate(net, [DATA[1], *data], order="sequential")
    nw.recalibrate(joint, [DATA[1], *data])
    assert drift.passes == 2
    assert [layer.count for layer in drift.layers] == [2 * 7 * 3 + 5 + 6 * 2, 7 + 5 + 7 + 6]
    untouched(net.a, state(joint.a))  # normalizing by its batch: there is nothing else
    behind = []
    net.eval()
    net.b.register_forward_pre_hook(lambda module, args: behind.append(args[0].detach()))
    for x in [DATA[1], *data]:
        net(x)
    agree("mean", net.b.running_mean, torch.cat(behind).mean(0), BOUND)
    agree("var", net.b.running_var, torch.cat(behind).var(0), BOUND)


def by_size(net, x):
    x = net.block("a", x)
    return net.block("b", x) if len(x) > 6 else net.block("c", x)


def test_layers_that_only_later_batches_reach_are_measured_in_one_more_pass():
    data = [DATA[0], DATA[1][:4], DATA[2]]
    net = Net("abc", by_size)
    told = []
    drift = nw.recalibrate(net, data, order="sequential", progress=lambda *now: told.append(now))
    assert (drift.passes, drift.unreached) == (3, ())
    assert told[0] == (0, 6)  # two passes, as the first batch shows
    assert told[-1] == (9, 9)
    net.eval()
    with torch.no_grad():
        seen = net.to_c(net.block("a", DATA[1][:4]))
    agree("mean", net.c.running_mean, seen.mean(0), BOUND)


def test_layers_that_later_batches_reach_behind_all_others_are_measured_too():
    net = Net("ab", lambda net, x: net.block("b", net.block("a", x)) if len(x) < 7 else net.block("a", x))
    drift = nw.recalibrate(net, [DATA[0], DATA[1][:4]], order="sequential")
    assert (drift.passes, [layer.count for layer in drift.layers]) == (2, [11, 4])


def test_layers_that_no_batch_reaches_cost_no_pass():
    net = Net("abcz", chain)
    drift = nw.recalibrate(net, DATA, order="sequential")
    assert (drift.passes, drift.unreached) == (3, ("z",))


def test_a_first_batch_that_reaches_nothing_is_no_hindrance():
    net = Net("a", lambda net, x: net.block("a", x) if len(x) > 6 else x)
    drift = nw.recalibrate(net, [DATA[0][:3], DATA[1], DATA[2]], order="sequential")
    assert [layer.count for layer in drift.layers] == [14]


def test_joint_and_sequential_are_not_the_same():
    joint, sequential = Net("abc", chain), Net("abc", chain)
    nw.recalibrate(joint, DATA)
    nw.recalibrate(sequential, DATA, order="sequential")
    untouched(joint.a, state(sequential.a))
    assert (joint.b.running_var - sequential.b.running_var).abs().max() > 0.01


def test_our_layers_and_torchs_take_the_same_passes():
    ours, theirs = Net("abcde", branches), Net("abcde", branches)
    nw.convert(ours)
    copies = copy.deepcopy(ours)
    a, b = (nw.recalibrate(net, DATA, order="sequential") for net in (ours, theirs))
    assert (a.passes, [layer.name for layer in a.layers]) == (b.passes, [layer.name for layer in b.layers])
    for name, t in theirs.state_dict().items():
        agree(name, ours.state_dict()[name].double(), t.double(), 10 * BOUND * max(1, t.abs().max().item()))
    nw.recalibrate(copies, DATA, order="sequential")
    untouched(copies, state(ours))


def test_groups_are_as_few_as_can_be():
    ladder = {str(k): [str(j) for j in range(k)] for k in range(50)}
    assert levels(ladder) == [[str(k)] for k in range(50)]
    assert levels({}) == []
    # a is behind itself; b and c are behind one another, through different uses
    assert levels({"a": ["a"], "b": ["a", "c"], "c": ["b"], "d": ["c"], "e": []}) == [
        ["a", "e"],
        ["b", "c"],
        ["d"],
    ]
