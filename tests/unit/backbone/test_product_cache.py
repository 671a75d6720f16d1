from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from app.backbone.linear import can_pack
from app.backbone.product_cache import CAPACITY, bound_product_cache

WIDTHS, SIZES = 5, 60
# Products of ever other shapes, in a process of its own: the caches are bounded once, or never.
PRODUCTS = """
import sys
import psutil, torch
from app.backbone.freed_memory import give_back_freed_memory
from app.backbone.linear import frozen_linear
from app.backbone.product_cache import bound_product_cache
def resident():
    give_back_freed_memory()
    return psutil.Process().memory_info().rss >> 20
torch.set_num_threads(1)
if sys.argv[1] == "bounded":
    bound_product_cache()
widths, sizes = map(int, sys.argv[2:])
x, linears = torch.randn(sizes, 128), [frozen_linear([torch.randn(64 * n, 128)], [None]) for n in range(1, 1 + widths)]
linears[0](x)
before = resident()
for tokens in range(1, sizes + 1):
    for linear in linears:
        linear(x[:tokens])
print(resident() - before)
"""


def grown_mib(how: str) -> int:
    """MiB that a process keeps after 300 different products."""
    clean = {key: value for key, value in os.environ.items() if not key.endswith("CACHE_CAPACITY")}
    command = [sys.executable, "-c", PRODUCTS, how, str(WIDTHS), str(SIZES)]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not can_pack(torch.empty(1, 1)), reason="torch was built without oneDNN")
def test_products_of_any_number_of_tokens_keep_no_more_kernels_than_the_bound() -> None:
    free, bounded = grown_mib("free"), grown_mib("bounded")
    assert bounded < 1.5 * free * CAPACITY / (WIDTHS * SIZES)
    assert bounded < free - 20


def test_bound_of_the_product_cache_leaves_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"LRU_CACHE_CAPACITY": "7"}
    monkeypatch.setattr(os, "environ", environment)
    bound_product_cache()
    assert environment == {"LRU_CACHE_CAPACITY": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(CAPACITY)}
