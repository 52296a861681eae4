"""Measured speed: one timer, contenders interleaved in one run, beside the floor that memory sets.

`timer` times, `cases` and `contenders` say what, `truth` refuses wrong values, `measure` makes records of one
case; `run` starts a process for each case and allocator state (`worker`) and `table` tells what came of it.
"""
