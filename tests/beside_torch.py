"""Our layers beside torch's: the same state, the same inputs, one training step each.

for name, x in LAYOUTS.items():
    ours, theirs = twins(x)
    same_step(step(ours, x, dy), step(theirs, x, dy))
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import close
import normwright.torch as nw

NAMES = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
LAST, LAST_3D = torch.channels_last, torch.channels_last_3d


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, mean: float = 1.0) -> Tensor:
    """Normal values; the same in every run."""
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        + mean
    )


def layouts(dtype: torch.dtype) -> dict[str, Tensor]:
    """How users' tensors lie in memory."""

    def some(*shape: int) -> Tensor:
        return normal(*shape, dtype=dtype)

    return {
        "(N, C)": some(33, 5),
        "(N, C, L)": some(6, 5, 7),
        "contiguous": some(6, 5, 7, 9),
        "channels-last": some(6, 5, 7, 9).contiguous(memory_format=LAST),
        "contiguous 3d": some(2, 5, 3, 4, 6),
        "channels-last 3d": some(2, 5, 3, 4, 6).contiguous(memory_format=LAST_3D),
        "a slice of channels": some(6, 9, 7, 9)[:, 2:7],
        "a slice of channels, last": some(6, 9, 7, 9).contiguous(memory_format=LAST)[:, 2:7],
        "a slice of features": some(33, 9)[:, 2:7],
        "every other channel": some(6, 10, 7, 9)[:, ::2],
        "every other sample": some(12, 5, 7, 9)[::2],
        "cropped": some(6, 5, 9, 12)[:, :, 1:8, 2:11],
        "expanded batch": some(1, 5, 7, 9).expand(6, 5, 7, 9),
        "expanded positions": some(6, 5, 1, 1).expand(6, 5, 7, 9),
        "one channel, last": some(6, 1, 7, 9).contiguous(memory_format=LAST),
        "one sample, last": some(1, 5, 7, 9).contiguous(memory_format=LAST),
        "one position, last": some(6, 5, 1, 1).contiguous(memory_format=LAST),
        "features by samples": some(5, 33).T,
        "(N, L, C) seen as (N, C, L)": some(6, 7, 5).transpose(1, 2),
        "width before height": some(6, 5, 7, 9).transpose(2, 3),
        "(C, N, H, W) seen as (N, C, H, W)": some(5, 6, 7, 9).transpose(0, 1),
    }


LAYOUTS = list(layouts(torch.float32))


def gradients_for(x: Tensor) -> dict[str, Tensor]:
    """How a gradient may come back: like x, otherwise, or without memory of its own."""
    dy = normal(*x.shape, dtype=x.dtype, seed=1, mean=0.5)
    like_x = torch.empty_like(x).copy_(dy)
    last = {4: LAST, 5: LAST_3D}.get(x.dim())
    return {
        "contiguous": dy,
        "like x": like_x,
        "channels last": dy.contiguous(memory_format=last)
        if last
        else dy.transpose(0, 1).contiguous().transpose(0, 1),
        "every other of a larger one": torch.stack([dy, dy], -1)[..., 0],
        "expanded": dy[:1].expand_as(dy),
        "one number": torch.ones((), dtype=x.dtype).expand_as(dy),
    }


def twins(x: Tensor, **options: Any) -> tuple[Any, Any]:
    """Our layer for x and torch's, with the same weight, bias and running statistics, none of them trivial."""
    theirs = getattr(nn, NAMES[x.dim()])(x.shape[1], **options).to(x.dtype)
    channels = torch.arange(x.shape[1], dtype=x.dtype)
    with torch.no_grad():
        for name, value in {
            "weight": 1.5 - channels,
            "bias": channels * 0.25 - 0.5,
            "running_mean": channels * 0.5 + 0.25,
            "running_var": channels + 0.5,
        }.items():
            if getattr(theirs, name) is not None:
                getattr(theirs, name).copy_(value)
    ours = getattr(nw, NAMES[x.dim()])(x.shape[1], **options).to(x.dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> SimpleNamespace:
    """One forward and backward; y, the gradients and the buffers by name, None where there is none."""
    x = x.detach().requires_grad_()  # x's own memory, as it lies
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    grads = {f"d{name}": None if p is None else p.grad for name, p in parameters(layer).items()}
    buffers = {name: getattr(layer, name) for name in ("running_mean", "running_var", "num_batches_tracked")}
    copies = {name: None if t is None else t.clone() for name, t in buffers.items()}
    return SimpleNamespace(y=y.detach(), dx=x.grad, **grads, **copies)


def parameters(layer: nn.Module) -> dict[str, Any]:
    """weight and bias, None where the layer has none."""
    return {"weight": layer.weight, "bias": layer.bias}


def same_step(ours: SimpleNamespace, theirs: SimpleNamespace, scale: float = 1.0) -> None:
    """Every part of two steps agrees as far as torch's own arithmetic goes.

    torch computes y = x*a + b, with statistics and gradient sums of some 400 values in x's type where the
    channels are last: a few units of the largest terms, which here are below 16 (sums: below 1000). `scale`
    is how much larger they are than that.
    """
    assert vars(ours).keys() == vars(theirs).keys()
    for name, want in vars(theirs).items():
        got = getattr(ours, name)
        if want is None:
            assert got is None, name
            continue
        assert (got.dtype, got.shape, got.device) == (want.dtype, want.shape, want.device), name
        if name == "num_batches_tracked":
            assert got.item() == want.item()
            continue
        terms = 1000 if name in ("dweight", "dbias") else 16
        agree(name, got, want, 16 * UNIT[want.dtype] * terms * scale)


def agree(what: str, got: Tensor, want: Tensor, bound: Any) -> None:
    """|got - want| <= bound, elementwise; NaN never passes."""
    close.within(what, got.detach().numpy(), want.detach().numpy(), bound)


def last_place(dtype: torch.dtype, value: Tensor) -> Tensor:
    """The distance between neighbours of `dtype` at every value: one rounding moves it by half of that."""
    info = torch.finfo(dtype)
    return info.eps * value.double().abs().clamp(min=info.tiny).log2().floor().exp2()


def same_bits(what: str, got: Tensor, want: Tensor) -> None:
    """The same tensor: type, shape, every bit."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape), what
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    different = (got.contiguous().view(integers) != want.contiguous().view(integers)).sum().item()
    assert different == 0, f"{what}: {different} elements differ"


def raised_by(call: Callable[[], Any]) -> Exception | None:
    """The exception that a call raises, None where it raises none: for comparing ours with torch's."""
    try:
        call()
    except Exception as error:
        return error
    return None


def state(layer: nn.Module) -> dict[str, Tensor]:
    """A copy of all that a layer keeps."""
    return {name: t.clone() for name, t in layer.state_dict().items()}


def untouched(layer: nn.Module, before: dict[str, Tensor]) -> None:
    """A layer keeps what it kept, bit for bit."""
    assert list(layer.state_dict()) == list(before)
    for name, t in layer.state_dict().items():
        same_bits(name, t, before[name])
