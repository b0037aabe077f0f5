# Needs make and Python 3.11 or newer; everything else is installed into .venv.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEMO := runs/demo
BENCH := runs/bench

.DEFAULT_GOAL := help
.PHONY: help install demo test evidence lint typecheck docs screenshots peers clean

help:  ## list the targets
	@awk -F ':.*##' '/^[a-z]+:.*##/ {printf "make %-10s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## install fitune into .venv, with the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: fitune needs Python 3.11 or newer; for example: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV). The first time this takes a few minutes: torch is large."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[train,plot,serve,docs,dev]'
	@touch $@

demo: install  ## ask for a 7B model on a T4, then plan and launch a tiny run on this machine
	$(BIN)/fitune can 7b --gpu t4
	@rm -rf $(DEMO) && echo
	$(BIN)/python -m trainer.tiny_model $(DEMO)
	@echo
	$(BIN)/fitune plan $(DEMO)/model --data $(DEMO)/data.jsonl --method full --set learning_rate=1e-3 \
		--set num_train_epochs=3 --set output_dir=$(DEMO)/run -o $(DEMO)/run.yaml
	@echo
	$(BIN)/fitune launch $(DEMO)/run.yaml

test: install lint typecheck  ## check style and types, then run all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n logical --maxprocesses 8

bench: install  ## speed and memory as ratios, in some minutes: predicted to measured, ours to theirs, planning to its goals
	@mkdir -p $(BENCH)/last
	@echo "== How long planning and an answer take =="
	@$(BIN)/python tests/benchmarks/planning_speed.py
	@$(BIN)/python -m tests.benchmarks.answer_time
	@echo && echo "== What was fitted: predicted against measured, on published runs =="
	@$(BIN)/python -m calibration.fit
	@echo && echo "== Our trainer beside plain TRL and plain Transformers, on this machine =="
	@$(BIN)/python -m calibration.versus --output $(BENCH)/versus.jsonl
	@echo && echo "== The planner's choice beside what it left, on this machine =="
	@$(BIN)/python -m calibration.plan_quality --output $(BENCH)/plan-quality.jsonl
	@# Interrupted, it goes on where it was; once through, it measures anew.
	@mv -f $(BENCH)/*.jsonl $(BENCH)/last/

evidence: install  ## print what shows that the predictions are right, with targets; FRESH=--fresh traces anew
	$(BIN)/python -m tests.evidence $(FRESH)

lint: install  ## check style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

typecheck: install  ## check types
	$(BIN)/mypy

docs: install  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

screenshots: install  ## take the pictures of the page for the documentation; needs Chromium
	$(BIN)/python -m tests.planner.serve.screenshots

peers: install  ## install the trainers whose schemas exports are validated against, into .venv-peers
	$(BIN)/python -m calibration.peers.environment

clean:  ## remove .venv, runs and caches
	rm -rf $(VENV) .venv-peers runs build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
