# Everything a newcomer needs: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Any Python 3.11 to 3.13 with pip; the rest is brought along.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
TOOLS := .cache/tools
UV := $(TOOLS)/bin/uv
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
API_PROGRAMS := etcd kube-apiserver kube-controller-manager kubectl helm
PYTEST_ARGS ?=
# Tests that start no Ray and no model run beside each other.
PYTEST_WORKERS ?= 2
PAINS_ARGS ?=
E2E_ARGS ?=
CHAOS_ARGS ?=
SOAK_ARGS ?=

PYTEST_FAST = $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile -m "not slow" $(PYTEST_ARGS)
# 5: no test was selected, which one of two runs may say.
PYTEST_RESULT = test $(1) -eq 0 -a $(2) -eq 0 -o $(1) -eq 0 -a $(2) -eq 5 -o $(1) -eq 5 -a $(2) -eq 0

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(UV): requirements/uv.txt
	@$(PYTHON) scripts/check_machine.py
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --require-hashes --no-deps --upgrade \
	  --target $(TOOLS) --requirement requirements/uv.txt
	@touch $(UV)

$(STAMP): requirements/dev.txt pyproject.toml $(UV)
	@$(PYTHON) scripts/check_machine.py
	@echo "Installing into $(VENV) from requirements/dev.txt"
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --python $(BIN)/python requirements/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

.PHONY: install
install: $(STAMP) ## Make .venv with everything (CPU engines, gateway, operator's packages, tests)

.PHONY: install-gpu
install-gpu: $(UV) ## Make .venv-gpu with the gateway and vLLM for GPUs
	@test -x .venv-gpu/bin/python || $(UV) venv --quiet --python $(PYTHON) .venv-gpu
	@$(UV) pip sync --quiet --python .venv-gpu/bin/python requirements/gateway.txt requirements/engine.txt
	@$(UV) pip install --quiet --python .venv-gpu/bin/python --no-deps --editable .

.PHONY: demo
demo: ## Start the quickstart and ask it three things; DEMO_ONCE=1 stops by itself
	@started=$$(date +%s.%N); $(MAKE) --no-print-directory install; \
	  POINTSMAN_DEMO_STARTED=$$started exec $(BIN)/python -m pointsman_serving.cli.demo \
	  examples/quickstart $(if $(DEMO_ONCE),--once,--no-once)

.PHONY: test
test: install ## Run every test but `make e2e`, the real Ray Serve and vLLM included
	@$(BIN)/python -m tests.cluster.binaries $(API_PROGRAMS) > /dev/null
	@$(call PYTEST_FAST) && fast=0 || fast=$$?; \
	  $(BIN)/python -m pytest -m slow $(PYTEST_ARGS) && slow=0 || slow=$$?; \
	  $(call PYTEST_RESULT,$$fast,$$slow)

.PHONY: test-fast
test-fast: install ## Run the tests that need no Ray and no model
	@$(BIN)/python -m tests.cluster.binaries $(API_PROGRAMS) > /dev/null
	@$(call PYTEST_FAST)

.PHONY: e2e
e2e: install ## Pods that really run: Kubernetes, KubeRay, the chart, real vLLM (root on Linux, 20 minutes)
	@$(BIN)/python -m tests.cluster.binaries
	@$(BIN)/pointsman model import smollm2
	@$(BIN)/pointsman model upcycle smollm2 smollm2-moe
	@$(BIN)/python -m pytest -x --timeout=1500 tests/e2e_cluster $(E2E_ARGS)

.PHONY: scale
scale: install ## 500 ModelPools and 50 RoutePolicies on a real API server: seconds, memory, calls
	@$(BIN)/python -m tests.api.scale

.PHONY: chaos
chaos: install ## Break replicas and a gateway under 240 streams for two minutes: none may show it
	@$(BIN)/python -m tests.chaos.run --out benchmarks/results/chaos.json $(CHAOS_ARGS)

.PHONY: chaos-vllm
chaos-vllm: install ## Break streams of two real vLLM replicas and compare with the unbroken ones
	@$(BIN)/pointsman model import smollm2
	@$(BIN)/python -m tests.chaos.vllm_continuation --out benchmarks/results/vllm_continuation.json

.PHONY: soak
soak: install ## Ten million prompts that never repeat, 100,000 tenants: memory stays flat (half an hour)
	@$(BIN)/python -m benchmarks.soak --out benchmarks/results $(SOAK_ARGS)

.PHONY: pains
pains: install ## The 25 pains of shipping peers, and the tests that keep them away; PAINS_ARGS=--list
	@$(BIN)/python -m tests.pains $(PAINS_ARGS)

.PHONY: check
check: install ## Linters, types, layers, drift of CRDs and locks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pointsman_api.generate --check
	@$(BIN)/python charts/tools/generate.py --check
	@scripts/lock --check

.PHONY: benchmark
benchmark: install ## Routing against a random choice of replica, and the cost of a decision
	@$(BIN)/pointsman model import smollm2
	@$(BIN)/python benchmarks/decision.py --json benchmarks/results/decision.json
	@$(BIN)/python benchmarks/prefix_affinity.py

.PHONY: format
format: install ## Format the code and mend what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: generate
generate: install ## Write crds/*.yaml from the Python types, and the chart's copies and schema
	@$(BIN)/python -m pointsman_api.generate
	@$(BIN)/python charts/tools/generate.py

.PHONY: lock
lock: $(UV) ## Write requirements/*.txt from pyproject.toml
	@scripts/lock

.PHONY: clean
clean: ## Remove what the targets made in this folder
	@rm -rf $(VENV) .venv-gpu .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
