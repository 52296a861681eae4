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

from normwright.core.checks import DtypeError, NonfiniteError, ShapeError, SyncError, TransformError
from normwright.torch.convert import convert, revert
from normwright.torch.decay import param_groups
from normwright.torch.distributed.pooling import LayerPooling, Pooling, pool_running_stats
from normwright.torch.distributed.sync_report import SyncReport
from normwright.torch.distributed.verify import verify_sync
from normwright.torch.freeze import freeze, unfreeze
from normwright.torch.functional import BatchNormStats, batch_norm, batch_norm_stats
from normwright.torch.lazy import LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from normwright.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, skipped
from normwright.torch.running import SkippedUpdateWarning
from normwright.torch.scopes import no_stat_update
from normwright.torch.statistics.copying import copy_statistics
from normwright.torch.statistics.drift import Drift, LayerDrift
from normwright.torch.statistics.exchange import export_statistics, load_statistics
from normwright.torch.statistics.inspect import inspect
from normwright.torch.statistics.recalibrate import recalibrate

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormStats",
    "Drift",
    "DtypeError",
    "LayerDrift",
    "LayerPooling",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "NonfiniteError",
    "Pooling",
    "ShapeError",
    "SkippedUpdateWarning",
    "SyncBatchNorm",
    "SyncError",
    "SyncReport",
    "TransformError",
    "batch_norm",
    "batch_norm_stats",
    "convert",
    "copy_statistics",
    "export_statistics",
    "freeze",
    "inspect",
    "load_statistics",
    "no_stat_update",
    "param_groups",
    "pool_running_stats",
    "recalibrate",
    "revert",
    "skipped",
    "unfreeze",
    "verify_sync",
]
