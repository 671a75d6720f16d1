"""How many compiled products a process keeps.

oneDNN compiles a kernel for each product and each number of tokens, half a MiB on average; it and torch's layer above
keep 1,024 of them each. Batches come with any number of tokens, so that a server would fill up with some 450 MiB of
kernels, most of which are never used again. Bounded, what is used from step to step stays, and a newcomer costs 0.2 to
0.6 ms; behind the compiled steps long batches need few, as their products have whole numbers of rows (linear.py).
"""

from __future__ import annotations

import os

CAPACITY = 96
"""A decode step has five: enough for some twenty sizes of batch, less what prefills need between."""
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_product_cache() -> None:
    """Keep up to `CAPACITY` of them, or as many as the environment says under oneDNN's and torch's own names. Both read
    it at the process' first product: to be called before."""
    for name in _CACHES:
        os.environ.setdefault(name, str(CAPACITY))
