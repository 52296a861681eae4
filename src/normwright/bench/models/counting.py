"""What `models.json` is made by: transformers' models are built, run, and their batch norms counted."""

import io
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import metadata
from typing import Any

import torch
from rich.console import Console

from normwright.bench.models import architectures
from normwright.bench.models.architectures import Architecture
from normwright.bench.models.counted import STEP, VERSIONS
from normwright.report import terminal


def count(console: Console) -> dict[str, Any]:
    """Build every model, run each once without values, and count. About a minute, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), terminal.Bars(console) as bars:
            warnings.simplefilter("ignore")
            folders = architectures.folders()
            bars.add("models", work=len(folders))
            bars.add("configurations", work=1)
            seen = []
            for folder in folders:
                bars.begin("models", folder.name)
                seen.append(architectures.see(folder))
                bars.advance("models", 1)
            bars.begin("configurations", "activations")
            found = summary([each for each in seen if each is not None], architectures.settings())
            bars.advance("configurations", 1)
    finally:
        torch.set_num_threads(threads)
    return found


def summary(seen: Sequence[Architecture], named: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """What was seen, as the file has it."""
    values: dict[str, dict[str, int]] = {}
    for (attribute, value), times in sorted(named.items()):
        values.setdefault(value, {})[attribute] = times
    models = [
        {
            "name": each.name,
            "class": each.model,
            "image": each.image,
            "norms": each.norms,
            "frozen": each.frozen,
            "then": _counts(STEP.join(call.then) for call in each.calls if not call.frozen),
            "frozen_then": _counts(STEP.join(call.then) for call in each.calls if call.frozen),
        }
        for each in seen
        if each.calls
    ]
    return {
        "made_with": {name: metadata.version(name).partition("+")[0] for name in VERSIONS},
        "settings": {"values": values},
        "left_out": {each.name: each.left_out for each in seen if each.left_out},
        "models": models,
        "shapes": _shapes(seen),
    }


def _shapes(seen: Iterable[Architecture]) -> list[dict[str, Any]]:
    """The shapes of vision models, the most frequent first."""
    models: dict[tuple[int, ...], set[str]] = {}
    then: dict[tuple[int, ...], Counter[str]] = {}
    for each in seen:
        for call in each.calls:
            if each.image is not None and not call.frozen:
                models.setdefault(call.shape, set()).add(each.name)
                then.setdefault(call.shape, Counter())[STEP.join(call.then)] += 1
    order = sorted(then, key=lambda shape: (-then[shape].total(), shape))
    return [
        {
            "shape": list(shape),
            "occurs": then[shape].total(),
            "models": len(models[shape]),
            "followed_by": dict(then[shape].most_common()),
        }
        for shape in order
    ]


def _counts(of: Iterable[str]) -> dict[str, int]:
    return dict(Counter(of).most_common())


def dumps(document: Mapping[str, Any]) -> str:
    """JSON with a model, a shape, a setting a line, so that a change of one is a change of one line."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            lines = ",\n".join(f"  {json.dumps(each)}" for each in value)
            parts.append(f" {json.dumps(key)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, indent=1)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
