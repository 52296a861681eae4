"""Several processes: one batch that they share, statistics that they pool, and the proof that N of them equal one.

`sync` says who they are, `peers` what layers tell each other, `shared` and `synced` what comes of it; `ranks` is
for work on whole models, `missing` for what is said when a process does not come.
"""
