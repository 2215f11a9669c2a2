"""Classify sets of images that are too large for one process, with Ray Data.

- `listing`: which images there are, in folders and object stores; `stores`: how both are reached.
- `folder`: the answers, one parquet file for each part of the list, and what is still missing.
- `worker`: what a process of the cluster does; `cluster`: the cluster itself; `run`: all of it together.

Nothing here imports Ray before it is needed.
"""
