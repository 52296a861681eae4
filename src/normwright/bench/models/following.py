"""What follows each batch norm of a network: one forward pass is watched, on torch's meta device or any other.

A batch norm's output is followed through what changes no value (a reshape, dropout in evaluation) and through
sums with a residual, up to the first operation that is something else, or up to a value that several read. A sum
belongs to one batch norm: where both of its terms come from batch norms, the other one is that one's residual.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

RESIDUAL = "another's residual"  # a term of the sum that belongs to another batch norm
NOTHING = "nothing"  # the network returns it
UNKNOWN = "unknown"  # the pass ended with an error before anything read it

SAME_VALUES = frozenset(
    (
        *(
            "view",
            "view_as",
            "reshape",
            "reshape_as",
            "flatten",
            "unflatten",
            "squeeze",
            "unsqueeze",
            "expand",
        ),
        *("permute", "transpose", "swapaxes", "movedim", "moveaxis", "t", "T", "mT"),
        *("contiguous", "clone", "detach", "data", "to", "float", "type_as"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    )
)
SUMS = frozenset(("add", "iadd", "radd"))
OTHER_NAMES = {"hardtanh(0, 6)": "relu6", "concat": "cat", "concatenate": "cat"}
#: What the classes of transformers.activations compute; their forward is not looked into.
COMPOSED = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "QuickGELUActivation": "quick_gelu",
    "SiLUActivation": "silu",
    "MishActivation": "mish",
    "ReLUSquaredActivation": "relu_squared",
}


@dataclass
class Value:
    """A tensor that comes from a batch norm, and what reads it.

    `by` made it of the output: "" is the output itself, "reshape" what changes no value, "add" a sum.
    """

    by: str = ""
    readers: list["str | Value"] = field(default_factory=list)

    @property
    def is_sum(self) -> bool:
        """Whether a sum made it."""
        return self.by == "add"

    def path(self, unread: str) -> tuple[str, ...]:
        """The operations from here on; several readers are one step, joined by " & "."""
        if not self.readers:
            return (unread,)
        if len(self.readers) > 1:
            names = [reader if isinstance(reader, str) else reader.by for reader in self.readers]
            return (" & ".join(sorted(set(names))) if len(set(names)) > 1 else f"{names[0]} & {names[0]}",)
        (reader,) = self.readers
        if isinstance(reader, str):
            return (reader,)
        return (*(("add",) if reader.is_sum else ()), *reader.path(unread))


@dataclass
class Call:
    """One call of a batch norm.

    Attributes:
        layer: its name in the network.
        shape: of its input.
        frozen: a class of its own, with "FrozenBatchNorm" in its name, that normalizes by constants.
        then: what follows: names of operations, such as ("relu",), ("add", "relu") or ("conv2d",).
    """

    layer: str
    shape: tuple[int, ...]
    frozen: bool
    then: tuple[str, ...] = ()
    output: Value = field(default_factory=Value, repr=False)


def is_frozen(module: nn.Module) -> bool:
    """Whether it is one of the frozen batch norms that detection models bring along."""
    return "FrozenBatchNorm" in type(module).__name__


def is_batch_norm(module: nn.Module) -> bool:
    """Whether calls of the module are told."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or is_frozen(module)


def follow(network: nn.Module, forward: Callable[[], object]) -> tuple[list[Call], Exception | None]:
    """Every call of a batch norm of `network` while `forward` runs, and the error that ended it, if one did.

    Where a tensor on the meta device is asked for its value, it says True or 0.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
        >>> calls, error = follow(net, lambda: net(torch.ones(2, 3, 5, 5)))
        >>> [(call.layer, call.shape, call.then) for call in calls]
        [('1', (2, 4, 3, 3), ('relu',)), ('3', (2, 4, 3, 3), ('nothing',))]
    """
    watch, error = _Watch(), None
    with _hooked(network, watch), watch, torch.no_grad():
        try:
            forward()
        except Exception as raised:
            error = raised
    for call in watch.calls:
        call.then = call.output.path(NOTHING if error is None else UNKNOWN)
    return watch.calls, error


class _Watch(TorchFunctionMode):
    """Sees every operation, and knows which tensors come from a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._inside: list[Call] = []  # the batch norms whose forward is running
        self._opaque = 0  # how many composed activations are running
        self._values: dict[int, Value] = {}
        self._kept: list[object] = []  # so that no other tensor gets the id of one that was seen

    def begin(self, name: str, module: nn.Module, args: Sequence[Any]) -> None:
        """A batch norm is called."""
        call = Call(name, tuple(args[0].shape), is_frozen(module))
        self._read(args, "batch_norm")
        self.calls.append(call)
        self._inside.append(call)
        self._opaque += call.frozen

    def end(self, output: Any) -> None:
        """It returns. (Where its class goes on after normalizing, torch's function told the output before.)"""
        call = self._inside.pop()
        self._opaque -= call.frozen
        if not any(value is call.output for value in self._values.values()) and not call.output.readers:
            self._make(output, call.output)

    def begin_activation(self, name: str, args: Sequence[Any]) -> None:
        """A composed activation is called: it reads, and what it does inside is not looked at."""
        if not self._opaque:
            self._read(args, name)
        self._opaque += 1

    def end_activation(self) -> None:
        """It returns."""
        self._opaque -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        answer = _asked_for_a_value(func, args)
        if answer is not None:
            return answer
        args, kwargs = _on_one_device(args, kwargs)
        result = func(*args, **kwargs)
        if not self._opaque and any(True for _ in _tensors(result)):
            self._see(_name(func, args, kwargs), args, kwargs, result)
        return result

    def _see(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        given = (*args, *kwargs.values())
        if self._inside and name == "batch_norm":
            self._make(result, self._inside[-1].output)
            return
        sources = [t for t in _tensors(given) if id(t) in self._values]
        if not sources:
            return
        if name in SAME_VALUES:
            if any(t is sources[0] for t in _tensors(result)):
                return  # the tensor itself came back
            made = Value("reshape")
        elif name in SUMS and _is_residual(given):
            made = Value("add")
        else:
            self._read(given, f"{name} of another shape" if name in SUMS else name)
            if any(t is source for t in _tensors(result) for source in sources):  # in place
                self._forget(result)
            return
        # The sum of a sum and an output belongs to the output: `(bn1 + bn2) + bn3` is two sums, of bn1 and of bn3.
        owner, *others = sorted(_unique(self._values[id(t)] for t in sources), key=lambda value: value.is_sum)
        owner.readers.append(made)
        for value in others:
            value.readers.append(RESIDUAL)
        self._make(result, made)

    def _read(self, given: Any, name: str) -> None:
        for value in _unique(self._values[id(t)] for t in _tensors(given) if id(t) in self._values):
            value.readers.append(name)

    def _make(self, result: Any, value: Value) -> None:
        for tensor in _tensors(result):
            self._values[id(tensor)] = value
            self._kept.append(tensor)

    def _forget(self, result: Any) -> None:
        for tensor in _tensors(result):
            self._values.pop(id(tensor), None)


@contextmanager
def _hooked(network: nn.Module, watch: _Watch) -> Iterator[None]:
    """Calls of batch norms and of composed activations are told to `watch`."""
    handles: list[RemovableHandle] = []

    def norm(name: str, module: nn.Module) -> None:
        handles.append(module.register_forward_pre_hook(lambda m, args: watch.begin(name, m, args)))
        handles.append(module.register_forward_hook(lambda m, args, output: watch.end(output)))

    def activation(kind: str, module: nn.Module) -> None:
        handles.append(module.register_forward_pre_hook(lambda m, args: watch.begin_activation(kind, args)))
        handles.append(module.register_forward_hook(lambda m, args, output: watch.end_activation()))

    try:
        for name, module in network.named_modules():
            if is_batch_norm(module):
                norm(name, module)
            elif type(module).__name__ in COMPOSED:
                activation(COMPOSED[type(module).__name__], module)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The operation's name; "hardtanh(0, 6)" and the like by their usual names."""
    name = getattr(func, "__name__", str(func)).strip("_")
    if name == "get":  # a property of a tensor, such as x.T
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    if name == "gelu" and (kwargs.get("approximate") == "tanh" or "tanh" in args[1:]):
        return "gelu_tanh"
    if name == "hardtanh":
        low, high = (kwargs.get(key, default) for key, default in (("min_val", -1.0), ("max_val", 1.0)))
        low, high = (*args[1:3], low, high)[:2] if len(args) > 2 else (low, high)
        name = f"hardtanh({low:g}, {high:g})"
    return OTHER_NAMES.get(name, name)


def _asked_for_a_value(func: Any, args: Sequence[Any]) -> Any:
    """What a tensor without values says when it is asked for one; None where it is not."""
    name = getattr(func, "__name__", "")
    if not args or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    if name == "__bool__":
        return True
    if name in ("item", "__int__", "__index__", "__float__"):
        return 0.0 if name == "__float__" or (name == "item" and args[0].is_floating_point()) else 0
    if name == "tolist":
        return torch.zeros(args[0].shape, dtype=args[0].dtype, device="cpu").tolist()
    return None


def _on_one_device(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments, on the meta device where one of them is: constants may have been made elsewhere."""
    tensors = list(_tensors((*args, *kwargs.values())))
    if any(t.is_meta for t in tensors) and not all(t.is_meta for t in tensors):
        args = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), tuple(args))
        kwargs = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), dict(kwargs))
    return args, dict(kwargs)


def _is_residual(given: Sequence[Any]) -> bool:
    """Whether a sum adds a tensor of the same shape, rather than a number or a bias."""
    shapes = [t.shape for t in given if isinstance(t, Tensor)]
    return len(shapes) == 2 and shapes[0] == shapes[1]


def _tensors(of: Any) -> Iterator[Tensor]:
    """Every tensor in arguments or results, however they are nested."""
    if isinstance(of, Tensor):
        yield of
    elif isinstance(of, list | tuple):
        for each in of:
            yield from _tensors(each)
    elif isinstance(of, dict):
        yield from _tensors(list(of.values()))


def _unique(values: Any) -> list[Value]:
    return list({id(value): value for value in values}.values())
