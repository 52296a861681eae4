"""The four kernels (moments, apply, grad_sums, grad_apply), once per place that runs them.

`reference` is their definition in float64, `activations` that of what may follow; `cpu` runs them natively; `pure`
stands in where the package was built without a C++ compiler. All speak of NumPy arrays in the paper's words.
"""

from importlib.util import find_spec

#: False in a package built with NORMWRIGHT_PURE=1. A native module that is there and fails to load is an error.
NATIVE = find_spec("normwright._native") is not None

if NATIVE:
    from normwright.kernels import cpu as best
else:
    from normwright.kernels import pure as best  # type: ignore[no-redef]

__all__ = ["NATIVE", "best"]
