"""The model inside of what it was wrapped in: compiled, replicated, averaged."""

from torch import nn
from torch.optim.swa_utils import AveragedModel


def inside(model: nn.Module) -> nn.Module:
    """The module inside of all wrappers: DistributedDataParallel, DataParallel, torch.compile's, AveragedModel."""
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def to_run(model: nn.Module) -> nn.Module:
    """The module to run in its place: outside of no wrapper that broadcasts buffers, replicates or compiles.

    An AveragedModel around a plain module does none of these, and is left, so that its layers keep their names.
    """
    within = inside(model)
    return model if isinstance(model, AveragedModel) and model.module is within else within


def _inner(model: nn.Module) -> nn.Module | None:
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel | AveragedModel):
        held: nn.Module = model.module
        return held
    return model._modules.get("_orig_mod")


def is_sharded(model: nn.Module) -> bool:
    """Whether a pass that ends early would leave parameters gathered from other processes."""
    return any(kind.__name__.startswith("FSDP") or kind.__name__ == "FullyShardedDataParallel"
               for module in model.modules() for kind in type(module).__mro__)  # fmt: skip
