"""The moments of all ranks, merged: as they exactly are, the same bits by both ways, and without any values."""

from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
import torch

from close import same_bits, within
from normwright.core.moments import Moments
from normwright.kernels import NATIVE
from normwright.torch.distributed.peers import merged
from normwright.torch.distributed.shared import numbers_in, rstd_of

if NATIVE:
    from normwright import _native

UNIT = 2.0**-53
EPS = 1e-5
COUNTS = {
    "one rank": [5],
    "five ranks": [5, 1, 17, 2, 40],
    "empty ones": [0, 7, 0, 7, 3, 0],
    "one is alone": [0, 1, 0],
    "none": [0, 0, 0],
}


def rows_of(counts, mean=0.0, channels=17, seed=0):
    """Rows as ranks send them: means around `mean` with a tail, an empty rank's zeros."""
    rng = np.random.default_rng(seed)
    near = mean + rng.standard_normal((len(counts), channels))
    tail = np.spacing(near) / 2 * rng.uniform(-1, 1, near.shape)
    m2 = np.array(counts)[:, None] * rng.uniform(0.5, 2, near.shape)
    rows = np.concatenate([np.array(counts, float)[:, None], near, tail, m2], axis=1)
    rows[np.array(counts) == 0, 1:] = 0
    return torch.from_numpy(rows)


def by_kernel(rows, eps=EPS):
    """count; mean, mean_tail, m2 and rstd."""
    saved = bytearray(32 * ((rows.shape[1] - 1) // 3))
    return _native.merge_rows(rows, eps, saved), numbers_in(saved).numpy()


@pytest.mark.skipif(not NATIVE, reason="this build has no kernels, so there is one way alone")
@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
@pytest.mark.parametrize("mean", [0.0, 1e6])
@pytest.mark.parametrize("counts", COUNTS)
def test_the_kernel_and_operations_merge_to_the_same_bits(counts, mean, bad):
    for seed in range(20):
        rows = rows_of(COUNTS[counts], mean, seed=seed)
        is_bad = bad is not None and bool(rows.any())
        if is_bad:  # in the largest part, from which others are seen, or in the last
            part = rows[:, 0].argmax() if seed % 2 else rows[:, 0].nonzero()[-1, 0]
            rows[part, [4, 4 + 17, 4 + 34]] = torch.tensor([bad, 0, torch.nan], dtype=rows.dtype)
        whole, (count, numbers) = merged(rows), by_kernel(rows)
        assert whole.count.tolist() == [count]
        want = np.stack([t.numpy() for t in (whole.mean, whole.mean_tail, whole.m2)])
        assert np.isfinite(want).all(0).tolist() == [not is_bad or c != 3 for c in range(17)]
        # one NaN is as good as another
        same_bits(f"seed {seed}", *(np.where(np.isnan(t), np.nan, t) for t in (numbers[:3], want)))
        # no statistic; torch's root may be off by a unit in the last place, and the quotient by another half
        rstd = rstd_of(whole, EPS).numpy()
        within(f"rstd, seed {seed}", numbers[3], rstd, 2 * np.spacing(rstd), match_nan=is_bad)


def exactly(rows):
    """The mean and m2 of each channel, of what the rows say, as fractions."""
    counts = [Fraction(n) for n in rows[:, 0].tolist()]
    means, tails, m2s = ([[Fraction(v) for v in row] for row in t.tolist()] for t in rows[:, 1:].chunk(3, 1))
    found = []
    for c in range(len(means[0])):
        each = [m[c] + t[c] for m, t in zip(means, tails, strict=True)]
        mean = sum(n * m for n, m in zip(counts, each, strict=True)) / sum(counts)
        between = sum(n * (m - mean) ** 2 for n, m in zip(counts, each, strict=True))
        found.append((mean, sum(m[c] for m in m2s) + between, max(abs(m - mean) for m in each)))
    return found


@pytest.mark.parametrize("mean", [0.0, 1e6, -1e12])
@pytest.mark.parametrize("counts", ["one rank", "five ranks", "empty ones"])
def test_merged_moments_are_those_of_all_values(counts, mean):
    for seed in range(5):
        rows = rows_of(COUNTS[counts], mean, 3, seed)
        full = rows[rows[:, 0] > 0]  # an empty row is none
        ranks = len(full)
        for whole in (merged(rows), merged(full)):
            for c, (exact, m2, away) in enumerate(exactly(full)):
                # `away` is rounded in its differences, products and sums; the tail itself, a rounding of a rounding
                of_mean = (ranks + 6) * UNIT * float(2 * away) + 4 * UNIT**2 * abs(float(exact))
                off = Fraction(whole.mean[c].item()) + Fraction(whole.mean_tail[c].item()) - exact
                assert abs(off) <= of_mean
                # half of a last place by rounding, and the half that the largest part's tail may be
                assert abs(Fraction(whole.mean[c].item()) - exact) <= 2 * UNIT * abs(float(exact)) + of_mean
                # sums of positive terms; and the squares of distances that are off by as much as the mean
                of_squares = 4 * full[:, 0].sum().item() * float(away) * of_mean
                assert abs(Fraction(whole.m2[c].item()) - m2) <= (ranks + 6) * UNIT * float(m2) + of_squares


def test_moments_that_are_merged_at_once_are_those_that_are_merged_in_turn():
    for counts in ([5, 1, 17, 2, 40], [0, 7, 0, 7, 3, 0]):
        for mean in (0.0, 1e6):
            rows = rows_of(counts, mean)
            rows[:, 18:35] = 0  # which `Moments` does not know
            each = [Moments(int(row[0]), row[1:18], row[35:]) for row in rows.numpy()]
            want, whole = reduce(Moments.merge, each), merged(rows)
            assert whole.count.tolist() == [want.count]
            # in turn, each mean on the way is rounded; distances of the order of 4 are then off by as much
            rounded = 8 * UNIT * (abs(mean) + 4) * len(counts)
            within("mean", whole.mean.numpy(), want.mean, rounded)
            within("m2", whole.m2.numpy(), want.m2, 2 * 4 * want.count * rounded)


def test_an_empty_row_changes_nothing_to_the_bit():
    rows = rows_of([5, 17, 2], 1e3)
    empty = torch.zeros(1, rows.shape[1], dtype=rows.dtype)
    want = merged(rows)
    for at in range(4):
        got = merged(torch.cat([rows[:at], empty, rows[at:]]))
        for name, t in want._asdict().items():
            same_bits(name, getattr(got, name).numpy(), t.numpy())


def test_devices_merge_without_a_question():
    """On meta there is no value to ask for; and nothing that a device refuses where it is to be deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        whole = merged(rows_of([5, 0, 2]).to("meta"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert [t.shape for t in whole] == [(1,), (17,), (17,), (17,)]
    assert {(t.device.type, t.dtype) for t in whole} == {("meta", torch.float64)}
    assert rstd_of(whole, EPS).shape == (17,)
