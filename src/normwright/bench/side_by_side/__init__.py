"""Ours beside others in what the benchmark does not time: a command and a table for each question.

`behaviour`: what torch's layers and ours do in every one of the `situations`. `populations`: how far statistics by
three tools are from those of the whole data set. `latency`: what a call costs where there is little to compute.
"""
