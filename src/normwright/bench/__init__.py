"""Measured speed: one timer, contenders interleaved in one run, beside the floor that memory sets.

`cases` and `grid` say what is measured, `problem` makes its tensors; `contenders`, `peers` and `floor` are timed by
`timer` once `truth` has found their values right; `measure` makes records of one input (a `job`). `run` has
`processes` do every job, each in a `worker`; `telling/` says what came of it. `models/` knows which batch norms
models have. Measured apart: `distributed/`, what synchronizing costs; `side_by_side/`, smaller questions.
"""
