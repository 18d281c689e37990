# Everything a checkout needs. Each target does its own set-up first; `make` alone lists them.
#
#   PYTHON=/path/to/python3.12   the interpreter of a new .venv (3.11 to 3.13); without it the first that runs
#   TORCH_BACKEND=cpu            which build of torch: cpu, cu128 …, auto; remembered in .venv. Without it pip
#                                decides, which on Linux x86 may mean several GB of CUDA packages
#   ARGS="…"                     passed on to catvec or pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-model test test-fast bench lint format wheel constraints clean

BIN := .venv/bin
EXTRAS := dev,parquet,siglip,charts,train
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

ifeq ($(TORCH_BACKEND),)
TORCH_BACKEND := $(shell cat .venv/.torch-backend 2>/dev/null)
endif
# tests/e2e/test_wheel.py installs torch once more and must take the same build
export TORCH_BACKEND

# The stamp is newer than what it was made from, and named after the build of torch. A checkout that was moved
# has scripts in .venv that point to the old place, so it starts afresh.
STAMP := .venv/.setup-$(or $(TORCH_BACKEND),default)
ifneq ($(or $(shell cat .venv/.checkout 2>/dev/null),$(CURDIR)),$(CURDIR))
$(shell rm -f $(STAMP))
endif

# Relative, because pip splits these at white space and the checkout's path may hold some. The second names the
# pins of the build environment for pip 25.3 and later, the first does so for older ones.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
       $(BIN)/python -m pip

# four workers at most: each may hold torch and a model
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

DEMO_MODEL := --split-column split --size tiny --patch-size 16 --width 192 --text-layers 2 --vocabulary 700 --seed 7 \
              --batch-size 64 --epochs 18 --learning-rate 0.0005 --evaluate-every 1250 --precision bf16 \
              --save-precision fp16 --license mit

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

setup: $(STAMP) ## create .venv and install catvec into it, if anything changed
	@:

$(STAMP): pyproject.toml constraints.txt
	@here=$$(cat .venv/.checkout 2>/dev/null || pwd); \
	if [ "$$here" = "$(CURDIR)" ] && $(BIN)/python -c 'import pip; $(SUITABLE)' 2>/dev/null; then exit 0; fi; \
	for python in $(CANDIDATES); do \
	  if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
	    echo "setup: new virtual environment in .venv with $$("$$python" --version)"; \
	    exec "$$python" -m venv --clear .venv; \
	  fi; \
	done; \
	echo "error: no Python 3.11 to 3.13 runs as any of: $(CANDIDATES)" >&2; \
	echo "hint: install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	exit 1
	@rm -f .venv/.setup-*
	@echo "setup: installing catvec and its dependencies into .venv (the first time takes minutes: torch is large)"
	@if [ -n "$(TORCH_BACKEND)" ]; then \
	  [ "$(TORCH_BACKEND)" = "$$(cat .venv/.torch-backend 2>/dev/null)" ] || other_build="--reinstall-package torch"; \
	  $(PIP) install -qq uv && \
	  $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraints constraints.txt \
	    --torch-backend "$(TORCH_BACKEND)" $$other_build torch; \
	fi
	@$(PIP) install -qq --editable '.[$(EXTRAS)]'
	@printf '%s' "$(TORCH_BACKEND)" >.venv/.torch-backend
	@printf '%s' "$(CURDIR)" >.venv/.checkout
	@touch $@
	@echo "setup: done"

demo: setup ## draw a catalog, embed it into a Postgres of its own, find products by words, likeness and tags
	@$(BIN)/catvec demo $(ARGS)

# what breaks off goes on with the same command; a training that is whole has its folder
demo-model: setup ## train the demo's model anew, into pipeline/demo/model, and measure it (half an hour)
	@if [ ! -f build/demo-model/drawn ]; then \
	  $(BIN)/python -m pipeline.demo.lessons build/demo-model/lessons && touch build/demo-model/drawn; \
	fi
	@cd build/demo-model && "$(CURDIR)/$(BIN)/catvec" train lessons/catalog.csv $(DEMO_MODEL) --output model 2>&1 \
	  | tee -a training.log
	@test -d build/demo-model/model
	@rm -rf pipeline/demo/model && cp -R build/demo-model/model pipeline/demo/model
	@cp build/demo-model/training.log pipeline/demo/model/
	@$(BIN)/python -m benchmarks.demo_model

test: setup ## the whole test suite
	@$(PYTEST) -m "not bench" $(ARGS)

test-fast: setup ## the tests that take less than ten seconds each
	@$(PYTEST) -m "not slow and not bench" $(ARGS)

bench: setup ## the benchmarks (minutes): make bench PHOTOS=path/to/catalog.csv; see benchmarks/README.md
	@if [ ! -f "$(PHOTOS)" ]; then \
	  echo "error: PHOTOS is '$(PHOTOS)', expected a CSV catalog with photos beside it" >&2; \
	  echo "hint: make bench PHOTOS=path/to/catalog.csv" >&2; \
	  exit 2; \
	fi
	@if [ ! -d build/clip-b32-random ]; then \
	  rm -rf build/clip-new && $(BIN)/python -m benchmarks.random_model build/clip-new && \
	  mv build/clip-new build/clip-b32-random; \
	fi
	@$(BIN)/python -m benchmarks.startup --model build/clip-b32-random
	@$(BIN)/python -m benchmarks.encode --model build/clip-b32-random
	@$(BIN)/python -m benchmarks.decode_workers "$(PHOTOS)"
	@$(BIN)/python -m benchmarks.compiled --models vit-b-32
	@$(BIN)/python -m benchmarks.parity "$(PHOTOS)" --model build/clip-b32-random
	@$(BIN)/python -m benchmarks.end_to_end "$(PHOTOS)" --model build/clip-b32-random
	@$(BIN)/python -m benchmarks.real_catalog "$(PHOTOS)" --model build/clip-b32-random
	@$(BIN)/python -m benchmarks.contract "$(PHOTOS)" --model build/clip-b32-random
	@$(BIN)/python -m benchmarks.seven_nights "$(PHOTOS)" --model build/clip-b32-random
	@$(BIN)/python -m benchmarks.nightly --large-model build/clip-b32-random
	@$(BIN)/python -m benchmarks.similar
	@$(BIN)/python -m benchmarks.switch
	@$(BIN)/python -m benchmarks.write_path
	@$(BIN)/python -m benchmarks.bundle
	@$(BIN)/python -m benchmarks.tag
	@$(BIN)/python -m benchmarks.clothing "$(PHOTOS)"
	@$(BIN)/python -m benchmarks.demo_model
	@$(BIN)/python -m benchmarks.independent
	@$(BIN)/python -m benchmarks.train_step
	@$(BIN)/python -m benchmarks.report

lint: setup ## ruff (rules and format) and mypy (strict)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

format: setup ## rewrite the code as ruff wants it
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

wheel: setup ## dist/catvec-….whl
	@$(BIN)/python -m build --wheel --no-isolation

constraints: ## constraints.txt anew: the newest versions that fit together, torch as it was
	@rm -rf build/constraints && mkdir -p build
	@$(or $(PYTHON),python3) -m venv build/constraints
	@grep '^torch==' constraints.txt >build/held.txt
	@build/constraints/bin/python -m pip install -qq --dry-run --report build/report.json \
	  --constraint build/held.txt '.[$(EXTRAS)]' editables setuptools uv
	@grep '^#' constraints.txt >build/constraints.txt
	@build/constraints/bin/python -c "$$PINS" <build/report.json >>build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/constraints build/held.txt build/report.json

# reads pip's report; a local version such as +cpu names a build, not a version
define PINS
import json, sys
found = [entry['metadata'] for entry in json.load(sys.stdin)['install']]
pins = {entry['name'].lower().replace('_', '-'): entry['version'].partition('+')[0] for entry in found}
of_torch = ('cuda-', 'nvidia-', 'triton')
print(*sorted(f'{name}=={pins[name]}' for name in pins if name != 'catvec' and not name.startswith(of_torch)), sep='\n')
endef
export PINS

clean: ## remove .venv and everything built
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
