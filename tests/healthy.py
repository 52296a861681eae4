"""A layer with which nothing is wrong, for the doctor's checks: each test spoils it in one place.

finding = only(layer(var=at(HEALTHY.var, c1=-1.0)))
"""

from dataclasses import replace

import numpy as np

from normwright.doctor.checks import CHECKS, examine
from normwright.doctor.layer import LayerState, Settings

C = 8


def layer(name="bn", **changes):
    """A layer with which nothing is wrong, but for `changes`."""
    rng = np.random.default_rng(0)
    healthy = LayerState(
        name,
        mean=rng.normal(size=C),
        var=rng.uniform(0.5, 2, C),
        dtype="float32",
        weight=rng.uniform(0.5, 1.5, C),
        bias=rng.normal(size=C),
        weight_dtype="float32",
        updates=1000,
        settings=Settings(eps=1e-5, momentum=0.1),
    )
    return replace(healthy, **changes)


def at(values, **changed):
    """The array with some of its numbers changed, by their places: at(x, c3=5.0)."""
    array = values.copy()
    for place, value in changed.items():
        array[int(place[1:])] = value
    return array


def only(*layers, **options):
    """The one finding there is; any other would be a false alarm."""
    (finding,) = examine(layers, **options)
    return finding


def told(finding):
    return finding.severity, finding.check, finding.layer, finding.value, finding.channels


HEALTHY = layer()


def named(name):
    """One of the checks, by its function's name."""
    (check,) = [check for check in CHECKS if check.find.__name__ == name]
    return check
