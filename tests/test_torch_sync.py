"""The law of synchronization: N processes leave what one process leaves that has their batches in one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sync_cases import BF16, F16, F32, F64, KERNELS, LAYOUTS, OPERATIONS, WAYS, Case, check, step, steps

# Operations leave activations to torch, whose smooth ones have other lines than ours; these choose, and round once.
CHOOSING = (None, "relu", "leaky_relu", "hardtanh")
SMOOTH = ("silu", "gelu", "hardswish", "elu", "tanh")
# The mean in deviations. A float16 ends at 65504.
OFFSETS = {F32: (0.0, 1e3, 1e6), F64: (0.0, 1e3, 1e6), BF16: (0.0, 1e3), F16: (0.0, 1e3)}
ALL = [(layout, dtype) for layout in LAYOUTS for dtype in (F64, F32, BF16, F16)]


@st.composite
def batches(draw, size):
    """Any batch of two values per channel or more, in any parts; zeros among them."""
    counts = draw(st.lists(st.sampled_from([0, 1, 2, 5, 17]), min_size=size, max_size=size))
    if sum(counts) < 2:
        counts[draw(st.integers(0, size - 1))] += 2
    dtype = draw(st.sampled_from([F64, F32, BF16, F16]))
    ways = draw(st.lists(st.sampled_from(WAYS), min_size=size, max_size=size))
    activations = CHOOSING + (SMOOTH if set(ways) == {KERNELS} and 0 not in counts else ())
    return Case(
        tuple(counts),
        draw(st.sampled_from(list(LAYOUTS))),
        dtype,
        draw(st.sampled_from([1, 2, 3, 8, 17])),
        draw(st.sampled_from(OFFSETS[dtype])),
        draw(st.sampled_from(activations)),
        draw(st.booleans()),
        tuple(ways),
        seed=draw(st.integers(0, 1000)),
    )


def hold(processes, cases):
    """The law holds for all of them."""
    found = processes.run(steps, cases, size=len(cases[0].counts))
    for case, *ranks in zip(cases, *found, strict=True):
        try:
            check(case, ranks)
        except AssertionError as error:
            error.add_note(str(case))
            raise


@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_are_one_whatever_the_batch(size, processes):
    @settings(max_examples=6)
    @given(st.lists(batches(size), min_size=8, max_size=8))
    def law(cases):
        hold(processes, cases)

    law()


def test_processes_are_one_in_every_layout_and_type(processes):
    hold(processes, [Case((3, 4), layout, dtype, 5, OFFSETS[dtype][1]) for layout, dtype in ALL])


def test_processes_are_one_without_kernels(processes):
    ways = (OPERATIONS,) * 3
    cases = [
        Case((2, 5, 3), layout, dtype, 5, OFFSETS[dtype][1], "relu", True, ways) for layout, dtype in ALL[::3]
    ]
    hold(processes, cases)


@pytest.mark.parametrize("ways", [(KERNELS, OPERATIONS), (OPERATIONS, KERNELS)])
def test_a_process_without_kernels_understands_one_with_kernels(ways, processes):
    cases = [Case((5, 2), layout, dtype, 5, ways=ways) for layout, dtype in ALL[1::3]]
    hold(processes, cases)


@pytest.mark.parametrize("empty", [(0, 6), (6, 0), (0, 0, 6), (4, 0, 3)], ids=str)
def test_an_empty_rank_changes_nothing(empty, processes):
    each = enumerate(ALL)
    hold(processes, [Case(empty, *case, 3, OFFSETS[case[1]][1], "relu", k % 2 == 0) for k, case in each])


def test_one_sample_in_each_rank_is_a_batch(processes):
    hold(processes, [Case((1, 1), "(N, C)", dtype, 7) for dtype in (F64, F32, BF16, F16)])


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("ways", [(KERNELS, OPERATIONS), (KERNELS, KERNELS)], ids=["mixed", "kernels"])
def test_a_smooth_activation_follows_everywhere(activation, ways, processes):
    """On an empty rank, and where operations are torch's, to the digits of torch's activation in float64."""
    case = Case((3, 0, 2), "NCHW", F64, 3, 0.0, activation, True, (*ways, ways[0]))
    ranks = [each[0] for each in processes.run(steps, [case], size=3)]
    x, dy, residual = case.whole
    one = step(case.layer(None), x, dy, residual)
    for name in ("y", "dx", "dresidual"):
        got = torch.cat([each[name] for each in ranks])
        # values and gradients are of the order of 1; torch's erf and exp have some units of that
        torch.testing.assert_close(got, one[name], rtol=0, atol=1e-12)
    for name in ("dweight", "dbias"):
        torch.testing.assert_close(sum(each[name] for each in ranks), one[name], rtol=0, atol=1e-11)
