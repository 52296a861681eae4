"""Another framework's arrays and settings: found by their names, checked, as NumPy arrays and numbers."""

from collections.abc import Iterator, Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from normwright.core.checks import DtypeError, ShapeError, message
from normwright.core.conventions import Convention

Float64 = NDArray[np.float64]
PerLayer = int | Mapping[str, int] | None
_JOINTS = ("/", ".", "_")


def flattened(call: str, arrays: Any, which: Convention) -> dict[str, Any]:
    """A model's arrays as one flat dictionary; Flax' collections, whose names do not meet, laid over each other."""
    if not isinstance(arrays, Mapping):
        expected, got = "arrays of a model to be {prefix + name: array}", type(arrays).__name__
        raise DtypeError(message(call, expected, got))
    flat: dict[str, Any] = {}
    for key, value in _walk(arrays, which.name == "flax"):
        key = key.removesuffix(":0") if which.name.startswith("keras") else key
        if key in flat:
            raise ShapeError(message(call, "each array once", f"{key!r} twice"))
        flat[key] = value
    return flat


def _walk(arrays: Mapping[Any, Any], collections: bool) -> Iterator[tuple[str, Any]]:
    for key, value in arrays.items():
        if not isinstance(value, Mapping):
            yield str(key), value
        elif collections and key in ("params", "batch_stats"):
            yield from _walk(value, False)
        else:
            yield from ((f"{key}/{rest}", leaf) for rest, leaf in _walk(value, False))


def of_prefix(call: str, flat: Mapping[str, Any], prefix: str, which: Convention) -> dict[str, Any]:
    """One layer's arrays by the framework's names, those with that prefix."""
    joints = ("",) if not prefix or prefix.endswith(_JOINTS) else _JOINTS
    found = {}
    for name in _known(which):
        keys = [prefix + joint + name for joint in joints if prefix + joint + name in flat]
        if len(keys) > 1:
            remedy = "Write the prefix with what follows it."
            raise ShapeError(message(call, f"one {name} of {prefix!r}", " and ".join(keys), remedy=remedy))
        if keys:
            found[name] = flat[keys[0]]
    if not found:
        remedy = "Say names={our layer's name: prefix}."
        got = f"keys such as {', '.join(map(repr, list(flat)[:3]))}" if flat else "no arrays"
        raise ShapeError(message(call, f"arrays whose names begin with {prefix!r}", got, remedy=remedy))
    return found


def of_one(call: str, arrays: Any, which: Convention) -> dict[str, Any]:
    """One layer's arrays by the framework's names, from a dictionary or a list of its own."""
    if isinstance(arrays, Mapping):
        found = flattened(call, arrays, which)
        unknown = [key for key in found if key not in _known(which)]
        if unknown:
            expected = f"arrays named {', '.join(_known(which))}"
            raise ShapeError(message(call, expected, ", ".join(map(repr, unknown))))
        return found
    if not isinstance(arrays, Sequence) or isinstance(arrays, str):
        expected, got = "arrays of a layer to be a dictionary or a list", type(arrays).__name__
        raise DtypeError(message(call, expected, got))
    if len(arrays) == 2:
        arrays = [None, None, *arrays]
    if len(arrays) != 4:
        expected, remedy = "gamma, beta, mean, var, or the last two", "Say which by a dictionary."
        raise ShapeError(message(call, expected, f"a list of {len(arrays)}", remedy=remedy))
    return dict(zip(which.arrays, arrays, strict=True))


def _known(which: Convention) -> list[str]:
    names = (*which.arrays, which.counter, which.eps_name, which.momentum_name, which.fix_gamma)
    return [name for name in names if name is not None]


def setting(call: str, name: str, found: Mapping[str, Any], said: float | None) -> float | None:
    """A number that may stand among the arrays, may be said beside them, or both."""
    if found.get(name) is None:
        return None if said is None else float(said)
    number = float(scalar(call, found, name))
    if said is None:
        return number
    if np.float32(number) != np.float32(said):  # as which one of them may have been kept
        raise ShapeError(message(call, f"{name}={said!r}, as was said", f"{number!r} among the arrays"))
    return float(said)


def scalar(call: str, found: Mapping[str, Any], name: str) -> Any:
    """The one number of that name among the arrays, an int where it is one."""
    number = vector(call, name, found[name], None)
    if number.size != 1:
        raise ShapeError(message(call, f"{name} to be one number", f"{number.size}"))
    value = number.item()
    return int(value) if value.is_integer() else value


def whole(call: str, argument: str, path: str, said: PerLayer) -> int | None:
    """count or updates of one layer."""
    if isinstance(said, Mapping):
        if path not in said:
            raise ShapeError(message(call, f"{argument} of every layer", f"none of {path!r}"))
        said = said[path]
    if said is None:
        return None
    least = 2 if argument == "count" else 0
    try:
        number = index(said)
    except TypeError:
        raise DtypeError(message(call, f"{argument} to be an integer", repr(said))) from None
    if number < least:
        raise ShapeError(message(call, f"{argument} >= {least}", str(number)))
    return number


def vector(call: str, name: str, value: Any, channels: int | None) -> Float64:
    """Real, finite numbers as float64, one for each of the channels; any number of them where that is None."""
    if isinstance(value, Tensor):
        whole = value.detach().cpu()
        value = (whole.double() if whole.is_floating_point() else whole).numpy()
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "fiu" and given.dtype.name != "bfloat16":
            raise ValueError(f"dtype {given.dtype}")
    except ValueError as error:
        raise DtypeError(message(call, f"{name} of real numbers", str(error))) from error
    if channels is not None and given.shape != (channels,):
        raise ShapeError(message(call, f"{name} of shape ({channels},)", str(given.shape)))
    values: Float64 = given.astype(np.float64)
    if not np.isfinite(values).all():
        raise ShapeError(message(call, f"{name} to be finite", f"{values[~np.isfinite(values)][0]}"))
    return values
