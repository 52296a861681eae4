"""Whether the claims the demo measures held, decided by the records and by nothing else."""

from collections.abc import Sequence
from statistics import median

from normwright.report.document import Outcome, Verdict
from normwright.report.records import Record
from normwright.report.summary import PERCENT, WHOLE_PERCENT, difference, numbers, pick, spread, told, values

# Of all test predictions, the share that other statistics may change before the two are said to differ: a
# little more than the standard error of an accuracy of 0.97 measured on 500 images, sqrt(0.97 * 0.03 / 500)
# = 0.008.
FEW_CHANGED = 0.01
# Outputs are of order 1, where neighbouring float32 numbers are 1.2e-7 apart: some dozens of them is
# rounding.
ROUNDING = 1e-5


def speed(records: Sequence[Record], network: str) -> Verdict:
    """With BN, fewer steps reach the best accuracy without it: for all seeds, or in the median."""
    ratios = values(records, "ratio of steps", network=network)
    sooner = sum(ratio is not None and ratio < 1 for ratio in ratios)
    of = spread(ratios)
    return Verdict(
        "Fewer steps to the same accuracy",
        _outcome(sooner == len(ratios), of.middle is not None and of.middle < 1),
        f"The best accuracy without BN came sooner with it for {sooner} of {len(ratios)} seeds; "
        f"share of the steps: {told(of, WHOLE_PERCENT)}.",
    )


def accuracy(records: Sequence[Record], network: str) -> Verdict:
    """With BN, the test accuracy is higher: for the worst seed above the best without, or in the median."""
    with_norm = numbers(records, "test accuracy", network=network, batch_norm=True)
    without = numbers(records, "test accuracy", network=network, batch_norm=False)
    outcome = _outcome(min(with_norm) > max(without), median(with_norm) > median(without))
    shown = f"{told(spread(with_norm), PERCENT)} with BN, {told(spread(without), PERCENT)} without"
    meet = "; the ranges overlap" if outcome == "holds partly" else ""
    return Verdict("Higher test accuracy", outcome, f"{shown}{meet}.")


def statistics(records: Sequence[Record]) -> Verdict:
    """The moving average predicts as the exact statistics of the training set do."""
    changed = numbers(records, "changed predictions")
    of = sum(int(r.where["of"] or 0) for r in pick(records, "changed predictions"))
    return Verdict(
        "The moving average predicts as the exact statistics do",
        _outcome(sum(changed) == 0, sum(changed) <= FEW_CHANGED * of),
        f"They disagree on {sum(changed):g} of {of} predictions, all networks and seeds together.",
    )


def alone(records: Sequence[Record]) -> Verdict:
    """Predicting, the layer gives an image alone the very output that it gives it in a batch."""
    what = "difference alone to in a batch"
    layer = max(numbers(records, what, of="layer"))
    network = max(numbers(records, what, of="network with BN"))
    control = max(numbers(records, what, of="network without BN"))
    return Verdict(
        "Alone or in a batch, the layer gives the same output",
        _outcome(layer == 0, layer <= ROUNDING),
        f"Its outputs differ by {difference(layer)}. Whole networks differ by {difference(network)} with BN "
        f"and by {difference(control)} without: the matrix product and the convolution, which torch may sum "
        "in another order for another number of images.",
    )


def _outcome(holds: bool, partly: bool) -> Outcome:
    return "holds" if holds else "holds partly" if partly else "does not hold here"
