"""What computing layers again saves and costs: peak memory and time of training steps over long rows.

    python -m benchmarks.checkpointing [--length 1024] [--layers 12] [--hidden 512]

Each form runs in a process of its own, so that the largest resident size is its own; on a GPU the allocator's peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from app.backbone.backbone import make_tokenizer, wrap_model
from app.backbone.placement import choose_device
from app.backbone.recomputation import recompute_layers
from app.backbone.rows import Row
from app.backbone.source import bundled_folder
from app.backbone.training_form import prepare_for_training
from app.training.data import Example
from app.training.examples import Encoded
from app.training.gradients import Lesson, accumulate

STEPS = 3


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One form, in this process: {"peak_mb" beyond what the model takes, "seconds" a step, "loss"}."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        max_position_embeddings=options.length + 64,
    )
    model = LlamaForCausalLM(config).to(choose_device("auto"))
    tokenizer = make_tokenizer(AutoTokenizer.from_pretrained(bundled_folder(), trust_remote_code=False), model)
    backbone = prepare_for_training(wrap_model(model, tokenizer, name="random", identity="0" * 64))
    recompute_layers(model, options.form == "again")
    vectors = (torch.randn(20, options.hidden) * 0.02).to(backbone.device).requires_grad_()
    ids = (*(-1 - j for j in range(20)), *torch.randint(10, 8000, (options.length - 24,)).tolist())
    rows = [Encoded(Row(ids, 20), None, (5, 6, 7, 1), Example(n, {}, output="")) for n in range(2)]

    def step() -> float:
        vectors.grad = None
        return accumulate(backbone, [Lesson(vectors, rows, None)], tokens=2 * options.length)[0]

    accumulate(backbone, [Lesson(vectors, [Encoded(Row(ids[:40], 20), None, (5,), rows[0].example)], None)], tokens=64)
    before = peak_bytes()
    began = time.perf_counter()
    losses = [step() for _ in range(STEPS)]
    seconds = (time.perf_counter() - began) / STEPS
    return {"peak_mb": (peak_bytes() - before) / 2**20, "seconds": seconds, "loss": losses[-1]}


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row; a step has two rows")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--form", choices=["kept", "again"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.form is not None:
        print(json.dumps(measure(options)))
        return
    print(f"2 rows of {options.length} tokens, {options.layers} layers of {options.hidden}")
    print("| layers | peak beyond the model, MiB | seconds a step | loss |\n|---|---|---|---|")
    for form in ("kept", "again"):
        command = [sys.executable, "-m", "benchmarks.checkpointing", "--form", form]
        sizes = [f"--{name}={getattr(options, name)}" for name in ("length", "layers", "hidden")]
        done = subprocess.run([*command, *sizes], check=True, capture_output=True, text=True)
        of = json.loads(done.stdout.splitlines()[-1])
        print(f"| {form} | {of['peak_mb']:.0f} | {of['seconds']:.2f} | {of['loss']:.6f} |")


if __name__ == "__main__":
    main()
