"""The four kernels (moments, apply, grad_sums, grad_apply), once per place that runs them.

`reference` is their definition in float64; `cpu` runs them natively. Both speak of NumPy arrays in the paper's words.
"""
