"""Measured speed: one timer, contenders interleaved in one run, beside the floor that memory sets."""
