"""The PyTorch door: batch normalization in torch's own words, as a drop-in for `torch.nn.BatchNorm1d/2d/3d`.

Example:
    >>> import torch, normwright.torch as nw
    >>> model = nw.convert(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)))
    >>> model(torch.randn(16, 4)).shape
    torch.Size([16, 8])
"""

try:
    import torch as _torch  # noqa: F401  # before the native module, so that both use one OpenMP library
except ImportError as error:
    raise ImportError(
        "normwright.torch needs PyTorch. Install it with: pip install 'normwright[torch]'"
    ) from error

from normwright.torch.convert import convert, revert
from normwright.torch.functional import batch_norm
from normwright.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert", "revert"]
