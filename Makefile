# The commands of this checkout; `make help` lists them. Each sets up what it needs in .venv.
# Variables: PYTHON=python3.12 (an interpreter; else that of .venv, or the first that is new enough), ARGS="..." (more arguments for the command), WORKERS=2 (processes of tests).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
export PYTHON

WORKERS ?= 2
python := .venv/bin/python
sources = $(shell find benchmarks cuda tests -name '*.h' -o -name '*.c' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')

# A file's tests share programs: one process runs them all.
pytest = $(python) -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help demo example test check test-all trust trust-gpu mutants test-gpu test-all-gpu test-multi-gpu bench-gpu sanitize-gpu doctest lint types format notebooks lab docs look cuda emulate-gpu wheel try-wheel try-adding-a-loss clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	  printf '  make %-17s %s\n' "$$name" "$$(fold -s -w 75 <<<"$$text" | sed '2,$$s/^/                         /; s/ $$//')"; done
	@sed -n 's/^# Variables: /\nVariables: /p' $(MAKEFILE_LIST) | fold -s -w 100 | sed 's/ $$//'

demo: ## train three models on real data with losses from jaxloss, and draw the pictures
	@tools/environment demo
	$(python) -m demo $(ARGS)

example: ## train one of the examples: NAME=image_classifier, or another of docs/examples.md; with ARGS=--quick for seconds
	@[ -n "$(NAME)" ] && [ -f "examples/$(NAME).py" ] || \
	  { echo "error: make example NAME=..., one of: $(notdir $(basename $(wildcard examples/[!_]*.py)))" >&2; exit 1; }
	@tools/environment examples
	$(python) -m examples.$(NAME) $(ARGS)

test: ## every test, and of the large products of parameters a choice: about nine minutes on two cores, six once it has run here
	@tools/environment test
	@$(if $(ARGS),,echo "make test: about nine minutes on two idle cores, six once it has run here")
	$(pytest) -m "not slow and not rest" $(ARGS)

check: ## a few tests of every layer: about a minute
	@tools/environment test
	@$(if $(ARGS),,echo "make check: about a minute on two idle cores")
	$(pytest) -m smoke $(ARGS)

test-all: ## what `make test` leaves out: the rest of the products but the largest, and the examples
	@tools/environment test
	@$(if $(ARGS),,echo "make test-all: what make test leaves out, about eleven minutes on two idle cores")
	$(pytest) -m slow $(ARGS)

trust: ## campaigns that look for faults, half an hour on two cores; ARGS=--quick for seconds of each, as CI; ARGS="--only fuzz --share 10"
	@tools/environment test
	$(python) -W ignore -m trust $(ARGS)

trust-gpu: ## those about a device on a GPU, in five minutes, with the active environment's own jax; ARGS="--minutes 10 --output DIR"
	$(or $(PYTHON),python3) -W ignore -m trust --platform gpu $(ARGS)

mutants: ## faults, one after the other, that the tests must see: ARGS="--only binary" for some, two hours for all
	@tools/environment test
	$(python) tools/mutate.py $(ARGS)

test-gpu: ## what `make test` runs, on the GPU, with the active environment's own jax (needs no network)
	tools/install-for-gpu
	$(or $(PYTHON),python3) -m pytest -m "gpu and not slow and not rest" $(ARGS)

test-all-gpu: ## what `make test-all` runs, likewise
	tools/install-for-gpu
	$(or $(PYTHON),python3) -m pytest -m "gpu and slow" $(ARGS)

test-multi-gpu: ## what is about several devices, on two GPUs or more, likewise; one process, for they wait for each other
	tools/install-for-gpu
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(or $(PYTHON),python3) -m pytest -m multi_gpu $(ARGS)

bench-gpu: ## every script in benchmarks/, with the active environment's own jax (needs no network)
	tools/install-for-gpu
	@scripts=$$(grep -ls __main__ benchmarks/*.py | grep -v picture) || { echo "benchmarks/ holds no script yet"; exit; }; \
	for script in $$scripts; do (set -x; $(or $(PYTHON),python3) -m "benchmarks.$$(basename "$$script" .py)" $(ARGS)); done

sanitize-gpu: ## the CUDA kernels under compute-sanitizer, with the active environment's own jax; ARGS="--tool racecheck --part cluster" for some
	$(or $(PYTHON),python3) -m trust.compute_sanitizer $(ARGS)

doctest: ## the examples in the documentation of the functions
	@tools/environment test
	$(python) -m pytest --doctest-modules jaxloss $(ARGS)

lint: types ## formatting, lint and types
	$(python) -m ruff check
	$(python) -m ruff format --check
	.venv/bin/clang-format --dry-run -Werror $(sources)

types: ## types alone
	@tools/environment dev
	$(python) -m pyright

format: ## bring every file into shape
	@tools/environment dev
	$(python) -m ruff check --fix
	$(python) -m ruff format
	.venv/bin/clang-format -i $(sources)

notebooks: ## execute the notebooks, as a check; with ARGS=--write, store their outputs; ARGS=notebooks/01_three_losses.ipynb for one
	@tools/environment docs
	$(python) notebooks/execute.py $(ARGS)

lab: ## the notebooks in JupyterLab, where the explorer's sliders move; ARGS="--allow-root --no-browser" in a container
	@tools/environment lab
	$(python) -m jupyterlab notebooks $(ARGS)

docs: ## the documentation site, into build/site; a warning or a broken link is an error
	@tools/environment site
	$(python) -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --write-all -d build/doctrees docs build/site
	$(python) tools/check_site.py build/site

look: docs ## the site in a headless Chromium, light, dark and as wide as a telephone, and the sliders of the explorer: three minutes
	@tools/environment browser
	$(python) tools/look_at_pages.py build/site $(ARGS)

cuda: ## compile the CUDA kernels for sm_80 and sm_90a; a register that spills is an error, and a release whose wheel would be beyond 25 MB; ARGS="90a --parse 80" as CI
	@tools/environment
	$(python) tools/compile_cuda.py $(or $(ARGS),80 90a)

emulate-gpu: ## the CUDA kernels' own check on a CPU, by an emulator of CUDA's threads, in a minute; ARGS="options streaming" for some
	@tools/environment
	$(python) tools/emulate_kernels.py $(ARGS)

wheel: ## the wheel of a release, into dist/; ARGS=--cpu-only without CUDA, in two minutes
	@tools/environment release
	$(python) tools/wheel.py $(ARGS)

try-wheel: ## install the wheels of dist/ as users do, and let each check itself
	@tools/environment
	$(python) tools/try_wheel.py $(ARGS)

try-adding-a-loss: ## follow docs/adding_a_loss.diff in a copy of the checkout: build it, and run the tests of that loss
	@tools/environment test
	$(python) tools/try_adding_a_loss.py

clean: ## remove what these commands made
	rm -rf .venv .venv-newest build dist demo/output docs/notebooks
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .hypothesis
