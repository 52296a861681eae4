"""Which layers' outputs are in which layers' inputs: seen by following one forward pass.

A layer is measured behind final statistics once all layers whose outputs are in its input have theirs.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Names = frozenset[str]
_NONE: Names = frozenset()
# Values leave the tensors here, and torch sees no more of them.
_LEAVING = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.data_ptr, Tensor.__dlpack__}
_SHAPED_BY_VALUES = torch.Tag.dynamic_output_shape  # nonzero, masked_select, unique


class Followed:
    """Follows every tensor operation, so that each memory knows the layers whose outputs are in it.

    What leaves the tensors (`.item()`, `.numpy()`, a branch on a value, a shape that depends on values) is taken to
    be in everything that comes after it: a layer too many is waited for. What the model computes in threads of its
    own is not seen, nor what it reads from a tensor's storage.

    Attributes:
        upstream: of each layer that was reached, in order of its first use: the layers whose outputs were in
            its input, in any of its uses.
        uses: how often each was used.
    """

    def __init__(self) -> None:
        self.upstream: dict[str, set[str]] = {}
        self.uses: dict[str, int] = {}
        # weak: the memory itself is released as ever, and yet its place is not taken by other memory
        self._inside: dict[StorageWeakRef, Names] = {}
        self._everywhere = _NONE
        self._paused = False

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow what happens inside."""
        with _Operations(self), _Functions(self):
            yield

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not follow: for what is no part of the model."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def enter(self, layer: str, inputs: Any) -> None:
        """A layer begins."""
        self.uses[layer] = self.uses.get(layer, 0) + 1
        self.upstream.setdefault(layer, set()).update(self.inside(inputs))

    def leave(self, layer: str, outputs: Any) -> None:
        """A layer is done."""
        self.put(outputs, frozenset({layer}))

    def inside(self, values: Any) -> Names:
        """The layers whose outputs are in any of these."""
        found = self._everywhere
        for t in _tensors(values):
            storage = _storage(t)
            if storage is not None:
                found |= self._inside.get(storage, _NONE)
        return found

    def put(self, values: Any, layers: Names) -> None:
        """The outputs of these layers are in these."""
        for t in _tensors(values):
            storage = _storage(t)
            if storage is None:
                self._everywhere |= layers
            else:
                self._inside[storage] = self._inside.get(storage, _NONE) | layers

    def see(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """One operation: what is in its arguments is in its results."""
        layers = _NONE if self._paused else self.inside((args, kwargs))
        if not layers:
            return
        whole = isinstance(func, OpOverload)  # else one that runs functions, whose operations are not seen
        if not whole or _is_shaped_by_values(func, args) or _has_numbers(out):
            self._everywhere |= layers
        self.put(out, layers)
        if whole and func._schema.is_mutable:
            self.put(_written(func._schema.arguments, args, kwargs), layers)

    def see_leaving(self, func: Any, args: Any) -> None:
        """One call that hands memory to whoever is not torch."""
        if func in _LEAVING and not self._paused:
            self._everywhere |= self.inside(args)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True

    def __init__(self, followed: Followed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._followed = followed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._followed.see(func, args, kwargs, out)
        return out


class _Functions(TorchFunctionMode):
    def __init__(self, followed: Followed) -> None:
        super().__init__()
        self._followed = followed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._followed.see_leaving(func, args)
        return func(*args, **(kwargs or {}))


def _has_numbers(out: Any) -> bool:
    return any(not isinstance(leaf, Tensor | None) for leaf in tree_leaves(out))


def _is_shaped_by_values(func: OpOverload, args: Any) -> bool:
    """Whether the values of arguments decide the shape of the result."""
    if _SHAPED_BY_VALUES not in func.tags:
        return False
    if func is torch.ops.aten.index.Tensor:  # by a mask alone
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    return True


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _storage(t: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(t.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):  # sparse, or a wrapper without memory of its own
        return None


def _written(schema: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    given = [args[k] if k < len(args) else kwargs.get(each.name) for k, each in enumerate(schema)]
    return [
        value
        for each, value in zip(schema, given, strict=True)
        if each.alias_info is not None and each.alias_info.is_write
    ]


# ---- what the passes must be -----------------------------------------------------------------------------------


def levels(upstream: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The layers in as few groups as can be, each behind the groups before it alone.

    Layers that are behind one another, as those of a recurrent network, are in one group.

    >>> levels({"stem": [], "left": ["stem"], "right": ["stem"], "head": ["stem", "left"]})
    [['stem'], ['left', 'right'], ['head']]
    >>> levels({"a": ["b"], "b": ["a"], "c": ["b"]})
    [['a', 'b'], ['c']]
    """
    behind = {name: set(names) & set(upstream) for name, names in upstream.items()}
    for middle in behind:
        for names in behind.values():
            if middle in names:
                names |= behind[middle]
    depth: dict[str, int] = {}
    # Whatever a layer is behind, without being behind it in turn, is behind fewer: it comes first.
    for name in sorted(behind, key=lambda name: len(behind[name] | {name})):
        before = [other for other in behind[name] if name not in behind[other]]
        depth[name] = 1 + max((depth[other] for other in before), default=-1)
    groups: list[list[str]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for name in upstream:  # in order of execution
        groups[depth[name]].append(name)
    return groups
