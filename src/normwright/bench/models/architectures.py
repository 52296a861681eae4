"""The models of the package transformers: built from their default configurations on torch's meta device.

An architecture is a folder of transformers.models; for it stands its class with the most batch norms. Nothing is
fetched, no weights are made, and one thread is enough.
"""

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normwright.bench.models.following import UNKNOWN, Call, follow, is_batch_norm, is_frozen

BATCH = 8
USUAL_SIZE = (224, 224)
TOKENS, FRAMES, SAMPLES, BINS = 32, 512, 16000, (80, 128, 160, 320)
# Its default is what ConvNeXt was tuned at last. ResNet, RegNet and CvT borrow it, and were made for 224.
BORROWED = "ConvNextImageProcessor"
# What transformers does not say of these: the processor of the model that they go on from.
PROCESSORS = {
    "d_fine": "RTDetrImageProcessor",
    "rt_detr_v2": "RTDetrImageProcessor",
    "dab_detr": "ConditionalDetrImageProcessor",
}
MAY_HAVE_NORMS = re.compile(r"BatchNorm|batch_norm|load_backbone|AutoBackbone|Auto\w+\.from_config")
HAS_NORMS = re.compile(r"nn\.BatchNorm")
NONE_BY_DEFAULT = "none by default"
ENTRANCES = ("forward", "get_image_features", "get_audio_features", "get_text_features", "encode")
ACTIVATION_SETTING = re.compile(
    r"(?:^|_)(?:act|activation|act_fn|activation_fn|activation_function|nonlinearity)$"
)


@dataclass
class Architecture:
    """What was seen of one.

    Attributes:
        name: the folder in transformers.models.
        model: the class; empty where none could be built.
        image: (H, W) of the images that it was given; None where it was given none.
        norms: how many batch norms it has, without frozen ones.
        frozen: how many frozen ones.
        calls: those that a forward pass made.
        left_out: why it, or what of it, was left out; empty where all was seen.
    """

    name: str
    model: str = ""
    image: tuple[int, int] | None = None
    norms: int = 0
    frozen: int = 0
    calls: list[Call] = field(default_factory=list)
    left_out: str = ""


def folders() -> list[Path]:
    """The folders of transformers.models whose source mentions a batch norm, or a network that may have some.

    From here on transformers logs errors alone.
    """
    importlib.import_module("transformers.utils.logging").set_verbosity_error()
    root = Path(str(_transformers().__file__)).parent / "models"
    files = sorted(root.glob("*/modeling_*.py"))
    return sorted({path.parent for path in files if MAY_HAVE_NORMS.search(path.read_text(encoding="utf-8"))})


def see(folder: Path) -> Architecture | None:
    """The architecture of a folder; None where no batch norm belongs to it."""
    built: list[tuple[int, bool, int, Any]] = []
    refused: list[str] = []
    classes = list(_classes(folder, refused))
    for each in classes:
        try:
            network = _build(each)
        except Exception as reason:  # whatever a default configuration lacks
            refused.append(f"{each.__name__} is not built: {_words(reason)}")
            continue
        modules = list(network.modules())
        norms = sum(map(is_batch_norm, modules))
        built.append((norms, network.main_input_name == "pixel_values", -len(modules), each))
    most = max((norms for norms, *_ in built), default=0)
    if most == 0:
        mentioned = any(
            HAS_NORMS.search(path.read_text(encoding="utf-8")) for path in folder.glob("modeling_*.py")
        )
        if refused and (mentioned or not built):
            return Architecture(folder.name, left_out=refused[0])
        return Architecture(folder.name, left_out=NONE_BY_DEFAULT) if mentioned else None
    candidates = sorted((row for row in built if row[0] == most), key=lambda row: row[:3], reverse=True)
    seen = []
    for *_, each in candidates:
        seen.append(_run(folder.name, each))
        if not seen[-1].left_out:
            break
    return max(seen, key=lambda architecture: len(architecture.calls))


def _known(calls: list[Call]) -> list[Call]:
    return [call for call in calls if call.then[-1] != UNKNOWN]


def _run(name: str, model: Any) -> Architecture:
    """Forward passes with one input after the other, until one reaches every batch norm."""
    network = _build(model)
    layers = {path: module for path, module in network.named_modules() if is_batch_norm(module)}
    frozen = sum(map(is_frozen, layers.values()))
    best = Architecture(
        name, model.__name__, None, len(layers) - frozen, frozen, [], "no input is known for it"
    )
    for method, given in _inputs(name, network):
        calls, error = follow(network, _forward(method, given))
        calls = _known(calls)
        if len(calls) < len(best.calls):
            continue
        missing = len(set(layers) - {call.layer for call in calls})
        reason = _words(error) if error else "the forward pass does not call them"
        best.calls, best.left_out = calls, f"{missing} of {len(layers)}: {reason}" if missing else ""
        pixels = given.get("pixel_values")
        best.image = None if pixels is None else (pixels.shape[-2], pixels.shape[-1])
        if not missing:
            break
    return best


# --- building ---------------------------------------------------------------


def _transformers() -> Any:
    return importlib.import_module("transformers")


def _classes(folder: Path, refused: list[str]) -> Iterator[Any]:
    """The model classes of a folder that a configuration belongs to."""
    base = _transformers().PreTrainedModel
    for path in sorted(folder.glob("modeling_*.py")):
        try:
            module = importlib.import_module(f"transformers.models.{folder.name}.{path.stem}")
        except Exception as reason:  # an optional package is missing
            refused.append(f"{path.stem} is not imported: {_words(reason)}")
            continue
        for each in vars(module).values():
            own = inspect.isclass(each) and issubclass(each, base) and each.__module__ == module.__name__
            if own and each.config_class is not None and not each.__name__.endswith("PreTrainedModel"):
                yield each


def _build(model: Any) -> Any:
    with torch.device("meta"):
        return model._from_config(model.config_class()).eval()


def _words(reason: BaseException | None) -> str:
    """The first line of an error, short."""
    lines = str(reason).strip().splitlines() or [""]
    words = f"{type(reason).__name__}: {lines[0]}"
    return words if len(words) <= 120 else words[:119] + "…"


# --- inputs -----------------------------------------------------------------


def _inputs(name: str, network: Any) -> Iterator[tuple[Callable[..., object], dict[str, torch.Tensor]]]:
    """Methods of the network that may run, each with inputs that it may take; the simplest first."""
    for entrance in ENTRANCES:
        method = getattr(network, entrance, None)
        if method is None:
            continue
        parameters = inspect.signature(method).parameters.values()
        taken = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        needed = [p.name for p in taken if p.default is p.empty]
        known = [p.name for p in taken if p.name in KNOWN]
        if entrance == "forward" and network.main_input_name in known:
            needed = list(dict.fromkeys([*needed, network.main_input_name]))
        for names in (needed, list(dict.fromkeys([*needed, *known]))):
            if set(names) <= set(KNOWN):
                for values in product(*(KNOWN[each](name, network) for each in names)):
                    yield method, dict(zip(names, values, strict=True))


def _forward(method: Callable[..., object], given: Mapping[str, torch.Tensor]) -> Callable[[], object]:
    def forward() -> object:
        with torch.device("meta"):
            return method(**given)

    return forward


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _whole(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device="meta")


def _images(name: str, network: Any) -> list[torch.Tensor]:
    """A batch of images, of pairs of images or of films."""
    size = image_size(name, network.config)
    convolution = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = convolution.in_channels if convolution is not None else 3
    channels = channels if channels in (1, 3) else 3
    frames = getattr(network.config, "num_frames", 2)
    return [_empty(BATCH, channels, *size), _empty(BATCH, frames, channels, *size)]


def _spectrograms(name: str, network: Any) -> list[torch.Tensor]:
    return [*(_empty(BATCH, FRAMES, bins) for bins in BINS), _empty(BATCH, 1, FRAMES, 64)]


def _series(name: str, network: Any) -> list[torch.Tensor]:
    config = network.config
    return [_empty(BATCH, getattr(config, "context_length", 32), getattr(config, "num_input_channels", 1))]


def _words_of(name: str, network: Any) -> list[torch.Tensor]:
    return [_whole(BATCH, TOKENS)]


#: The inputs that are known, by the names of parameters.
KNOWN: Mapping[str, Callable[[str, Any], list[torch.Tensor]]] = {
    "pixel_values": _images,
    "image_sizes": lambda name, network: [_whole(BATCH, 2)],
    "input_features": _spectrograms,
    "past_values": _series,
    "input_values": lambda name, network: [_empty(BATCH, SAMPLES)],
    "decoder_input_values": lambda name, network: [_empty(BATCH, FRAMES, 80)],
    "classes_structure": lambda name, network: [_whole(BATCH)],
    **dict.fromkeys(
        (
            "input_ids",
            "decoder_input_ids",
            "attention_mask",
            "classes_input_ids",
            "classes_attention_mask",
            "tasks_input_ids",
            "tasks_attention_mask",
        ),
        _words_of,
    ),
}


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those within it."""
    yield config
    for each in vars(config).values():
        if isinstance(each, _transformers().PreTrainedConfig):
            yield from _configs(each)


def image_size(name: str, config: Any) -> tuple[int, int]:
    """The configuration's image size, or its image processor's, or 224: (H, W)."""
    for each in _configs(config):
        size = _pair(getattr(each, "image_size", None))
        if size:
            return size
    auto = importlib.import_module("transformers.models.auto.image_processing_auto")
    mapped = auto.IMAGE_PROCESSOR_MAPPING_NAMES
    names = mapped.get(config.model_type) or mapped.get(name) or {"": PROCESSORS.get(name)}
    processor = next((str(each) for each in names.values() if each), "")
    if processor and processor != BORROWED:
        made = getattr(_transformers(), processor, None)
        for attribute in ("pad_size", "crop_size", "size"):
            size = _pair(getattr(made, attribute, None))
            if size:
                return size
    return USUAL_SIZE


def _pair(size: Any) -> tuple[int, int] | None:
    """(H, W) of a size as configurations and processors write it."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, Mapping) and "height" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size.get("longest_edge", size["shortest_edge"]))
    return None


# --- configurations ---------------------------------------------------------


def settings() -> Counter[tuple[str, str]]:
    """Every (attribute, value) that names an activation in a default configuration, over all that ship."""
    root = Path(str(_transformers().__file__)).parent / "models"
    base, found = _transformers().PreTrainedConfig, Counter[tuple[str, str]]()
    for path in sorted(root.glob("*/configuration_*.py")):
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        for each in vars(module).values():
            if not (inspect.isclass(each) and issubclass(each, base) and each.__module__ == module.__name__):
                continue
            try:
                config = each()
            except Exception:  # it cannot be made without arguments
                continue
            for key, value in vars(config).items():
                if isinstance(value, str) and ACTIVATION_SETTING.search(key):
                    found[key, value] += 1
    return found
