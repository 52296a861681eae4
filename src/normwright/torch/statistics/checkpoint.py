"""Files of weights: read without running what is in them, written whole or not at all."""

import copy
import errno
import os
import re
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normwright.core.checks import DtypeError, NonfiniteError, ShapeError, message
from normwright.doctor.layer import COUNTER, MEAN, VAR, prefixes
from normwright.torch.statistics.drift import Drift
from normwright.torch.statistics.inspect import parts_with_layers
from normwright.torch.statistics.writing import rounded

SAFETENSORS = ".safetensors"
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", SAFETENSORS)  # of files that are written
_FIRST = 3  # keys told of a long list


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        content: names to tensors, or whatever was saved around them.
        about: the words beside the tensors of a safetensors file; None elsewhere.
        file: its name; None where it was not read from one.
    """

    content: Mapping[Any, Any]
    about: Mapping[str, str] | None = None
    file: Path | None = None


def read(path: Path) -> Checkpoint:
    """Read a file of weights: safetensors by its suffix, anything else as `torch.save` writes it.

    Args:
        path: the file. Tensors come to the CPU. A pickle is read with weights_only=True: nothing in it is run.

    Returns:
        Checkpoint.

    Raises:
        OSError: the file cannot be opened.
        ShapeError: it is no such file, or holds something other than tensors and plain values.
        ImportError: it is a safetensors file, and safetensors is not installed.
    """
    with path.open("rb"):
        pass  # whether it can be opened is the system's to say, in its own words
    if path.suffix.lower() == SAFETENSORS:
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # bytes that are no pickle raise whatever they happen to mean
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: where a cut archive leads
            raise
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            got = f"an object of {refused[1]}, which is not loaded, for loading it runs its code"
            remedy = "Save model.state_dict() instead, where the file is made."
        else:
            got, remedy = f"something else ({type(error).__name__}: {_line(error)})", ""
        raise ShapeError(
            message(str(path), "tensors as torch.save writes them", got, remedy=remedy)
        ) from error
    if not isinstance(content, Mapping):
        got = f"{type(content).__module__}.{type(content).__name__}"
        raise ShapeError(message(str(path), "a state dict", got))
    return Checkpoint(content, file=path)


def _read_safetensors(path: Path) -> Checkpoint:
    _need_safetensors(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
            return Checkpoint(tensors, file.metadata(), path)
    except SafetensorError as error:
        raise ShapeError(
            message(str(path), "a safetensors file", f"something else ({_line(error)})")
        ) from error


def _need_safetensors(path: Path) -> None:
    if find_spec("safetensors") is None:
        install = "pip install 'normwright[safetensors]'"
        raise ImportError(f"{path}: safetensors is not installed. Install it with: {install}")


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a file of weights, safetensors by its suffix: it appears whole, or is not touched.

    Args:
        path: the file. It is written under another name in the same folder, and renamed when it is complete.
        checkpoint: what to write.

    Raises:
        OSError: it cannot be written.
        ShapeError: safetensors is asked for, and there is something other than tensors.
        ImportError: safetensors is asked for, and not installed.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    unfinished = Path(name)
    try:
        if path.suffix.lower() == SAFETENSORS:
            _save_safetensors(unfinished, path, checkpoint)
        else:
            torch.save(checkpoint.content, unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        unfinished.chmod(0o666 & ~mask)  # as any file; those of mkstemp are the owner's alone
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _save_safetensors(unfinished: Path, path: Path, checkpoint: Checkpoint) -> None:
    _need_safetensors(path)
    from safetensors.torch import save_file

    others = [str(key) for key, value in checkpoint.content.items() if not isinstance(value, Tensor)]
    if others:
        got, remedy = f"{_some(others)} beside them", "Write a .pt file."
        raise ShapeError(message(str(path), "tensors alone in a safetensors file", got, remedy=remedy))
    seen: set[int] = set()
    tensors = {}
    for key, t in checkpoint.content.items():
        # Tied weights are one storage under two names, which the format does not have.
        shared = t.untyped_storage().data_ptr() in seen
        seen.add(t.untyped_storage().data_ptr())
        tensors[str(key)] = t.detach().clone().contiguous() if shared else t.detach().contiguous()
    about = None if checkpoint.about is None else dict(checkpoint.about)
    save_file(tensors, unfinished, metadata=about or {"format": "pt"})


@dataclass(frozen=True)
class Place:
    """Where in a checkpoint a model's state dict is: the way through its mappings, and what its keys begin with."""

    path: tuple[str, ...]
    prefix: str

    @property
    def name(self) -> str:
        """What to call it; empty for the whole file."""
        return ".".join([*self.path, *filter(None, [self.prefix.rstrip(".")])])


def load(call: str, model: object, checkpoint: Checkpoint, entry: str | None) -> Place:
    """Find the state dict of `model` by its layers, whatever their keys begin with, and load it strictly.

    Args:
        call: whose name errors carry.
        model: whose it is to be.
        checkpoint: where to look.
        entry: its name, where there are several; None where there is one.

    Returns:
        Place: where it was.

    Raises:
        DtypeError: model is not a module.
        ShapeError: there is no such state dict, or none of that name, or there are several; or its keys or shapes
            are not the model's, some of which are named.
    """
    if not isinstance(model, nn.Module):
        got = f"{type(model).__module__}.{type(model).__name__}"
        raise DtypeError(message(call, "a torch.nn.Module", got))
    place = _place(call, model, checkpoint, entry)
    where = f" in {checkpoint.file}" if checkpoint.file else ""
    _load(call, model, _part(checkpoint.content, place), place.prefix, where)
    return place


def _place(call: str, model: nn.Module, checkpoint: Checkpoint, entry: str | None) -> Place:
    layers = prefixes(model.state_dict())
    if not layers:
        raise ShapeError(message(call, "a model with running statistics", "one without"))
    places = {place.name: place for place in _places(layers, checkpoint)}
    if entry is not None and entry in places:
        return places[entry]
    if entry is None and ("" in places or len(places) == 1):
        return places.get("") or next(iter(places.values()))
    known = ", ".join(repr(name) for name in places if name)
    if entry is not None and places:
        expected = f"an entry {entry!r} with the model's layers"
        if "" not in places:
            raise ShapeError(message(call, expected, f"those in {known}"))
        got = "them at the top of the file" + (f" and in {known}" if known else ", which has no entries")
        remedy = "Leave --entry out to take those at the top."
        raise ShapeError(message(call, expected, got, remedy=remedy))
    if places:
        raise ShapeError(
            message(call, "one entry with the model's layers", known, remedy="Choose one by --entry.")
        )
    there = [prefix for _, part in parts_with_layers(checkpoint.content) for prefix in prefixes(part)]
    expected = f"the model's layers {_some([_dotless(prefix) for prefix in layers])} in the weights"
    got = (
        f"layers {_some([_dotless(prefix) for prefix in there])}" if there else "none with running statistics"
    )
    raise ShapeError(message(call, expected, got))


def _places(layers: list[str], checkpoint: Checkpoint) -> Iterator[Place]:
    for path, part in parts_with_layers(checkpoint.content):
        there = dict.fromkeys(prefixes(part))
        before = [p.removesuffix(layers[0]) for p in there if p.endswith(layers[0])]
        for prefix in before:
            if all(prefix + layer in there for layer in layers) and (not prefix or prefix.endswith(".")):
                yield Place(path, prefix)


def is_model(found: object) -> bool:
    """Whether it is a model as it stands, and not what makes one."""
    return isinstance(found, nn.Module)


def _load(call: str, model: nn.Module, part: Mapping[str, Any], prefix: str, where: str) -> None:
    state: dict[str, Any] = OrderedDict()
    state.update((key.removeprefix(prefix), value) for key, value in part.items() if key.startswith(prefix))
    versions = getattr(part, "_metadata", None)  # by which modules read what older ones of them wrote
    if versions is not None:
        kept = {key.removeprefix(prefix): version for key, version in versions.items()}
        state._metadata = kept  # type: ignore[attr-defined]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).split("\n\t")[1:] or [str(error)]
        told = [_shortened(line.strip().rstrip(".")) for line in lines[:_FIRST]]
        if len(lines) > _FIRST:
            told.append(f"and {len(lines) - _FIRST} more")
        expected = f"weights of {type(model).__name__}{where}"
        raise ShapeError(message(call, expected, "; ".join(told))) from error


def _part(content: Mapping[Any, Any], place: Place) -> Mapping[str, Any]:
    for key in place.path:
        content = content[key] if key in content else next(v for k, v in content.items() if str(k) == key)
    return content


def with_statistics_of(model: nn.Module, checkpoint: Checkpoint, place: Place, drift: Drift) -> Checkpoint:
    """The same checkpoint with the running statistics of `model` in place of its own; all else is as it was.

    Each has the type that it had in the checkpoint. Where that is not the model's, it is rounded to it once, from
    what was found (`drift`).

    Raises:
        NonfiniteError: that type cannot hold a statistic.
    """
    state, part = model.state_dict(), _part(checkpoint.content, place)
    found = {layer.name: {MEAN: layer.new_mean, VAR: layer.new_var} for layer in drift.layers}
    new = {}
    for prefix in prefixes(state):
        layer = found.get(prefix.removesuffix("."), {})
        for key in (MEAN, VAR, COUNTER):
            value, name = state.get(prefix + key), place.prefix + prefix + key
            old = part.get(name)
            if value is None or not isinstance(old, Tensor):
                continue
            if key in layer and old.dtype != value.dtype:
                value = rounded(layer[key], old)
                if not value.isfinite().all():
                    got = f"up to {abs(layer[key]).max():.3g}"
                    raise NonfiniteError(message(name, f"statistics that {old.dtype} holds", got))
            new[name] = value.detach().cpu().to(old.dtype)
    return Checkpoint(_replaced(checkpoint.content, place.path, new), checkpoint.about)


def _replaced(content: Mapping[Any, Any], path: tuple[str, ...], new: Mapping[str, Tensor]) -> Any:
    copied: Any = copy.copy(content)
    if path:
        key = next(key for key in content if str(key) == path[0])
        copied[key] = _replaced(content[key], path[1:], new)
    else:
        copied.update({key: value for key, value in new.items() if key in content})
    return copied


def _dotless(prefix: str) -> str:
    return repr(prefix.removesuffix("."))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
    return ", ".join(names[:_FIRST]) + more


def _shortened(line: str) -> str:
    """A line of torch's: a list of keys is cut short, shapes are not; and it stays a line."""
    head, colon, keys = line.partition(": ")
    listed = keys.split(", ")
    cut = head.endswith("key(s) in state_dict") and len(listed) > _FIRST
    return " ".join((f"{head}{colon}{_some(listed)}" if cut else line).split())


def _line(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
