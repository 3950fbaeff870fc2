# Everything a contributor types. Needs python3 (3.11 or newer, with pip and venv), make and git; the rest is fetched into .venv.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-year test test-one test-oldest cover soak check format bench bench-oldest bench-control docs wheels try-wheels constraints clean

PY := .venv/bin/python
OLD := .venv-3.11/bin/python
ARGS ?=

PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
MEMBERS := sdk conformance $(PLUGINS)
EDITABLE := -e 'sdk[trio,cache]' $(patsubst %,-e %,conformance $(PLUGINS))
MANIFESTS := pyproject.toml constraints.txt $(MEMBERS:%=%/pyproject.toml)
# Folders that are checked beside the packages; each comes with its own change.
CHECKED := $(wildcard tests examples)
# Folders whose files mypy sees in a run of their own: a dash in the path gives their tests no package name.
APART := $(PLUGINS) $(wildcard examples/my-plugin)

# The programs in pages: narrower than modules, so that nobody has to scroll sideways.
PAGES := --config 'line-length = 88' --config 'format.exclude = ["*.py"]'

# Dependency groups (pyproject.toml) that a target needs beside the packages themselves.
NEEDS_run :=
NEEDS_test := test engines
NEEDS_check := test engines check bench
NEEDS_docs := docs
NEEDS_bench := test bench
NEEDS_old := test engines bench

# $(call find,MINORS): the first Python 3.MINOR that really runs and can make a venv. A pyenv shim may be on the path and fail.
find = for v in $(1); do for p in python3.$$v python3 python /usr/local/bin/python3.$$v /usr/bin/python3.$$v \
	  "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.$$v.*/bin/python3.$$v "$$HOME"/.local/share/uv/python/cpython-3.$$v.*/bin/python3.$$v; do \
	  "$$p" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, $$v) or sys.version_info.releaselevel != 'final')" \
	  >/dev/null 2>&1 && { echo "$$p"; break 2; }; done; done
# uv does not read pip's configuration: hand it the index that pip would use, if one is set, and trust the authorities that pip trusts.
uv = index=$$($(PY) -m pip config get global.index-url 2>/dev/null || true); \
	  env $${index:+UV_DEFAULT_INDEX="$$index"} VIRTUAL_ENV= UV_NO_PROGRESS=1 UV_SYSTEM_CERTS=1 .venv/bin/uv

help: ## List the targets (the default)
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

demo: .venv/.ready-run ## Run the main job on a month of real flights
	@echo "demo: examples/flights.py"
	@$(PY) examples/flights.py $(ARGS)

demo-year: .venv/.ready-run build/data/flights-2013.csv.gz ## Run the main job on the whole year (fetches 8 MB once)
	@echo "demo-year: examples/flights.py --year"
	@$(PY) examples/flights.py --year build/data/flights-2013.csv.gz $(ARGS)

build/data/flights-2013.csv.gz: examples/data/prepare.py | .venv/.ready-run
	@echo "demo-year: the whole year into $@"
	@$(PY) examples/data/prepare.py --download --year build/data

test: test-one test-oldest ## Run the tests on the newest Python found and on 3.11

test-one: .venv/.ready-test ## Run the tests on the newest Python found only (ARGS='-k batcher')
	@echo "test: pytest on $$($(PY) -V)"
	@$(PY) -m pytest $(ARGS)

test-oldest: .venv/.ready-test ## Run the tests on Python 3.11, if it is here and not the newest
	@if $(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then echo "test: 3.11 is the newest Python here, nothing to repeat"; \
	elif [ -z "$$($(call find,11))" ]; then echo "test: no Python 3.11 found, so tested on $$($(PY) -V) only"; \
	else $(MAKE) --no-print-directory .venv-3.11/.ready-old && echo "test: pytest on $$($(OLD) -V)" && $(OLD) -m pytest -o cache_dir=build/pytest-3.11 $(ARGS); fi

cover: .venv/.ready-test ## Run the tests and hold branch coverage of sdk/src to 100 %
	@echo "cover: pytest with branch coverage"
	@mkdir -p build/coverage
	@$(PY) -m pytest --cov --cov-report=term-missing:skip-covered --cov-report=html --cov-fail-under=100 $(ARGS)

soak: .venv/.ready-test ## Run the slow suites, with many seeds (SEEDS=1000)
	@echo "soak: the tests marked soak, $(or $(SEEDS),1000) seeds"
	@FOREBAY_SEEDS=$(or $(SEEDS),1000) $(PY) -m pytest -m soak --timeout=1800 $(ARGS)

check: .venv/.ready-check ## Lint, check formatting, types and import floors
	@echo "check: ruff"
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/ruff format --check $(PAGES)
	@echo "check: import floors"
	@.venv/bin/lint-imports --no-logo --cache-dir build/import_linter
	@echo "check: mypy"
	@.venv/bin/mypy sdk/src conformance $(CHECKED) --exclude '^(examples/my-plugin|tests/integration/third_party)/'
	@set -e; for part in $(APART); do .venv/bin/mypy $$part; done
	@.venv/bin/mypy --python-version 3.11 sdk/src conformance/src $(PLUGINS:%=%/src)
	@echo "check: pyright"
	@.venv/bin/pyright --level error
	@echo "check: every public type is known"
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/pyright --verifytypes forebay --ignoreexternal

format: .venv/.ready-check ## Sort imports, fix what can be fixed, format
	@echo "format: ruff"
	@.venv/bin/ruff check --fix --exit-zero
	@.venv/bin/ruff format
	@.venv/bin/ruff format $(PAGES)

bench: .venv/.ready-bench ## Run the benchmarks on the newest Python found
	@echo "bench: tests/benchmarks/run.py on $$($(PY) -V)"
	@$(PY) tests/benchmarks/run.py $(ARGS)

bench-oldest: .venv-3.11/.ready-old ## Run the benchmarks on Python 3.11
	@echo "bench: tests/benchmarks/run.py on $$($(OLD) -V)"
	@$(OLD) tests/benchmarks/run.py $(ARGS)

bench-control: .venv/.ready-bench ## Compare controllers with fixed settings, in virtual time (ARGS=--guard: against their start)
	@echo "bench-control: tests/benchmarks/control.py on $$($(PY) -V)"
	@$(PY) -m tests.benchmarks.control $(ARGS)

docs: .venv/.ready-docs ## Build the docs into build/site; a warning is an error
	@echo "docs: build/site"
	@.venv/bin/zensical build --strict --clean

wheels: .venv/.ready-run ## Build the wheel of each package into build/wheels
	@echo "wheels: build/wheels"
	@rm -rf build/wheels
	@$(uv) build -q --all-packages --wheel --python $(PY) -b constraints.txt -o build/wheels
	@ls build/wheels

try-wheels: .venv/.ready-check wheels ## Install the wheels elsewhere and work there as a user and a plugin author would
	@echo "try-wheels: an empty environment of $$($(PY) -V)"
	@$(PY) tests/integration/try_wheels.py build/wheels/*.whl

constraints: .venv/.ready-run ## Write constraints.txt anew with the newest versions
	@echo "constraints: constraints.txt"
	@mkdir -p build
	@$(uv) pip compile -q --universal --upgrade --python-version 3.11 --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	  $(patsubst %,--no-emit-package %,forebay forebay-conformance $(notdir $(PLUGINS))) \
	  --group all --extra trio --extra cache $(MEMBERS:%=%/pyproject.toml) -o build/constraints.txt
	@{ sed -n '/^#/p' constraints.txt; grep -v '^\(-e\|\./\|file:\|#\)' build/constraints.txt; } > build/constraints.new
	@mv build/constraints.new constraints.txt

clean: ## Remove the virtual environments and everything that was built
	@echo "clean: .venv .venv-3.11 build and caches"
	@rm -rf .venv .venv-3.11 build .ruff_cache .hypothesis .import_linter_cache .cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is made once (`make clean` removes it); its contents follow the manifests.
.venv/bin/uv: constraints.txt
	@if ! $(PY) -c '' 2>/dev/null; then \
	  found=$${PYTHON:-$$($(call find,14 13 12 11))}; \
	  [ -n "$$found" ] || { echo "no Python 3.11 or newer that can make a venv was found; name one with PYTHON=/path/to/python3" >&2; exit 1; }; \
	  echo "setup: .venv with $$("$$found" -V)"; "$$found" -m venv --clear .venv; fi
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt uv
	@touch $@

.venv/.ready-%: $(MANIFESTS) | .venv/bin/uv
	@echo "setup: into .venv what '$*' needs"
	@$(uv) pip install -q --python $(PY) -c constraints.txt -b constraints.txt $(EDITABLE) $(NEEDS_$*:%=--group %)
	@touch $@

.venv-3.11/.ready-old: $(MANIFESTS) | .venv/bin/uv
	@$(OLD) -c '' 2>/dev/null || { found=$$($(call find,11)); \
	  [ -n "$$found" ] || { echo "no Python 3.11 that can make a venv was found" >&2; exit 1; }; \
	  echo "setup: .venv-3.11 with $$("$$found" -V)"; "$$found" -m venv --clear --without-pip .venv-3.11; }
	@echo "setup: into .venv-3.11 what the tests and benchmarks need"
	@$(uv) pip install -q --python $(OLD) -c constraints.txt -b constraints.txt $(EDITABLE) $(NEEDS_old:%=--group %)
	@touch $@
