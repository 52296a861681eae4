"""All checks, and how their findings are put in order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from normwright.doctor import statistics_checks, training_checks
from normwright.doctor.findings import SEVERITIES, Finding, Findings
from normwright.doctor.layer import LayerState


class Check(NamedTuple):
    """A function from layers to findings, and whether it needs what only a model knows."""

    find: Callable[[Sequence[LayerState]], Iterator[Finding]]
    asks_settings: bool = False


# Among findings equally severe, those of an earlier check come first: it does more harm, or causes the later.
CHECKS: tuple[Check, ...] = (
    Check(training_checks.weights_not_finite),
    Check(statistics_checks.not_finite),
    Check(statistics_checks.negative_variance),
    Check(statistics_checks.never_trained),
    Check(training_checks.momentum, asks_settings=True),
    Check(training_checks.eps, asks_settings=True),
    Check(statistics_checks.precision),
    Check(statistics_checks.half_statistics),
    Check(training_checks.counters),
    Check(training_checks.dead_weights),
    Check(statistics_checks.constant_channels),
    Check(statistics_checks.not_counted),
    Check(training_checks.never_reached),
    Check(statistics_checks.no_counter),
)

NOTHING = Finding(
    "no layers",
    "warning",
    "",
    "layers",
    0,
    "layers",
    "There is no batch norm with running statistics here: nothing could be looked at.",
    "Look at the model or the file that has them. Layers with track_running_stats=False keep none.",
)


def examine(
    layers: Iterable[LayerState],
    *,
    taken: str = "",
    not_checked: Iterable[str] = (),
    checks: Sequence[Check] = CHECKS,
) -> Findings:
    """Run every check over every layer.

    Args:
        layers: in the order in which they are to be told; those without channels are passed over.
        taken: what they were taken from, in a sentence; empty where that is plain.
        not_checked: what could not be looked at already, a sentence each.
        checks: which. Default: all there are.

    Returns:
        Findings: worst first; among the equally severe in the order of `checks`, then those that concern the larger
        part of a layer's channels, then in the order of `layers`. Where there are no layers, that is a warning.

    Numerics:
        Everything is computed in float64 from numbers as they were recorded. Where eps is not known it is taken to
        be torch's, 1e-5.

    Example:
        >>> import numpy as np
        >>> fresh = LayerState("bn1", np.zeros(8), np.ones(8), "float32", updates=0)
        >>> [(finding.severity, finding.check, finding.layer) for finding in examine([fresh])]
        [('error', 'never trained', 'bn1')]
    """
    known = [layer for layer in layers if layer.channels]
    notes = list(not_checked)
    asking = [check.find.__name__ for check in checks if check.asks_settings]
    unknown = sum(layer.settings is None for layer in known)
    if unknown and asking:
        notes.append(
            f"Not checked: {' and '.join(asking)}, which only a model knows (nw.inspect(model)); "
            "eps is taken to be 1e-5."
        )
    found = [
        (SEVERITIES.index(finding.severity), rank, -finding.share, finding)
        for rank, check in enumerate(checks)
        for finding in check.find(known)
    ]
    if not known:
        found.append((SEVERITIES.index(NOTHING.severity), 0, 0.0, NOTHING))
    found.sort(key=lambda entry: entry[:3])
    return Findings(tuple(finding for *_, finding in found), len(known), taken, tuple(notes))
