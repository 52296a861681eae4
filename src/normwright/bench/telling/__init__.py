"""The benchmark's records, told.

`cells` puts the records of one input together, `told` numbers into words. `overall` makes the tables of all cells
in sum, `percell` those of each, `notes` the sentences without which numbers mean little; `table` binds them for
terminal and pages. `compare` sets two runs side by side, `figure` draws.
"""
