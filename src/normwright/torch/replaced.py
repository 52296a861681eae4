"""What puts a bare layer in the place of every batch norm is stopped where that would lose what ours does."""

from types import FrameType

from torch import nn

from normwright.core.checks import ShapeError, message
from normwright.torch.options import _Options

# torch's, which timm and others have copies of, and apex's. Of a copy by another name nothing can be known.
_REPLACE = ("convert_sync_batchnorm", "convert_syncbn_model")
_REMEDY = "Use normwright.torch.convert(model, sync='world') instead, which keeps everything."


def check_replaced(layer: _Options, asking: FrameType) -> None:
    """Raise where the function `asking` for the children of `layer` is one of these, and torch's could not be it.

    They ask each module for its children once they have made its substitute, before they hand that out: there is no
    other moment to object. At the first of our layers all are checked, so that all of them are replaced, or none.

    Raises:
        ShapeError: a layer of the model has an activation, channel_dim other than 1, running_var="biased",
            debias=True, or is frozen; or has a process group, and the function was given none.
    """
    model: nn.Module = layer
    called: FrameType | None = asking
    while called is not None and called.f_code.co_name in _REPLACE:  # they call themselves for each child
        given = called.f_locals.get("module")
        model = given if isinstance(given, nn.Module) else model
        called = called.f_back
    if called is asking:
        return
    call = f"{asking.f_globals.get('__name__')}.{asking.f_code.co_qualname}"
    group = asking.f_locals.get("process_group")
    for name, module in model.named_modules():
        if isinstance(module, _Options):
            where = f"at {name!r}" if name else "at the model itself"
            module.check_can_be_torchs(call, where, _REMEDY)
            if group is None and module.sync not in (None, "world"):
                expected, got = (
                    "the process group of a layer that has one",
                    f"None, which is all processes, {where}",
                )
                raise ShapeError(message(call, expected, got, remedy=_REMEDY))
