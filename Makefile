# `make demo` and `make test` set up all they need on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
# SGLang's pins are not the trainer's.
SGLANG_VENV := .venv-sglang
SGLANG_RELEASE := 0.5.23
BIN := $(VENV)/bin
PLUGINS := plugins/glm4 plugins/glm45 plugins/glm47_flash plugins/glm52_dsa plugins/rewards
MODEL ?= glm4
SEED ?= 1
DEMO := runs/demo
KILLS ?= 5
# PARALLEL=tp2 is --set parallel.tp=2: two processes learn what one does.
LAYOUT := $(shell echo $(PARALLEL) | sed -E 's/([a-z]+)([0-9]+)/--set parallel.\1=\2/')
# MTP=1 trains the multi-token prediction layer, which is random until then, beside the policy.
DRAFTS := $(if $(MTP),--set mtp.num_layers=1 --set mtp.train=true)
SERVERS := --set rollout.engine=sglang --set rollout.num_gpus=2 --set rollout.sglang.python=$(DEMO)-python \
	--set train.steps=60 --set eval.every=null

.PHONY: help setup demo demo-sglang test test-sglang parity test-kill lint benchmark wheels clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## create .venv with rlcore, its plugins and all tools, editable

$(VENV)/.installed: pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[train,dev]' $(PLUGINS:%=--editable %)
	touch $@

demo: setup  ## train a tiny model with GRPO on this machine's CPU (MODEL=glm45, glm47_flash, glm52_dsa: another; PARALLEL=tp2, pp2, cp2, dp2: on two processes; MTP=1: drafts learn too)
	rm -rf $(DEMO) $(DEMO)-data $(DEMO)-sft
	$(BIN)/python -m rlcore_$(MODEL).demo $(DEMO)-data --seed $(SEED)
	$(BIN)/rlcore sft $(MODEL)/tiny --run-dir $(DEMO)-sft --set seed=$(SEED) $(LAYOUT)
	$(BIN)/rlcore train $(MODEL)/tiny --run-dir $(DEMO) --set seed=$(SEED) --set model.checkpoint=$(DEMO)-sft/hf $(LAYOUT) $(DRAFTS) $(SERVED)

# That interpreter finds stand-ins for kernels that no CPU has.
demo-sglang: setup $(SGLANG_VENV)/.installed  ## the demo, shorter, on two ranks with two SGLang servers behind their router (installs 2.7 GB)
	mkdir -p runs
	printf '#!/bin/sh\nPYTHONPATH=%s exec %s "$$@"\n' $(CURDIR)/tests/sglang/shim $(CURDIR)/$(SGLANG_VENV)/bin/python > $(DEMO)-python
	chmod +x $(DEMO)-python
	OMP_NUM_THREADS=1 $(MAKE) demo PARALLEL=tp2 SERVED='$(SERVERS)'

# Two workers on two cores: more threads inside each would only wait for one another.
test: setup  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10 --ignore=tests/sglang

# Without dependencies: those that a server needs on a CPU are pinned, and its own want CUDA.
$(SGLANG_VENV)/.installed: tests/sglang/requirements.txt
	test -x $(SGLANG_VENV)/bin/python || $(PYTHON) -m venv $(SGLANG_VENV)
	$(SGLANG_VENV)/bin/python -m pip install --quiet --requirement $<
	$(SGLANG_VENV)/bin/python -m pip install --quiet --no-deps sglang==$(SGLANG_RELEASE)
	touch $@

# Where nothing was collected pytest ends with 5, and so does this.
test-sglang: setup $(SGLANG_VENV)/.installed  ## engines against real SGLang servers on this machine's CPU (installs 2.7 GB)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/sglang --durations=10

# One thread a rank: up to eight of them share the cores.
parity: setup  ## every parallel layout's gradient against one process's; writes runs/parity.json
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/parity/run.py

test-kill: setup  ## kill -9 runs at random moments (KILLS=5) and resume them; resume every layout in every other
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/kill/kill.py $(KILLS)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/kill/reshard.py

lint: setup  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: setup  ## print every benchmark's ratios as JSON
	for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file; done

wheels: setup  ## build a wheel of every distribution into dist/
	for folder in . $(PLUGINS); do $(BIN)/python -m build --quiet --wheel --outdir dist $$folder; done

clean:  ## remove the environment and what runs and builds left
	rm -rf $(VENV) $(SGLANG_VENV) build dist runs .mypy_cache .ruff_cache .pytest_cache
