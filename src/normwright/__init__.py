"""Batch normalization that is fast, exact, and easy to trust.

The doors: `normwright.numpy` and `normwright.torch`. Importing `normwright` itself imports no framework.
"""

from importlib import metadata

__version__ = metadata.version("normwright")
__all__ = ["__version__"]
