"""What synchronizing costs: measured on a few processes here, and on paper for thousands.

`synchronized` starts processes and tells what they found: each is a `rank`, and trains `networks`. `paper` has the
formulas of latency and bandwidth, `scaling` their tables and the picture.
"""
