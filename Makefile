# `make help` shows what there is. Looking is the default; what changes files says so in its name.
SHELL := /bin/sh
PY := .venv/bin/python
TESTS ?= tests
RUN := OMP_NUM_THREADS=1 $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup serve test check fix docs test-slow chaos test-gpu bench bench-gpu bench-methods bench-peers starters pretrain sbom env clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv and install everything (CHORUS_TORCH=cuda for a GPU)
	@scripts/setup.sh dev

serve: ## install what serving needs and run `chorus up` (ARGS="--port 8001" for its options)
	@scripts/setup.sh run
	@.venv/bin/chorus up $(ARGS)

test: setup ## all tests but slow, chaos and gpu (TESTS=tests/unit for a part)
	$(RUN) -n 2 --dist loadfile -m "not slow and not chaos and not gpu" $(TESTS)

check: setup ## lint, format, types, layers, unit tests; changes nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(RUN) -n 2 --dist loadfile -m "not slow and not chaos and not gpu" tests/unit

fix: setup ## format, and repair what a tool can repair
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: setup ## write docs/cli.md and docs/settings.md anew
	$(PY) -m app.cli.reference docs

test-slow: setup ## the longer proofs
	$(RUN) -m slow $(TESTS)

chaos: setup ## carry out the fault matrix, kills included, and write docs/results/faults.md
	$(RUN) -n 2 --dist loadfile -p tests.fault_matrix.matrix --faults docs/results/faults.md -m "not gpu" tests

test-gpu: setup ## what only a GPU shows
	$(RUN) -m gpu $(TESTS)

bench: setup ## measure: the engine beside its peers (ARGS for a part), training under load, with DATA=folder also mixed tasks, training
	@[ -d .peers/vllm ] || echo 'vLLM is not installed, so it will not be measured: make bench-peers'
	$(PY) -m benchmarks.engine $(ARGS)
	$(PY) -m benchmarks.many_tasks --write docs/results
	$(PY) -m benchmarks.many_tasks labels generate --model 0.5b --write docs/results
	$(PY) -m benchmarks.http_load --work .peers/work --write docs/results/http.md
	$(PY) -m benchmarks.train_under_load
	@if [ -n "$(DATA)" ]; then $(PY) -m benchmarks.mixed_tasks --data "$(DATA)" && $(PY) -m benchmarks.training --data "$(DATA)"; fi

bench-gpu: setup ## on a GPU: beside `generate` and what the GPU can do at most (ARGS="--model NAME")
	$(PY) -m benchmarks.gpu --write docs/results/gpu.md $(ARGS)

bench-methods: setup ## every method beside fine-tuning on public sets from DATA=folder, some hours; goes on where it was
	@test -n "$(DATA)" || { echo 'say where the data sets are: make bench-methods DATA=folder' >&2; exit 2; }
	$(PY) -m benchmarks.methods --data "$(DATA)" $(ARGS)

bench-peers: ## install vLLM for CPUs beside us, in .peers/vllm, for make bench to measure
	@benchmarks/engine/setup_vllm.sh

starters: setup ## train the starter prompts anew from DATA=folder and CORPUS=folder (ARGS="--budget wide"); writes README's table
	@test -n "$(DATA)" -a -n "$(CORPUS)" || { echo 'say where the texts are: make starters DATA=folder CORPUS=folder' >&2; exit 2; }
	$(PY) -m benchmarks.starters --data "$(DATA)" --corpus "$(CORPUS)" --table README.md --page docs/results/starters.md $(ARGS)

pretrain: setup ## make the backbone from DATA=folder and CORPUS=folder, or go on with it (ARGS="--threads 2 --nice 10")
	@test -n "$(DATA)" -a -n "$(CORPUS)" || { echo 'say where the texts are: make pretrain DATA=folder CORPUS=folder' >&2; exit 2; }
	$(PY) -m pretraining all --data "$(DATA)" --corpus "$(CORPUS)" $(ARGS)

sbom: setup ## write dist/*.cdx.json, the bill of materials of what serving needs (EXTRAS="s3" adds an extra)
	@scripts/sbom.sh

env: ## write .env for docker compose with fresh secrets; keeps one that exists
	@python3 docker/write_env.py

clean: ## remove .venv and caches; data folders stay
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
