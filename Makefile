# make demo and make test do all set-up themselves; both need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-finetune test test-slow install lint types test-tpu-compile clean help

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

demo: install  ## train a small GLM on this Python's documentation, then fill blanks (demo/)
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m train.demo

demo-finetune: install  ## that model learns to answer questions (demo/chat/); demo first if need be
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m train.demo_finetune

test: lint  ## lint and all tests but the longest TPU compiles, on CPU
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -q -m "not slow"

lint: install  ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

test-slow: install  ## the tests that make test leaves out: whole trainings, kills, more combinations (hours)
	$(BIN)/pytest -n 2 --dist loadfile -q -m "slow and not tpu_compile"

test-tpu-compile: install  ## all tests that run the TPU compiler, the long ones too
	$(BIN)/pytest -q -m tpu_compile

install: $(VENV)/.installed  ## .venv with the tested set of packages

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "glm_jax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)  # of two Pythons in one folder neither would work
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

clean:  ## remove what the commands above made
	rm -rf $(VENV) .cache demo
