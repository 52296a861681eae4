"""What follows a batch norm, seen in networks of a few layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normwright.bench.models.following import follow


class Block(nn.Module):
    """A convolution, two batch norms and a forward that a test gives."""

    def __init__(self, forward):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)
        self.steps = forward

    def forward(self, x):
        return self.steps(self, x)


def then(forward, shape=(2, 3, 5, 5)):
    """What follows each batch norm, by its name, in a block on the meta device and on the CPU alike."""
    told = []
    for device in ("meta", "cpu"):
        block = Block(forward).eval().to(device)
        x = torch.ones(shape, device=device)
        calls, error = follow(block, lambda block=block, x=x: block(x))
        assert error is None
        assert {call.shape for call in calls} == {shape}
        told.append({call.layer: " > ".join(call.then) for call in calls})
    assert told[0] == told[1]
    return told[0]


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (F.relu, "relu"),
        (torch.relu_, "relu"),
        (lambda x: x.relu(), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(), "hardtanh(-1, 1)"),
        (nn.Hardtanh(0.0, 6.0), "relu6"),
        (nn.LeakyReLU(0.2), "leaky_relu"),
        (nn.SiLU(), "silu"),
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.Hardswish(), "hardswish"),
        (nn.Sigmoid(), "sigmoid"),
        (torch.tanh, "tanh"),
        (nn.ELU(), "elu"),
    ],
    ids=str,
)
def test_an_activation_is_seen_by_its_name(activation, name):
    assert then(lambda b, x: activation(b.bn(b.conv(x)))) == {"bn": name}
    assert then(lambda b, x: activation(b.bn(b.conv(x)) + x)) == {"bn": f"add > {name}"}


def in_place(b, x):
    y = b.bn(b.conv(x))
    y += x
    return F.relu(y)


@pytest.mark.parametrize(
    ("forward", "want"),
    [
        (lambda b, x: b.bn(b.conv(x)), "nothing"),
        (lambda b, x: b.conv(b.bn(x)), "conv2d"),
        (in_place, "add > relu"),
        (lambda b, x: F.relu(torch.add(x, b.bn(x))), "add > relu"),
        (lambda b, x: b.bn(x) + x, "add > nothing"),
        (lambda b, x: F.relu(b.bn(x) + x + x), "add > add > relu"),
        (lambda b, x: F.relu(b.bn(x).flatten(2).transpose(1, 2)), "relu"),
        (lambda b, x: F.relu(F.dropout(b.bn(x), 0.5, training=False) + x), "add > relu"),
        (lambda b, x: F.relu(b.bn(x) + 1), "add of another shape"),
        (lambda b, x: F.relu(b.bn(x) + x[0, 0]), "add of another shape"),
        (lambda b, x: F.relu(b.bn(x) * x), "mul"),
        (lambda b, x: torch.cat([b.bn(x), x]), "cat"),
        (lambda b, x: F.relu(y := b.bn(x)) + y, "add & relu"),
        (lambda b, x: b.conv(y := b.bn(b.conv(x)) + x) + y, "add > add & conv2d"),
        (lambda b, x: b.conv(y := b.bn(x)) + y, "add & conv2d"),
        (lambda b, x: (y := b.bn(x), F.relu(y), F.relu(y))[1], "relu & relu"),
        (lambda b, x: F.relu(b.bn(x)) if b.bn(x).sum() > 0 else x, "relu"),
    ],
)
def test_what_reads_the_output_is_followed(forward, want):
    told = set(then(forward).values())
    assert want in told


def test_a_sum_of_two_belongs_to_one_of_them():
    want = {"bn": "add > relu", "other": "another's residual"}
    assert then(lambda b, x: F.relu(b.bn(b.conv(x)) + b.other(x))) == want
    assert then(lambda b, x: F.relu(b.bn(x) + x + b.other(x))) == {
        "bn": "add > another's residual",
        "other": "add > relu",
    }
    assert then(lambda b, x: b.other(b.bn(x))) == {"bn": "batch_norm", "other": "nothing"}


def test_a_tensor_in_the_place_of_one_that_is_gone_is_another():
    def forward(b, x):
        y = b.conv(b.bn(x))  # the batch norm's output is gone here, and its place is free
        for _ in range(20):
            F.relu(x + 1.0)
        return y

    assert then(forward) == {"bn": "conv2d"}


class GELUActivation(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))


class ToyFrozenBatchNorm2d(nn.Module):
    def forward(self, x):
        return x * 2 + 1


class BatchNormAct2d(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x), inplace=True)


def test_classes_that_bring_more_along_are_seen_through():
    for norm, activation, want in (
        (nn.BatchNorm2d(3), GELUActivation(), ("gelu", False)),
        (ToyFrozenBatchNorm2d(), nn.ReLU(), ("relu", True)),
        (BatchNormAct2d(3), nn.Conv2d(3, 3, 1), ("relu", False)),
    ):
        network = nn.Sequential(norm, activation)
        ((call,), error) = follow(network, lambda network=network: network(torch.ones(2, 3, 4, 4)))
        assert (*call.then, call.frozen) == want
        assert error is None
        assert not norm._forward_hooks
        assert not norm._forward_pre_hooks


def test_an_error_ends_the_pass_and_what_was_seen_is_kept():
    def failing(b, x):
        b.other(F.relu(b.bn(x)))
        raise ValueError("no more")

    block = Block(failing)
    calls, error = follow(block, lambda: block(torch.ones(2, 3, 4, 4)))
    assert [(call.layer, call.then) for call in calls] == [("bn", ("relu",)), ("other", ("unknown",))]
    assert str(error) == "no more"
    assert not block.bn._forward_hooks


def test_values_that_are_not_there_are_made_up():
    block = Block(lambda b, x: F.relu(b.bn(x)) if bool(x.isfinite().all()) and not x.sum().item() else None)
    block.to("meta")
    ((call,), error) = follow(block, lambda: block(torch.ones(2, 3, 4, 4, device="meta")))
    assert (call.then, error) == (("relu",), None)
