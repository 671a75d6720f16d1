"""The table of the experiments, question by question, beside the base."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pretraining.files import write_atomically

BASE = "base"
HEAD = """# Choices of the recipe, by short runs

By `python -m pretraining.experiments` ({date}; {processor}, {threads} threads, torch {torch}). Each variant changes one
thing of the base and computes for {seconds:.0f} seconds, so a slower step means fewer of them. All go through the whole
schedule: warm-up, constant rate, decay. One run each: how much chance alone changes was not measured.

Bits a byte on text kept back, and nats lost on dev rows asked in a wording (chance is 0.69 for two labels, 1.10 for
three, 1.39 for four), both with averaged weights; "last": the same bits with the last weights.
"""


def write_page(file: Path, seconds: float, threads: int, results: Sequence[Mapping[str, Any]]) -> None:
    """`results` as the bench keeps them; those of one question stand in one table, below the base."""
    base = [one for one in results if one["question"] == BASE]
    questions = dict.fromkeys(one["question"] for one in results if one["question"] != BASE)
    lines = [
        HEAD.format(
            date=time.strftime("%Y-%m-%d"),
            processor=platform.machine(),
            threads=threads,
            torch=torch.__version__,
            seconds=seconds,
        )
    ]
    for question in questions:
        lines += [f"\n## {question}\n", *_table([*base, *(one for one in results if one["question"] == question)])]
    write_atomically(file, ("\n".join(lines) + "\n").encode())


def _table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return []
    corpora = list(results[0]["averaged"]["kept_back"])
    probes = [probe["data"] for probe in results[0]["averaged"]["probes"]]
    heads = ["variant", "parameters", "tokens", *(f"{one}, bits" for one in corpora), "last", *probes]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for one in results:
        averaged, last = one["averaged"], one["last"]
        bits = [f"{averaged['kept_back'][name]['bits_per_byte']:.3f}" for name in corpora]
        mean_last = sum(last["kept_back"][name]["bits_per_byte"] for name in corpora) / len(corpora)
        mean = sum(averaged["kept_back"][name]["bits_per_byte"] for name in corpora) / len(corpora)
        nats = [f"{probe['loss']:.3f}" for probe in averaged["probes"]]
        cells = [
            one["name"],
            f"{one['parameters'] / 1e6:.1f} M",
            f"{one['tokens'] / 1e6:.1f} M",
            *bits,
            f"{mean_last - mean:+.3f}",
            *nats,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows
